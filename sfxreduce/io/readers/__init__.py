"""Readers of runs, one file per source format."""
