"""Run stores and other people's Zarr, read in place; of our own, tiles into arrays."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from sfxreduce.errors import (
    SchemaError,
    SfxReduceError,
    SourceError,
    UsageError,
    VerificationError,
)
from sfxreduce.io.chunks.decode import can_unpack_many, unpack_parts
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.chunks.limits import MOST_CHUNK_BYTES, MOST_RATIO, SPARED_BYTES
from sfxreduce.io.chunks.pieces import TilePiece, frame_pieces, tile_pieces, whole_tiles
from sfxreduce.io.chunks.shards import ShardFile, TileCodec, are_sound, check_crc
from sfxreduce.io.files.durable import disk_bytes
from sfxreduce.io.readers.zarr.foreign import foreign_share, read_foreign, read_foreign_parts
from sfxreduce.io.store.guard import GuardedStore, check_tree
from sfxreduce.io.store.manifest import Manifest, manifest_from_json
from sfxreduce.io.store.metadata import (
    ZARR_ERRORS,
    Store,
    illegal_value,
    open_store,
    pixels_missing,
)
from sfxreduce.io.store.names import AUDIT_DIM, LEDGER_GROUP, MANIFEST_GROUP, SCHEMA
from sfxreduce.run.columns import Table, Values, event_table, plain_text
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import UNREAD, Reason
from sfxreduce.run.run import NO_LEDGER, Reading, Run, Sampled
from sfxreduce.run.window import Window

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "StoredEvent",
    "ZarrFrames",
    "count_incomplete",
    "events_in_shards",
    "open_lazily",
    "open_table",
    "open_zarr",
    "read_manifest",
    "read_pieces",
    "read_table",
    "read_whole_tiles",
]

DEFAULT_EVENTS_PER_BLOCK = 32

NO_COLUMNS = ("frames", "mask")
"""Arrays of a run store that are read by other ways."""


def open_zarr(path: Path, *, data_path: str = "", lazily: bool = False) -> Run:
    """Open a run store, or any Zarr array of frames (event, [panel,] y, x).

    Parameters
    ----------
    data_path : str
        Of the array in a group; by default ``frames``, or the store itself if that is an array.
    lazily : bool
        Whether to read what is known of the truth only when it is used.

    Raises
    ------
    RunNotFound
        If the path does not exist.
    SchemaError
        If there are no frames in it, or it was written by a newer version.
    """
    store = open_store(str(path), data_path)
    has_truth = os.path.lexists(path / "truth" / "zarr.json")
    read = open_lazily if lazily else read_table
    truth = read(path, "truth") if has_truth else None
    return Run(
        source=ZarrFrames(path=str(path), data_path=data_path),
        columns=_columns(path, store),
        truth=truth if truth is not None and "event" in truth.sizes else None,
        experiment=str(store.attributes.get("experiment", "")),
        name=str(store.attributes.get("run", plain_text(path.stem))),
        provenance=str(store.attributes.get("provenance", "")),
        events_per_block=_events_per_block(store),
    )


def open_table(path: Path, group: str = "") -> xr.Dataset:
    """Columns of a group as they are stored: nothing decoded, nothing scaled.

    Raises
    ------
    SchemaError
        If the group is not there or cannot be read.
    """
    return read_table(path, group).dataset()


def read_table(path: Path, group: str = "") -> Table:
    """Columns of a group as `open_table` gives them, of which no Dataset is made yet.

    Raises
    ------
    SchemaError
        If the group is not there or cannot be read.
    """
    where = f"{path}/{group}" if group else str(path)
    try:
        # What is wrong with a damaged store is raised or found missing, not left to warnings.
        with warnings.catch_warnings(action="ignore"):
            stored = zarr.open_group(
                GuardedStore(path), path=group or None, mode="r", use_consolidated=False
            )
            arrays = {name: array for name, array in stored.arrays() if name not in NO_COLUMNS}
            _check_size(sum(array.nbytes for array in arrays.values()), path, where)
            columns = {name: _values(arrays[name]) for name in sorted(arrays)}
            return Table(variables=columns, attrs=dict(stored.attrs))
    except ZARR_ERRORS as error:
        raise SchemaError(f"{where}: its columns cannot be read ({error})") from error


def _values(array: zarr.Array[Any]) -> Values:
    """One stored column."""
    named = [dim for dim in getattr(array.metadata, "dimension_names", None) or () if dim]
    if len(named) != array.ndim:
        raise ValueError(f"{array.path}: expected the names of {array.ndim} axes, found {named}")
    return Values(
        # The sample of rejects in an output is a run store as well.
        dims=tuple("event" if dim == AUDIT_DIM else dim for dim in named),
        values=np.asarray(array[...]),
        attrs=dict(array.attrs),
    )


def open_lazily(path: Path, group: str) -> xr.Dataset:
    """Columns of a group as `open_table` gives them, each read when it is used.

    Raises
    ------
    SchemaError
        If the group is not there, or what it declares is not believed.
    """
    import xarray as xr  # 0.5 s, for runs in an object store, whose truth may not be wanted

    where = f"{path}/{group}"
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            xr.open_zarr(
                GuardedStore(path), group=group, consolidated=False, decode_cf=False, chunks=None
            ) as found,
        ):
            table: xr.Dataset = found
            _check_size(table.nbytes, path, where)
    except ZARR_ERRORS as error:
        raise SchemaError(f"{where}: its columns cannot be read ({error})") from error
    return table.rename({AUDIT_DIM: "event"}) if AUDIT_DIM in table.dims else table


def _check_size(n_bytes: int, path: Path, where: str) -> None:
    """Refuse columns that declare far more than what is stored."""
    if n_bytes > SPARED_BYTES and n_bytes > MOST_RATIO * disk_bytes(path):
        raise SchemaError(
            f"{where}: its columns declare {n_bytes} bytes, more than {MOST_RATIO} times what is "
            "stored; fetch the store again"
        )


def count_incomplete(path: Path) -> tuple[int, int]:
    """Count the events of a store that have no pixels at all, and those that lack some of them.

    Only the indexes of its shards are read; events of a shard whose index is damaged have none.

    Raises
    ------
    SfxReduceError
        If it is no run store.
    """
    store = open_store(str(path))
    marked = np.asarray(store.missing.any(axis=1))
    if store.layout is None:
        return 0, int(marked.sum())
    layout, lost, holed = store.layout, 0, 0
    for number in range(layout.n_shards(store.n_events)):
        start = number * layout.events_per_shard
        here = marked[start : start + layout.events_per_shard]
        there = np.zeros((layout.events_per_shard, layout.tiles_per_event), np.bool_)
        file = path / "frames" / layout.shard_key(number)
        with suppress(SourceError), ShardFile(file, n_tiles=there.size) as shard:
            there = shard.holds(np.arange(there.size)).reshape(there.shape)
        there = there[: here.size]
        lost += int((~there.any(axis=1)).sum())
        holed += int((there.any(axis=1) & (here | ~there.all(axis=1))).sum())
    return lost, holed


def _numbered(what: str, first: int, total: int, how: str) -> str:
    """Say of the last of some numbered things what they are."""
    if first == total - 1:
        return f"{what} {first} of {total} is {how}"
    return f"{what}s {first} to {total - 1} of {total} are {how}"


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a reduced store; without it the store does not count as written.

    Raises
    ------
    VerificationError
        If it is missing, damaged or was changed.
    """
    try:
        check_tree(path)
        store = GuardedStore(path)
        group = zarr.open_group(store, path=MANIFEST_GROUP, mode="r", use_consolidated=False)
        facts = dict(group.attrs)
    except SfxReduceError as error:
        raise VerificationError(f"{error}; the output is not to be trusted") from error
    except ZARR_ERRORS as error:
        raise VerificationError(
            f"{path}: expected a manifest, found none; the output is incomplete or was not made by "
            "'sfxreduce filter'"
        ) from error
    return manifest_from_json(facts, where=str(path))


