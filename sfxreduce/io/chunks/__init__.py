"""Tiles and shards: where the encoded bytes of an event lie, and how they are decoded."""
