"""One run: its frames (lazily), a row for every event, its detector."""