@dataclass(frozen=True, slots=True)
class ZarrFrames:
    """Frames in a Zarr store. Holds paths only; each process opens the store for itself.

    Parameters
    ----------
    data_path : str
        See `open_zarr`.
    """

    path: str
    data_path: str = ""

    @property
    def n_events(self) -> int:
        """Number of events."""
        return self._store.n_events

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of a pixel."""
        return self._store.dtype

    @property
    def detector(self) -> Detector:
        """Geometry and mask."""
        return self._store.detector

    @property
    def layout(self) -> Layout | None:
        """Tile grid; None if the frames are not stored in tiles of our kind."""
        return self._store.layout

    @property
    def is_checked(self) -> bool:
        """Whether its tiles have checksums: ours have, other people's chunks need not."""
        return self.layout is not None

    @property
    def missing_tail(self) -> str:
        """Last shards that are not there. See `sfxreduce.run.run.HasTail`."""
        layout, n_shards = self.layout, 0
        if layout is not None:
            there = n_shards = layout.n_shards(self.n_events)
            frames = self.folder / "frames"
            while there and not (frames / layout.shard_key(there - 1)).exists():
                there -= 1
            if 0 < there < n_shards:
                return _numbered("shard", there, n_shards, "missing")
        return ""

    @property
    def n_bytes(self) -> int:
        """Bytes of all files of the store."""
        return disk_bytes(self.folder)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The store."""
        return (self.folder,)

    @property
    def folder(self) -> Path:
        """Where the store is read."""
        return Path(self.path)

    @property
    def _store(self) -> Store:
        return open_store(str(self.folder), self.data_path)

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events whole, or only the tiles under a window. See `FrameSource.read`."""
        store = self._store
        shape = store.detector.frame_shape if window is None else window.shape
        pixels = np.zeros((len(events), *shape), store.dtype)
        reasons = self.read_into(events, window, pixels)
        missing: dict[int, NDArray[np.bool_]] = {}
        if window is None:
            for place in np.flatnonzero(reasons).tolist():
                lost = self._read_parts(store, events[place], pixels[place])
                if lost is not None:
                    missing[place] = lost
        return Reading(pixels=pixels, reasons=reasons, missing=missing)

    def _read_parts(
        self, store: Store, event: int, frame: NDArray[np.generic]
    ) -> NDArray[np.bool_] | None:
        """Read the tiles of an event that are there; which pixels are missing, None if all are."""
        if store.layout is None:
            lost = read_foreign_parts(store, event, frame)
        else:
            lost = _read_tile_by_tile(store, store.layout, next(self.encoded([event])), frame)
        lost |= pixels_missing(frame, store.missing[event], fill=store.fill)
        return None if lost.all() else lost

    def ledger(self) -> xr.Dataset:
        """Read the ledger of a reduced store. See `sfxreduce.run.run.Run.ledger`."""
        if not os.path.lexists(self.folder / LEDGER_GROUP):
            raise UsageError(f"{self.path}: {NO_LEDGER}")
        return open_table(self.folder, LEDGER_GROUP)

    @property
    def fill(self) -> float:
        """See `sfxreduce.run.run.DeclaresMissing`."""
        return self._store.fill

    @property
    def lacking(self) -> NDArray[np.bool_]:
        """Nothing: what every event lacked when the store was made is in its mask."""
        return np.zeros(self.detector.frame_shape, np.bool_)

    def missing_panels(self, event: int) -> NDArray[np.bool_]:
        """Panels of an event that are marked as missing, shape (panel,)."""
        marked: NDArray[np.bool_] = self._store.missing[event]
        return marked

    def read_into(
        self, events: Sequence[int], window: Window | None, pixels: NDArray[np.generic]
    ) -> NDArray[np.uint32]:
        """Read events into an array of zeros. See `sfxreduce.run.run.ReadsInto`."""
        store = self._store
        reasons = np.zeros(len(events), np.uint32)
        if store.layout is None:
            read_foreign(store, events, window, Reading(pixels=pixels, reasons=reasons))
        else:
            self._read_tiles(store, store.layout, events, window, pixels, reasons)
        return reasons | _declared_missing(store, events)

    @property
    def events_per_chunk(self) -> int:
        """See `sfxreduce.run.run.ReadsPartly`."""
        return int(self._store.array.chunks[0])

    def decoded_share(self, window: Window) -> float:
        """See `sfxreduce.run.run.ReadsPartly`."""
        store = self._store
        layout = store.layout
        if layout is None:
            return foreign_share(store, window)
        pieces = tile_pieces(layout.frame_shape, layout.chunks[1:], store.detector, window)
        return len(pieces) / layout.tiles_per_event

    def _read_tiles(
        self,
        store: Store,
        layout: Layout,
        events: Sequence[int],
        window: Window | None,
        pixels: NDArray[np.generic],
        reasons: NDArray[np.uint32],
    ) -> None:
        pieces = (
            frame_pieces(layout)
            if window is None
            else tile_pieces(layout.frame_shape, layout.chunks[1:], store.detector, window)
        )
        codec = TileCodec(dtype=store.dtype, tile=layout.tile, packing=layout.packing)
        stored = events_in_shards(self.folder, layout, events)
        places = whole_tiles(pieces, layout.tile, pixels.shape[1:])
        if places is not None and pixels.flags.c_contiguous:
            read_whole_tiles(stored, codec, (pieces, places), pixels, reasons)
        else:
            read_pieces(stored, codec, pieces, pixels, reasons)

    def sampled(self, first: Window, window: Window) -> Sampled | None:
        """Pixels that `sample` reads. See `sfxreduce.run.run.Samples`."""
        plan = _plan_of(self._store, first, window)
        return None if plan is None else plan.sampled

    def read_first(
        self,
        events: Sequence[int],
        first: Window,
        window: Window,
        room: NDArray[np.generic],
    ) -> Iterator[Reading]:
        """Read some tiles, and some blocks of the others. See `sfxreduce.run.run.Samples`."""
        store = self._store
        plan = _plan_of(store, first, window)
        if store.layout is None or plan is None:
            raise SchemaError(f"{self.path}: its tiles have no blocks to be read for themselves")
        codec = TileCodec(dtype=store.dtype, tile=store.layout.tile, packing=store.layout.packing)
        fills = plan.places.size > 0 and room.flags.c_contiguous
        stored = events_in_shards(self.folder, store.layout, events)
        for start in range(0, len(events), len(room)):
            part = events[start : start + len(room)]
            pixels = room[: len(part)]
            samples = np.zeros((len(part), plan.sampled.index.size), store.dtype)
            if fills:
                reasons = _declared_missing(store, part)
            else:
                pixels[...] = 0
                reasons = self.read_into(part, first, pixels)
            for place, event in enumerate(islice(stored, len(part))):
                if not event.whole():
                    reasons[place] |= np.uint32(event.reason or Reason.DATA_HOLE)
                elif not plan.read(event, codec, samples[place], pixels[place] if fills else None):
                    reasons[place] |= np.uint32(Reason.READ_ERROR)
                if reasons[place] & np.uint32(UNREAD):
                    pixels[place] = 0
            yield Reading(pixels=samples, reasons=reasons)

    def encoded(self, events: Sequence[int]) -> Iterator[list[bytes | None]]:
        """Stored tiles of events in grid order, each checked; None where absent or damaged.

        Raises
        ------
        SchemaError
            If the frames are not stored in tiles of our kind.
        """
        layout = self.layout
        if layout is None:
            raise SchemaError(f"{self.path}: frames are not stored in tiles that can be copied")
        for event in events_in_shards(self.folder, layout, events):
            yield [event.checked_tile(tile) for tile in range(layout.tiles_per_event)]


