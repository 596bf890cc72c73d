"""What is known of a scorer before it sees a run."""
