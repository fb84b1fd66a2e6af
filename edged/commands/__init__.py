"""Commands over MQTT: what an operator asks of one board or a group, and what each board answers."""
