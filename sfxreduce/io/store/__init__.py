"""Zarr metadata: our schema and manifest, and anybody's metadata judged before it is used."""
