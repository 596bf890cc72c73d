"""One task, one whole shard: its events copied as stored bytes, or read and encoded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from sfxreduce.errors import SchemaError
from sfxreduce.io.files import output_errors, write_file
from sfxreduce.io.layout import Layout
from sfxreduce.io.shards import TileCodec, shard_parts
from sfxreduce.run import FrameSource

__all__ = ["ShardJob", "ShardWritten", "TiledSource", "copy_shard", "encode_shard"]

READ_BYTES = 64_000_000
"""Frames that are in memory at a time; one at least."""


@runtime_checkable
class TiledSource(Protocol):
    """A source whose stored bytes are tiles, or can be made tiles without unpacking."""

    @property
    def layout(self) -> Layout | None:
        """Their layout; None if there are none."""
        ...

    def encoded(self, events: Sequence[int]) -> Iterator[list[bytes | None]]:
        """Tiles of events in grid order, checksum included; None where absent or damaged."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """One shard to be read from a source, encoded and written.

    Parameters
    ----------
    source : FrameSource
    store : str
        Path of the store.
    layout : Layout
        Of the store.
    shard : int
        Number of the shard.
    events : tuple of int
        Positions in the source, in the order in which they are written.
    group : str
        Of the store, if not its root.
    hashed : bool
        Whether the sha256 of the shard is wanted.
    """

    source: FrameSource
    store: str
    layout: Layout
    shard: int
    events: tuple[int, ...]
    group: str = ""
    hashed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWritten:
    """What a task wrote.

    Parameters
    ----------
    path : str
        Of the file, relative to the store.
    sha256 : str
        Of the bytes that were to be written; empty if it was not wanted.
    holes : tuple of int
        Source positions of the events of which not every pixel could be read.
    """

    path: str
    sha256: str
    holes: tuple[int, ...]


def encode_shard(job: ShardJob) -> ShardWritten:
    """Read and encode the events of one shard, and write it.

    Few frames are in memory at a time. An event that cannot be read becomes a hole, never zeros.

    Raises
    ------
    OutputError
        If the disk is full or the path cannot be written.
    """
    layout = job.layout
    dtype = np.dtype(job.source.dtype)
    codec = TileCodec(dtype=dtype, tile=layout.tile, packing=layout.packing)
    # Neighbours together: a source may have to open a file, or to unpack a chunk of several events.
    step = max(1, READ_BYTES // (math.prod(layout.frame_shape) * dtype.itemsize))
    parts = [layout.tile_slices(tile) for tile in range(layout.tiles_per_event)]
    events: list[list[bytes | None]] = []
    for start in range(0, len(job.events), step):
        reading = job.source.read(job.events[start : start + step])
        for frame, reason in zip(reading.pixels, reading.reasons, strict=True):
            events.append([None if reason else codec.encode(frame[part]) for part in parts])
    return _write(job, events)


def copy_shard(job: ShardJob) -> ShardWritten:
    """Copy the stored tiles of one shard's events without decoding them, and write it.

    Every tile is compared with its checksum on the way; one that is damaged or missing in the
    source becomes a hole.

    Raises
    ------
    OutputError
        If the disk is full or the path cannot be written.
    SchemaError
        If the source has no tiles of the output's kind.
    """
    if not isinstance(job.source, TiledSource) or job.source.layout != job.layout:
        raise SchemaError(
            f"{job.source.path}: its tiles do not fit the output; encode them instead"
        )
    return _write(job, list(job.source.encoded(job.events)))


def _write(job: ShardJob, events: Sequence[Sequence[bytes | None]]) -> ShardWritten:
    """Write the only file of a shard, whole."""
    short = job.layout.events_per_shard - len(events)
    tiles = [tile for event in events for tile in event]
    parts = shard_parts([*tiles, *[None] * (short * job.layout.tiles_per_event)])
    folder = f"{job.group}/frames" if job.group else "frames"
    path = f"{folder}/{job.layout.shard_key(job.shard)}"
    store = Path(job.store)
    with output_errors(store):
        write_file(store / path, *parts, below=store)
    return ShardWritten(
        path=path,
        sha256=_sha256(parts) if job.hashed else "",
        holes=tuple(
            position
            for position, event in zip(job.events, events, strict=True)
            if any(tile is None for tile in event)
        ),
    )


def _sha256(parts: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
