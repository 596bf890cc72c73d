"""Training of the poster's network."""
