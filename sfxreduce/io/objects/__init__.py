"""Runs in an object store elsewhere, as files that are fetched when they are first read."""
