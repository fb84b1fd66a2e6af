"""What a device does with model packages beyond serving them: whether one answers as it did when it was made."""
