"""One task, one whole shard: its events copied as stored bytes, or read and encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfxreduce.errors import SchemaError
from sfxreduce.io.files import output_errors, write_file
from sfxreduce.io.layout import Layout
from sfxreduce.io.readers.zarr import ZarrFrames
from sfxreduce.io.shards import TileCodec, pack_shard
from sfxreduce.run import FrameSource

__all__ = ["ShardJob", "ShardWritten", "copy_shard", "encode_shard"]


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
    """

    source: FrameSource
    store: str
    layout: Layout
    shard: int
    events: tuple[int, ...]
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWritten:
    """What a task wrote.

    Parameters
    ----------
    path : str
        Of the file, relative to the store.
    sha256 : str
        Of the bytes that were to be written.
    holes : tuple of int
        Source positions of the events of which not every pixel could be read.
    """

    path: str
    sha256: str
    holes: tuple[int, ...]


def encode_shard(job: ShardJob) -> ShardWritten:
    """Read and encode the events of one shard, and write it.

    One frame is in memory at a time. An event that cannot be read becomes a hole, never zeros.

    Raises
    ------
    OutputError
        If the disk is full or the path cannot be written.
    """
    layout = job.layout
    codec = TileCodec(dtype=np.dtype(job.source.dtype), tile=layout.tile)
    events: list[list[bytes | None]] = []
    for event in job.events:
        reading = job.source.read([event])
        frame = None if reading.reasons[0] else reading.pixels[0]
        events.append(
            [
                None if frame is None else codec.encode(frame[layout.tile_slices(tile)])
                for tile in range(layout.tiles_per_event)
            ]
        )
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
    if not isinstance(job.source, ZarrFrames) or job.source.layout != job.layout:
        raise SchemaError(
            f"{job.source.path}: its tiles do not fit the output; encode them instead"
        )
    return _write(job, list(job.source.encoded(job.events)))


def _write(job: ShardJob, events: Sequence[Sequence[bytes | None]]) -> ShardWritten:
    """Write the only file of a shard, whole."""
    short = job.layout.events_per_shard - len(events)
    tiles = [tile for event in events for tile in event]
    data = pack_shard([*tiles, *[None] * (short * job.layout.tiles_per_event)])
    folder = f"{job.group}/frames" if job.group else "frames"
    path = f"{folder}/{job.layout.shard_key(job.shard)}"
    store = Path(job.store)
    with output_errors(store):
        write_file(store / path, data, below=store)
    return ShardWritten(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        holes=tuple(
            position
            for position, event in zip(job.events, events, strict=True)
            if any(tile is None for tile in event)
        ),
    )
