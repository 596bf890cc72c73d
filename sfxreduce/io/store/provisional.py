"""A mark in the attributes of stores that hold no final answer."""

from __future__ import annotations

import json
from pathlib import Path

from sfxreduce.errors import RefusedError
from sfxreduce.io.files.durable import write_file
from sfxreduce.io.files.safe_read import parse_json, read_small

__all__ = ["PROVISIONAL", "is_provisional", "mark_provisional", "refuse_provisional"]

PROVISIONAL = "provisional"
"""Attribute of a group that holds hits of a run that was not whole; its value says so in words."""

METADATA = "zarr.json"
MOST_METADATA_BYTES = 16 << 20


def mark_provisional(path: Path, words: str) -> None:
    """Write the mark into the root of a store.

    Parameters
    ----------
    path : Path
        Of the store, which nobody else reads yet.
    words : str
        What it holds, and what becomes of it.

    Raises
    ------
    OSError
        If its metadata cannot be read or written; see `sfxreduce.io.files.durable.output_errors`.
    """
    facts = json.loads((path / METADATA).read_bytes())
    facts.setdefault("attributes", {})[PROVISIONAL] = words
    write_file(path / METADATA, json.dumps(facts, indent=2).encode())


def is_provisional(path: Path) -> bool:
    """Whether a store has the mark, or lies in one that has it."""
    return any(_has_mark(folder) for folder in (path, path.absolute().parent))


def refuse_provisional(path: Path) -> None:
    """Refuse a store with the mark where only a final answer will do.

    Raises
    ------
    RefusedError
        If it has it.
    """
    if is_provisional(path):
        raise RefusedError(
            f"{path}: expected a final output, found hits of a run that 'filter --follow' is still "
            "watching; wait for that command to end, and give its output"
        )


def _has_mark(folder: Path) -> bool:
    try:
        facts = parse_json(read_small(folder / METADATA, most_bytes=MOST_METADATA_BYTES))
        return PROVISIONAL in facts["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
