"""Many devices, as they show themselves over MQTT."""
