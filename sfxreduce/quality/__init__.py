"""What frames say about the detector, and about themselves."""
