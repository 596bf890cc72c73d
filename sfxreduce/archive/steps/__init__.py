"""One file for each archive command."""
