"""Rollouts of a model: what a device is told to serve, how it gets there by itself, and what it reports."""
