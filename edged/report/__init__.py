"""Reports the daemon's status: metrics, HTTP, systemd, MQTT documents. Imports neither engine nor jobs."""
