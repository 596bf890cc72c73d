"""One task, one whole shard: its events copied as stored bytes, or read and encoded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import xxhash
from numpy.typing import NDArray

from sfxreduce.errors import RunNotFound, SchemaError, SourceError, VerificationError
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.chunks.pieces import frame_pieces, tile_pieces
from sfxreduce.io.chunks.shards import TileCodec, payload_hash, pixel_hash, shard_parts
from sfxreduce.io.files.durable import output_errors, write_addressed, write_file
from sfxreduce.run.run import FrameSource, Reading
from sfxreduce.run.window import Window

__all__ = [
    "MissingPanels",
    "Scored",
    "ShardJob",
    "ShardWritten",
    "TiledSource",
    "copy_shard",
    "encode_events",
    "encode_shard",
    "marked_in",
    "unread_panels",
]

READ_BYTES = 64_000_000
"""Frames that are in memory at a time; one at least."""

HOLED = ".holed"
"""Ending of a shard's name, before it is given its place, if not all of it could be read."""

MissingPanels: TypeAlias = dict[int, list[int]]
"""Panels that are not whole, by the source position of their event."""


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


@runtime_checkable
class ReadsTwice(Protocol):
    """A source of tiles some of which have to be read as frames, and encoded, first."""

    def encoded_twice(
        self, events: Sequence[int], unstable: list[int], missing: MissingPanels
    ) -> Iterator[list[bytes | None]]:
        """Tiles of events; those of frames that came out differently when read again are added, and
        the panels that are missing of events although their tiles are there.
        """
        ...


@runtime_checkable
class MarksMissing(Protocol):
    """A source of tiles that are there although pixels are missing of their panel."""

    def missing_panels(self, event: int) -> NDArray[np.bool_]:
        """Panels of an event that are not whole, shape (panel,)."""
        ...