def _declared_missing(store: Store, events: Sequence[int]) -> NDArray[np.uint32]:
    """`Reason.DATA_HOLE` for events some of whose panels are marked as missing."""
    marked = store.missing[list(events)].any(axis=1)
    return np.where(marked, np.uint32(Reason.DATA_HOLE), np.uint32(0))


def _read_tile_by_tile(
    store: Store, layout: Layout, encoded: Sequence[bytes | None], frame: NDArray[np.generic]
) -> NDArray[np.bool_]:
    """Read the stored tiles of an event, as far as they are whole; which pixels are missing."""
    codec = TileCodec(dtype=store.dtype, tile=layout.tile, packing=layout.packing)
    lost = np.ones(frame.shape, np.bool_)
    frame[...] = illegal_value(store.dtype)
    for piece in frame_pieces(layout):
        tile = encoded[piece.tile]
        with suppress(SourceError):
            if tile is not None:
                piece.put(codec.decode(tile), frame)
                lost[layout.tile_slices(piece.tile)] = False
    return lost


def _events_per_block(store: Store) -> int:
    """Events that are stored together, so that no task decodes what another one needs."""
    if store.layout is not None:
        return store.layout.events_per_shard
    frame_bytes = math.prod(store.array.shape[1:]) * store.dtype.itemsize
    # A shard may hold any number of events, but a block is read at once.
    together = min(
        int((store.array.shards or store.array.chunks)[0]),
        max(MOST_CHUNK_BYTES // frame_bytes, 1),
    )
    return together if together > 1 else DEFAULT_EVENTS_PER_BLOCK


def _columns(path: Path, store: Store) -> Table:
    """Per-event columns that fit the frames; what columns of third-party stores mean is unknown."""
    usual = event_table(store.n_events)
    if store.attributes.get("schema") != SCHEMA:
        return usual
    table = read_table(path)
    stored = {n: v for n, v in table.variables.items() if v.dims[:1] == ("event",)}
    try:
        # Stored ones are put last: they take the places of those that are marked as missing.
        return Table(variables={**usual.variables, **stored}, attrs=table.attrs)
    except ValueError as error:
        raise SchemaError(
            f"{path}: {store.n_events} frames, but {error}; the store is incomplete, ingest it "
            "again"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredEvent:
    """One event in its open shard; without a shard there is a reason."""

    place: int
    first: int
    n_tiles: int
    shard: ShardFile | None
    reason: Reason

    def whole(self) -> bool:
        """Whether the shard's index lists every tile of the event."""
        tiles = np.arange(self.first, self.first + self.n_tiles)
        return self.shard is not None and bool(self.shard.holds(tiles).all())

    def tile(self, tile: int) -> bytes | None:
        """Stored bytes of a tile; None if it is absent."""
        return self.shard.read(self.first + tile) if self.shard else None

    def checked_tile(self, tile: int) -> bytes | None:
        """Stored bytes of a tile; None if it is absent or damaged."""
        try:
            encoded = self.tile(tile)
            if encoded is not None:
                check_crc(encoded)
        except SourceError:
            return None
        return encoded


def read_pieces(
    stored: Iterable[StoredEvent],
    codec: TileCodec,
    pieces: Sequence[TilePiece],
    pixels: NDArray[np.generic],
    reasons: NDArray[np.uint32],
) -> None:
    """Read what a picture shows of every tile, tile by tile."""
    for event in stored:
        if not event.whole():
            reasons[event.place] = event.reason or Reason.DATA_HOLE
            continue
        try:
            for piece in pieces:
                tile = codec.decode(event.tile(piece.tile) or b"", piece.spans)
                piece.put(tile, pixels[event.place])
        except SourceError:
            reasons[event.place] = Reason.READ_ERROR


def read_whole_tiles(
    stored: Iterable[StoredEvent],
    codec: TileCodec,
    wanted: tuple[Sequence[TilePiece], NDArray[np.int64]],
    pixels: NDArray[np.generic],
    reasons: NDArray[np.uint32],
) -> None:
    """Read tiles right to where they go."""
    pieces, places = wanted
    rows = pixels.reshape(-1, *codec.tile)
    tiles = np.array([piece.tile for piece in pieces])
    for event in stored:
        shard, here = event.shard, event.place
        if shard is None or not event.whole():
            reasons[here] = event.reason or Reason.DATA_HOLE
            continue
        try:
            packed = shard.read_tiles(event.first + tiles)
            into = here * pixels.shape[1] + places
            is_read = bool(codec.decode_many(packed, rows, into).all())
        except SourceError:
            is_read = False
        if not is_read:
            reasons[here], pixels[here] = Reason.READ_ERROR, 0


def events_in_shards(path: Path, layout: Layout, events: Sequence[int]) -> Iterator[StoredEvent]:
    """Events in the order asked for; consecutive ones of one shard share its open file."""
    n_tiles = layout.tiles_per_event
    for number, group in groupby(enumerate(events), key=lambda item: layout.locate(item[1])[0]):
        file = path / "frames" / layout.shard_key(number)
        shard, reason = None, Reason(0)
        try:
            shard = ShardFile(file, n_tiles=n_tiles * layout.events_per_shard)
        except SourceError:
            reason = Reason.READ_ERROR if file.exists() else Reason.DATA_HOLE
        with shard or nullcontext():
            for place, event in group:
                yield StoredEvent(
                    place=place,
                    first=layout.locate(event)[1] * n_tiles,
                    n_tiles=n_tiles,
                    shard=shard,
                    reason=reason,
                )


# Rows between two sampled blocks: every square of 175 pixels that is looked at for itself has some.
_ROWS_APART = 125
_FEWEST_PIXELS = 512  # of such a square, in one block; as `sfxreduce.quality.panels` asks for
_SQUARE = 175


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _SamplePlan:
    """Which stored tiles are looked at, and which blocks of which others stand for the rest.

    Parameters
    ----------
    tiles : ndarray of int64
        Shape (tile,), in grid order: all that are fetched.
    looked_at, sampled_from : ndarray of int64
        Which of them.
    places : ndarray of int64
        Where in the picture of the first tiles each of these goes. None are looked at where that
        picture is not made of whole stored tiles.
    parts : ndarray of int64
        Shape (part, 2): first pixel of each part of a tile, and the one behind its last.
    """

    tiles: NDArray[np.int64]
    looked_at: NDArray[np.int64]
    sampled_from: NDArray[np.int64]
    places: NDArray[np.int64]
    parts: NDArray[np.int64]
    n_bytes: int
    sampled: Sampled

    def read(
        self,
        event: StoredEvent,
        codec: TileCodec,
        samples: NDArray[np.generic],
        pixels: NDArray[np.generic] | None,
    ) -> bool:
        """Read one event; whether its tiles are all there and undamaged.

        Parameters
        ----------
        pixels : ndarray or None
            Where its first tiles go, shape (tile, y, x).
        """
        if event.shard is None:
            return False
        try:
            packed = event.shard.read_tiles(event.first + self.tiles)
        except SourceError:
            return False
        others = packed.take(self.sampled_from)
        if not are_sound(others).all():
            return False
        rows = samples.reshape(len(others), -1).view(np.uint8)
        size = samples.dtype.itemsize
        if not unpack_parts(others, rows, self.parts, n_bytes=self.n_bytes, itemsize=size).all():
            return False
        if pixels is None:
            return True
        seen = packed.take(self.looked_at)
        return bool(codec.decode_many(seen, pixels, self.places).all())


def _plan_of(store: Store, first: Window, window: Window) -> _SamplePlan | None:
    """Plan what is read of a store's tiles; None if they have no blocks, or that does not pay."""
    if store.layout is None:
        return None
    return _sample_plan(store.layout, store.dtype, store.detector, first, window)


@lru_cache(maxsize=8)
def _sample_plan(
    layout: Layout,
    dtype: np.dtype[np.generic],
    detector: Detector,
    first: Window,
    window: Window,
) -> _SamplePlan | None:
    """Plan what is read of tiles that are not looked at; None if that does not pay."""
    rows, columns = layout.tile
    n_pixels = rows * columns
    at_once = layout.packing.blocksize // dtype.itemsize
    n_blocks = at_once and -(-n_pixels // at_once)
    n_parts = max(2, -(-rows // _ROWS_APART))
    is_native = dtype == dtype.newbyteorder("<")
    if n_blocks < 2 * n_parts or at_once // columns * _SQUARE < _FEWEST_PIXELS or not is_native:
        return None
    looked_at = tile_pieces(layout.frame_shape, layout.chunks[1:], detector, first)
    wanted = tile_pieces(layout.frame_shape, layout.chunks[1:], detector, window)
    whole = {piece.tile for piece in looked_at if piece.spans is None}
    others = [piece.tile for piece in wanted if piece.tile not in whole]
    places = whole_tiles(looked_at, layout.tile, first.shape)
    if places is None or len(places) < len(first.origins):
        looked_at, places = (), np.zeros(0, np.int64)
    tiles = np.array(sorted({*others, *(piece.tile for piece in looked_at)}), np.int64)
    last = n_blocks - (1 if n_pixels % at_once == 0 or n_pixels % at_once > at_once // 2 else 2)
    blocks = [(2 * part + 1) * n_blocks // (2 * n_parts) for part in range(n_parts - 1)]
    parts = [(block * at_once, (block + 1) * at_once) for block in blocks]
    parts.append((last * at_once, n_pixels))
    if not others or not can_unpack_many():
        return None
    place = np.concatenate([np.arange(*part) for part in parts])
    index = np.stack([_places_in_frame(layout, tile, place) for tile in others]).ravel()
    shown = np.zeros(detector.mask.size, np.bool_)
    gathered = window.gather(detector)
    shown[gathered[gathered >= 0]] = True
    index[~shown[np.maximum(index, 0)]] = -1
    return _SamplePlan(
        tiles=tiles,
        looked_at=np.searchsorted(tiles, [piece.tile for piece in looked_at]),
        sampled_from=np.searchsorted(tiles, others),
        places=places,
        parts=np.array(parts, np.int64),
        n_bytes=n_pixels * dtype.itemsize,
        sampled=Sampled(index=index),
    )


def _places_in_frame(layout: Layout, tile: int, place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Flat places in a frame of pixels of a tile; -1 beyond the frame's edge."""
    *panel, y, x = layout.tile_slices(tile)
    row, column = np.divmod(place, layout.tile[1])
    assert isinstance(y, slice) and isinstance(x, slice)  # noqa: S101, PT018 - by its contract
    inside = (row < y.stop - y.start) & (column < x.stop - x.start)
    n_y, n_x = layout.frame_shape[-2:]
    flat = (sum(map(int, panel)) * n_y + y.start + row) * n_x + x.start + column  # type: ignore[arg-type]
    return np.where(inside, flat, -1)
