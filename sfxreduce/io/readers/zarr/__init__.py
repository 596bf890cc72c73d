"""Zarr stores as runs, ours and anybody's."""
