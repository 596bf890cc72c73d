"""Bytes of a store by what they are there for: frames by their events, all else beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.archive.savings.disk import DiskFile
from sfxreduce.archive.savings.values import Part, Weight
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.errors import SfxReduceError, VerificationError
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.chunks.shards import ABSENT, ShardFile
from sfxreduce.io.store.metadata import open_store
from sfxreduce.io.store.names import AUDIT_GROUP

__all__ = ["frame_parts", "kept_parts", "stored_events_bytes", "weigh"]

Split = Mapping[Part, int]
"""Bytes of one file, by what they are there for."""


def weigh(splits: Sequence[Split]) -> dict[Part, Weight]:
    """Sum the bytes of files; each counts as one file of the part that has most of it."""
    found: dict[Part, Weight] = {}
    for split in splits:
        largest = max(split, key=lambda part: split[part])
        for part, n_bytes in split.items():
            weight = Weight(bytes=n_bytes, files=int(part is largest))
            found[part] = found.get(part, Weight()) + weight
    return found


def _event_bytes(shard: Path, layout: Layout) -> NDArray[np.int64]:
    """Bytes of the frame of each event in a shard, by its index; no frame is read.

    Returns
    -------
    ndarray of int64
        Shape (event,), as many as a whole shard has; 0 for one that is not there.

    Raises
    ------
    SourceError
        If the shard or its index is damaged.
    """
    n_tiles = layout.tiles_per_event * layout.events_per_shard
    with ShardFile(shard, n_tiles=n_tiles) as file:
        there = file.index[:, 0] != ABSENT
        lengths = np.where(there, file.index[:, 1], 0).astype(np.int64)
    return np.asarray(lengths.reshape(layout.events_per_shard, -1).sum(axis=1), np.int64)


def frame_parts(
    store: Path, files: Sequence[DiskFile], parts: Sequence[Part] | Part
) -> dict[Path, Split]:
    """Split the shards of a store.

    Parameters
    ----------
    files : sequence of DiskFile
        All or some of the store's; other files than shards are passed over.
    parts : sequence of Part, or Part
        What each of its events is there for, or all of them.

    Raises
    ------
    SfxReduceError
        If the store cannot be read, or a shard's index is damaged.
    """
    opened = open_store(str(store))
    if opened.layout is None:
        raise VerificationError(f"{store}: expected frames in tiles of our kind, found others")
    layout, n_events = opened.layout, opened.n_events
    each = [parts] * n_events if isinstance(parts, Part) else list(parts)
    if len(each) != n_events:
        raise VerificationError(
            f"{store}: expected {len(each)} frames by its ledger, found {n_events}"
        )
    shards = {
        store / "frames" / layout.shard_key(number): number
        for number in range(layout.n_shards(n_events))
    }
    return {
        file.path: _split(file, layout, each, shards[file.path])
        for file in files
        if file.path in shards
    }


def _split(file: DiskFile, layout: Layout, parts: Sequence[Part], number: int) -> Split:
    """Bytes of one shard; what is neither tile nor hole is the index."""
    found: Counter[Part] = Counter()
    first = number * layout.events_per_shard
    for part, n_bytes in zip(
        parts[first : first + layout.events_per_shard],
        _event_bytes(file.path, layout).tolist(),
        strict=False,
    ):
        found[part] += n_bytes
    rest = file.size - found.total()
    if rest < 0:
        raise VerificationError(
            f"{file.path}: its index lists {found.total()} bytes, more than the {file.size} it has"
        )
    found[Part.SIDECARS] += rest
    return found


def kept_parts(hits: Path, made: Decisions, files: Sequence[DiskFile]) -> dict[Path, Split]:
    """Split all shards of a reduced store: hits, undecided events, audit set.

    Parameters
    ----------
    made : Decisions
        Its ledger.
    files : sequence of DiskFile
        Of the store.

    Raises
    ------
    SfxReduceError
        If it is damaged.
    """
    # Frames lie in the order of their source: no column has to be read to know which is which.
    names = {Decision.HIT: Part.HITS, Decision.UNDECIDED: Part.UNDECIDED}
    parts = [names[Decision(decision)] for decision in made.decision[made.kept].tolist()]
    found = frame_parts(hits, files, parts)
    audit = hits / AUDIT_GROUP
    return found | (frame_parts(audit, files, Part.AUDIT_SET) if audit.is_dir() else {})


def stored_events_bytes(store: Path, events: Sequence[int]) -> int | None:
    """Bytes of the frames of some events; None if they do not lie in shards of our kind.

    Parameters
    ----------
    events : sequence of int
        In ascending order.
    """
    try:
        layout = open_store(str(store)).layout
        if layout is None:
            return None
        places = [layout.locate(event) for event in events]
        shards = {
            number: _event_bytes(store / "frames" / layout.shard_key(number), layout)
            for number in {number for number, _ in places}
        }
    except SfxReduceError:
        return None
    return sum(int(shards[number][place]) for number, place in places)
