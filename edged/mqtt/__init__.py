"""MQTT: the topics, and the link that carries jobs in and results out."""
