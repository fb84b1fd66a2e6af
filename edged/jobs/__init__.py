"""A job: its documents, its place on disk, and its life from receipt to delivery."""