def marked_in(source: object, events: Iterable[int]) -> MissingPanels:
    """Panels that a source marks as missing of some events."""
    if not isinstance(source, MarksMissing):
        return {}
    found = {event: np.flatnonzero(source.missing_panels(event)).tolist() for event in events}
    return {event: panels for event, panels in found.items() if panels}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """What the scores of some events rest on, so that no other pixels are kept for them.

    Parameters
    ----------
    window : Window or None
        Of the scorer; None for whole frames.
    tiles : ndarray of uint16
        Tiles of the window that were read, the first ones, shape (event,).
    seen : ndarray of uint64
        `sfxreduce.io.chunks.shards.pixel_hash` of their pixels, shape (event,); 0 where that is not
        known.
    """

    window: Window | None
    tiles: NDArray[np.uint16]
    seen: NDArray[np.uint64]

    def of(self, events: Sequence[int]) -> Scored:
        """The same of some events, by their positions in this one."""
        index = list(events)
        return replace(self, tiles=self.tiles[index], seen=self.seen[index])

    def window_of(self, event: int) -> Window | None:
        """The part of the window that was read of an event."""
        return None if self.window is None else self.window.part(slice(0, int(self.tiles[event])))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """One shard to be read from a source, encoded and written.

    Parameters
    ----------
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
    addressed : bool
        Write it under a name that tells its content, to be given its place in the store later.
    scored : Scored, optional
        What the scores of these events rest on.
    """

    source: FrameSource
    store: str
    layout: Layout
    shard: int
    events: tuple[int, ...]
    group: str = ""
    addressed: bool = False
    scored: Scored | None = field(default=None, compare=False)

    @property
    def path(self) -> str:
        """Place of the shard in a store, relative to it."""
        folder = f"{self.group}/frames" if self.group else "frames"
        return f"{folder}/{self.layout.shard_key(self.shard)}"

    @property
    def event_list(self) -> str:
        """Hash of the events it is made of, XXH3 of 128 bits in hexadecimal."""
        return xxhash.xxh3_128_hexdigest(np.array(self.events, "<i8").tobytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWritten:
    """What a task wrote.

    Parameters
    ----------
    path : str
        Place of the shard in the store, relative to it.
    written : str
        Where it was written: the same, or a name that tells its content.
    digest : str
        XXH3 of its bytes, 128 bits, in hexadecimal.
    size : int
        In bytes.
    holes : tuple of int
        Source positions of the events of which not every pixel could be read.
    payloads : tuple of str
        For each event, in order, `payload_hash` of its tiles.
    event_list : str
        `ShardJob.event_list`: a shard of the same place may hold other events.
    unstable : tuple of int
        Source positions of the events that came out differently when they were read again.
    changed : tuple of int
        Source positions of the events whose pixels are not those that were scored.
    missing : tuple of tuple of int
        For each of `holes`, its position and the panels of which not every pixel could be read.
    """

    path: str
    written: str
    digest: str
    size: int
    event_list: str
    holes: tuple[int, ...]
    payloads: tuple[str, ...]
    unstable: tuple[int, ...] = ()
    missing: tuple[tuple[int, ...], ...] = ()
    changed: tuple[int, ...] = ()


def encode_shard(job: ShardJob) -> ShardWritten:
    """Read and encode the events of one shard, and write it.

    Raises
    ------
    OutputError
        If the disk is full or the path cannot be written.
    """
    unstable: list[int] = []
    # What a conversion takes over can be compared with its source later; a hit's may be gone.
    twice = unstable if job.addressed else None
    missing: MissingPanels = {}
    encoded = encode_events(job.source, job.layout, job.events, unstable=twice, missing=missing)
    return _write(job, list(encoded), missing, unstable=unstable)


def encode_events(
    source: FrameSource,
    layout: Layout,
    events: Sequence[int],
    *,
    unstable: list[int] | None = None,
    missing: MissingPanels,
) -> Iterator[list[bytes | None]]:
    """Read and encode events: their tiles in grid order, as `TiledSource.encoded`.

    Few frames are in memory at a time. An event that cannot be read becomes a hole, never zeros.
    One of which some panels can be read is encoded whole; what stands in the others, the source
    says.

    Parameters
    ----------
    events : sequence of int
        Positions in the source.
    unstable : list of int, optional
        If given, events are read twice, and those that came out differently are added to it.
    missing : mapping
        Panels that are missing of events are added to it.
    """
    dtype = np.dtype(source.dtype)
    codec = TileCodec(dtype=dtype, tile=layout.tile, packing=layout.packing)
    # Neighbours together: a source may have to open a file, or to unpack a chunk of several events.
    step = max(1, READ_BYTES // (math.prod(layout.frame_shape) * dtype.itemsize))
    parts = [layout.tile_slices(tile) for tile in range(layout.tiles_per_event)]
    for start in range(0, len(events), step):
        chosen = events[start : start + step]
        reading = source.read(chosen)
        if unstable is not None:
            unstable += _read_differently(source, chosen, reading)
        for place, pixels in reading.missing.items():
            panels = pixels.reshape(_n_panels(layout), -1).any(axis=1)
            missing[chosen[place]] = np.flatnonzero(panels).tolist()
        for frame, lost in zip(reading.pixels, reading.lost, strict=True):
            yield [None if lost else codec.encode(frame[part]) for part in parts]


def _read_differently(source: FrameSource, events: Sequence[int], before: Reading) -> list[int]:
    """Events that come out differently when they are read again.

    Most sources have no checksum: what a disk or a network garbles now and then is seen in no
    other way.
    """
    again = source.read(events)
    return [
        event
        for event, one, two, reasons in zip(
            events, before.pixels, again.pixels, before.reasons | again.reasons, strict=True
        )
        if not reasons and one.tobytes() != two.tobytes()
    ]


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
    unstable: list[int] = []
    missing: MissingPanels = {}
    if isinstance(job.source, ReadsTwice):
        tiles = job.source.encoded_twice(job.events, unstable, missing)
    else:
        tiles = job.source.encoded(job.events)
        missing = marked_in(job.source, job.events)
    return _write(job, list(tiles), missing, unstable=unstable)


def unread_panels(job: ShardJob, event: int, *, copies: bool) -> list[int]:
    """Panels of an event of which not every pixel can be read by this process, now.

    Parameters
    ----------
    copies : bool
        Whether stored tiles would be copied.
    """
    missing: MissingPanels = {}
    try:
        if copies and isinstance(job.source, TiledSource):
            [tiles] = job.source.encoded([event])
            missing = marked_in(job.source, [event])
        else:
            [tiles] = encode_events(job.source, job.layout, [event], missing=missing)
    except (RunNotFound, SchemaError, SourceError):
        return list(range(_n_panels(job.layout)))
    return sorted({*missing.get(event, ()), *_absent(job.layout, tiles)})


def _absent(layout: Layout, tiles: Sequence[bytes | None]) -> set[int]:
    """Panels of which a tile is missing."""
    tiles_per_panel = layout.tiles_per_event // _n_panels(layout)
    return {tile // tiles_per_panel for tile, held in enumerate(tiles) if held is None}


def _n_panels(layout: Layout) -> int:
    return math.prod(layout.frame_shape[:-2])


def _write(
    job: ShardJob,
    events: Sequence[Sequence[bytes | None]],
    missing: MissingPanels,
    *,
    unstable: Sequence[int] = (),
) -> ShardWritten:
    """Write the only file of a shard, whole."""
    for position, event in zip(job.events, events, strict=True):
        if absent := _absent(job.layout, event):
            missing[position] = sorted(absent.union(missing.get(position, ())))
    short = job.layout.events_per_shard - len(events)
    tiles = [tile for event in events for tile in event]
    parts = shard_parts([*tiles, *[None] * (short * job.layout.tiles_per_event)])
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return ShardWritten(
        path=job.path,
        written=_put(job, digest.hexdigest(), parts, is_whole=not missing),
        digest=digest.hexdigest(),
        size=sum(map(len, parts)),
        event_list=job.event_list,
        holes=tuple(position for position in job.events if position in missing),
        payloads=tuple(map(payload_hash, events)),
        unstable=tuple(unstable),
        missing=tuple((p, *missing[p]) for p in job.events if p in missing),
        changed=tuple(_changed(job, events)),
    )


def _changed(job: ShardJob, events: Sequence[Sequence[bytes | None]]) -> Iterator[int]:
    """Events of which other pixels were scored than their tiles hold; holes are none of them."""
    if job.scored is None:
        return
    dtype = np.dtype(job.source.dtype)
    codec = TileCodec(dtype=dtype, tile=job.layout.tile, packing=job.layout.packing)
    for place, (position, tiles) in enumerate(zip(job.events, events, strict=True)):
        if not job.scored.seen[place]:
            continue
        window = job.scored.window_of(place)
        if window is None:
            pieces = frame_pieces(job.layout)
        else:
            shape, chunk = job.layout.frame_shape, job.layout.chunks[1:]
            pieces = tile_pieces(shape, chunk, job.source.detector, window)
        pixels = np.zeros(job.layout.frame_shape if window is None else window.shape, dtype)
        stored = [(piece, tiles[piece.tile]) for piece in pieces]
        if any(tile is None for _, tile in stored):
            continue
        for piece, tile in stored:
            piece.put(codec.decode(tile or b"", piece.spans), pixels)
        if pixel_hash(pixels) != job.scored.seen[place]:
            yield position


def _put(job: ShardJob, digest: str, parts: Sequence[bytes], *, is_whole: bool) -> str:
    """Bring a shard to the disk, and return where it lies below the job's folder."""
    store = Path(job.store)
    with output_errors(store):
        if not job.addressed:
            write_file(store / job.path, *parts, below=store)
            return job.path
        folder = store / f"{job.group or 'frames'}.{job.shard}"
        # One with holes may be the work of a worker that is not believed; then it is no other.
        name = digest if is_whole else f"{digest}{HOLED}"
        write_addressed(folder, name, *parts)
        others = [other.name for other in folder.iterdir() if len(other.name) == len(digest)]
    if len(others) > 1:
        raise VerificationError(
            f"{folder}: shard {job.shard} was written twice and came out differently; all of them "
            "are left there, check this machine's memory and the source's disk"
        )
    return f"{folder.name}/{name}"
