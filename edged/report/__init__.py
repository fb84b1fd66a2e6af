"""Tells others how the daemon is: metrics, HTTP, systemd, MQTT documents."""
