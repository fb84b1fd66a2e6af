"""Reads the machine: board and sensors, memory, control group, GPU, clock, storage, processor."""
