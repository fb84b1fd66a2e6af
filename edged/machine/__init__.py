"""Reads the machine: board and sensors, memory, control group, clock, storage, processor."""
