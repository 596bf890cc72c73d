"""Names in a Zarr store of ours: its schema, its groups, their columns and dimensions."""

from __future__ import annotations

__all__ = [
    "AUDIT_DIM",
    "AUDIT_GROUP",
    "CONDITIONS_GROUP",
    "FRAMES",
    "LEDGER_GROUP",
    "MANIFEST_GROUP",
    "PANEL_MISSING",
    "SCHEMA",
    "SCHEMA_VERSION",
]

SCHEMA = "sfxreduce.run"
SCHEMA_VERSION = 1
FRAMES = "frames"
AUDIT_GROUP = "audit"
AUDIT_DIM = "audit_event"
"""Events of the sample: an axis of its own, as xarray wants where the length is another."""
CONDITIONS_GROUP = "conditions"
LEDGER_GROUP = "ledger"
PANEL_MISSING = "panel_missing"
MANIFEST_GROUP = "manifest"
