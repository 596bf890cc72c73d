"""Run stores: Zarr v3, sharded frames, a checksum on everything stored.

Metadata and columns go through the zarr library. Shards of frames are assembled as bytes, because
hits move encoded from one store to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from sfxreduce.errors import SchemaError
from sfxreduce.io.layout import Layout
from sfxreduce.io.publish import output_errors, write_file
from sfxreduce.io.schema import SCHEMA, SCHEMA_VERSION, detector_to_json, illegal_value
from sfxreduce.io.shards import TileCodec, pack_shard
from sfxreduce.run import Run

__all__ = ["create_store", "encode_event", "write_shard", "write_table"]

ROWS_PER_CHUNK = 65_536


def create_store(
    path: Path, *, run: Run, n_events: int, layout: Layout, columns: xr.Dataset
) -> None:
    """Write all of a run store but its frames: metadata, columns, mask, geometry, truth.

    Parameters
    ----------
    path : Path
        Must not exist.
    run : Run
        Whose detector, names and dtype the store takes over; its truth too if the events are the
        same.
    n_events : int
    layout : Layout
    columns : Dataset
        Per-event columns on dimension ``event``, of length `n_events`.

    Raises
    ------
    OutputError
        If the disk is full or the path cannot be written.
    """
    dtype = np.dtype(run.source.dtype)
    codec = TileCodec(dtype=dtype, tile=layout.tile)
    serializer, compressors = codec.zarr_codecs()
    with output_errors(path):
        root = zarr.create_group(
            str(path),
            attributes={
                "schema": SCHEMA,
                "schema_version": SCHEMA_VERSION,
                "experiment": run.experiment,
                "run": run.name,
                "provenance": run.provenance,
                "detector": detector_to_json(run.detector),
            },
        )
        root.create_array(
            "frames",
            shape=(n_events, *layout.frame_shape),
            dtype=dtype,
            chunks=layout.chunks,
            shards=layout.shards,
            serializer=serializer,
            compressors=compressors,
            fill_value=illegal_value(dtype),
            dimension_names=("event", *run.detector.frame_dims),
            attributes={"long_name": "detector frames", "units": "ADU"},
            config={"write_empty_chunks": True},
        )
        mask = xr.DataArray(
            run.detector.mask,
            dims=run.detector.frame_dims,
            attrs={"long_name": "pixel mask, zero is good", "units": "1"},
        )
        _write_array(root, "mask", mask)
        _write_columns(root, columns)
        if run.truth is not None and n_events == run.n_events:
            write_table(path, "truth", run.truth)


def write_table(
    path: Path, group: str, table: xr.Dataset, *, attributes: Mapping[str, Any] | None = None
) -> None:
    """Write a dataset as one more group of a store.

    Parameters
    ----------
    path : Path
        Of the store.
    group : str
    table : Dataset
        Numbers and text.
    attributes : mapping, optional
        JSON attributes of the group besides the dataset's own.
    """
    with output_errors(path):
        root = zarr.open_group(str(path), mode="r+", zarr_format=3)
        child = root.create_group(group, attributes={**table.attrs, **(attributes or {})})
        _write_columns(child, table)


def encode_event(
    frame: NDArray[np.generic], *, layout: Layout, codec: TileCodec
) -> list[bytes | None]:
    """Encode one whole frame, tile by tile in grid order."""
    return [codec.encode(frame[layout.tile_slices(tile)]) for tile in range(layout.tiles_per_event)]


def write_shard(
    path: Path, *, shard: int, layout: Layout, events: Sequence[Sequence[bytes | None]]
) -> None:
    """Write one whole shard of ``frames`` from the encoded tiles of its events.

    One task writes one whole shard: two tasks writing parts of one would corrupt it silently.

    Parameters
    ----------
    path : Path
        Of the store.
    shard : int
        Its number.
    layout : Layout
    events : sequence of sequence of bytes
        Encoded tiles in grid order, None where a tile is absent; fewer events than the shard holds
        only in the run's last shard.

    Raises
    ------
    OutputError
        If the disk is full or the path cannot be written.
    """
    short = layout.events_per_shard - len(events)
    if short < 0:
        raise SchemaError(
            f"{path}: shard {shard} holds {layout.events_per_shard} events, not {len(events)}"
        )
    tiles = [tile for event in events for tile in event]
    tiles += [None] * (short * layout.tiles_per_event)
    with output_errors(path):
        write_file(path / "frames" / layout.shard_key(shard), pack_shard(tiles))


def _write_columns(group: zarr.Group, table: xr.Dataset) -> None:
    for name, column in table.variables.items():
        _write_array(group, str(name), xr.DataArray(column))


def _write_array(group: zarr.Group, name: str, column: xr.DataArray) -> None:
    """Write one column with named dimensions and a crc32c on every chunk."""
    is_text = column.dtype.kind in "OUST"
    rows = max(min(column.sizes[column.dims[0]], ROWS_PER_CHUNK), 1) if column.ndim else None
    array = group.create_array(
        name,
        shape=column.shape,
        dtype=str if is_text else column.dtype,
        chunks=(rows, *(max(n, 1) for n in column.shape[1:])) if rows else "auto",
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        dimension_names=[str(dim) for dim in column.dims],
        attributes=dict(column.attrs),
        config={"write_empty_chunks": True},
    )
    array[...] = column.values.astype(object) if is_text else column.values
