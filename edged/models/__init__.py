"""Model packages on a device: fetching, storing and selecting them, and recording their known answers."""
