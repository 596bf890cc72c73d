"""Run stores and other people's Zarr, read where they lie."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError, SfxReduceError, VerificationError
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.chunks.pieces import frame_pieces, tile_pieces, whole_tiles
from sfxreduce.io.chunks.shards import TileCodec
from sfxreduce.io.chunks.size_limits import MOST_CHUNK_BYTES, MOST_RATIO, SPARED_BYTES
from sfxreduce.io.files.durable import disk_bytes
from sfxreduce.io.readers.zarr.foreign import read_foreign
from sfxreduce.io.readers.zarr.own_tiles import events_in_shards, read_pieces, read_whole_tiles
from sfxreduce.io.store.guard import GuardedStore, check_tree
from sfxreduce.io.store.manifest import Manifest, manifest_from_json
from sfxreduce.io.store.metadata import ZARR_ERRORS, Store, open_store
from sfxreduce.io.store.schema import MANIFEST_GROUP, SCHEMA
from sfxreduce.run.columns import event_columns, plain_text
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Run
from sfxreduce.run.source import Reading
from sfxreduce.run.window import Window

__all__ = ["ZarrFrames", "open_table", "open_zarr", "read_manifest"]

DEFAULT_EVENTS_PER_BLOCK = 32


def open_zarr(path: Path) -> Run:
    """Open a run store, or any Zarr group with an array ``frames`` (event, [panel,] y, x).

    Raises
    ------
    RunNotFound
        If the path does not exist.
    SchemaError
        If there are no frames in it, or it was written by a newer version.
    """
    store = open_store(str(path))
    columns = _columns(path, store).merge(event_columns(store.n_events), compat="override")
    truth = open_table(path, "truth") if os.path.lexists(path / "truth" / "zarr.json") else None
    return Run(
        source=ZarrFrames(path=str(path)),
        columns=columns,
        truth=truth if truth is not None and "event" in truth.dims else None,
        experiment=str(store.attributes.get("experiment", "")),
        name=str(store.attributes.get("run", plain_text(path.stem))),
        provenance=str(store.attributes.get("provenance", "")),
        events_per_block=_events_per_block(store),
    )


def open_table(path: Path, group: str = "") -> xr.Dataset:
    """Columns of a group as they are stored: nothing decoded, nothing scaled, nothing lazy.

    Raises
    ------
    SchemaError
        If the group is not there or cannot be read.
    """
    where = f"{path}/{group}" if group else str(path)
    store = GuardedStore(path)
    try:
        # What is wrong with a damaged store is raised or found missing, not left to warnings.
        with (
            warnings.catch_warnings(action="ignore"),
            xr.open_zarr(
                store, group=group or None, consolidated=False, decode_cf=False, chunks=None
            ) as table,
        ):
            wanted = table.drop_vars(["frames", "mask"], errors="ignore")
            _check_table(wanted, path, where)
            loaded: xr.Dataset = wanted.load()
    except ZARR_ERRORS as error:
        raise SchemaError(f"{where}: its columns cannot be read ({error})") from error
    return loaded


def _check_table(table: xr.Dataset, path: Path, where: str) -> None:
    """Refuse columns that together are far larger than what is stored."""
    if table.nbytes > SPARED_BYTES and table.nbytes > MOST_RATIO * disk_bytes(path):
        raise SchemaError(
            f"{where}: its columns declare {table.nbytes} bytes, more than {MOST_RATIO} times what "
            "is stored; fetch the store again"
        )


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
    """Frames in a Zarr group. Holds its path only; each process opens the store for itself."""

    path: str

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
    def n_bytes(self) -> int:
        """Bytes of all files of the store."""
        return disk_bytes(Path(self.path))

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The store."""
        return (Path(self.path),)

    @property
    def _store(self) -> Store:
        return open_store(self.path)

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events whole, or only the tiles under a window. See `FrameSource.read`."""
        store = self._store
        shape = store.detector.frame_shape if window is None else window.shape
        pixels = np.zeros((len(events), *shape), store.dtype)
        return Reading(pixels=pixels, reasons=self.read_into(events, window, pixels))

    def read_into(
        self, events: Sequence[int], window: Window | None, pixels: NDArray[np.generic]
    ) -> NDArray[np.uint32]:
        """Read events into an array of zeros. See `sfxreduce.run.source.ReadsInto`."""
        store = self._store
        reasons = np.zeros(len(events), np.uint32)
        if store.layout is None:
            read_foreign(self.path, events, window, Reading(pixels=pixels, reasons=reasons))
            return reasons
        layout = store.layout
        pieces = (
            frame_pieces(layout)
            if window is None
            else tile_pieces(layout.frame_shape, layout.chunks[1:], store.detector, window)
        )
        codec = TileCodec(dtype=store.dtype, tile=layout.tile, packing=layout.packing)
        stored = events_in_shards(self.path, layout, events)
        places = whole_tiles(pieces, layout.tile, pixels.shape[1:])
        if places is not None and pixels.flags.c_contiguous:
            read_whole_tiles(stored, codec, (pieces, places), pixels, reasons)
        else:
            read_pieces(stored, codec, pieces, pixels, reasons)
        return reasons

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
        for event in events_in_shards(self.path, layout, events):
            yield [event.checked_tile(tile) for tile in range(layout.tiles_per_event)]


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


def _columns(path: Path, store: Store) -> xr.Dataset:
    """Per-event columns that fit the frames; columns of foreign stores mean we know not what."""
    if store.attributes.get("schema") != SCHEMA:
        return xr.Dataset()
    table = open_table(path)
    return table[[name for name in table if table[name].dims == ("event",)]]
