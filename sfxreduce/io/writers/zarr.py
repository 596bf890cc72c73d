"""Run stores: Zarr v3, sharded frames, a checksum on everything stored.

Metadata and columns go through the zarr library. Shards of frames are assembled as bytes, because
hits move encoded from one store to the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.chunks.shards import TileCodec
from sfxreduce.io.files.durable import interrupts_wait, output_errors
from sfxreduce.io.store.manifest import Manifest, manifest_to_json
from sfxreduce.io.store.metadata import detector_to_json, illegal_value
from sfxreduce.io.store.names import MANIFEST_GROUP, PANEL_MISSING, SCHEMA, SCHEMA_VERSION
from sfxreduce.io.writers.shards import ShardWritten
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import DeclaresMissing, FrameSource, Run, WrappedFrames

__all__ = [
    "consolidate",
    "create_store",
    "panels_missing",
    "plain_attributes",
    "write_columns",
    "write_manifest",
    "write_table",
]

ROWS_PER_CHUNK = 65_536


def create_store(
    path: Path,
    *,
    run: Run,
    layout: Layout,
    columns: xr.Dataset,
    truth: xr.Dataset | None,
    event_dim: str = "event",
) -> None:
    """Write all of a run store but its frames: metadata, columns, mask, geometry, truth.

    Parameters
    ----------
    path : Path
        Must not exist.
    run : Run
        Whose detector, names and dtype the store takes over.
    columns : Dataset
        Per-event columns on dimension ``event``, one row for each event of the store.
    truth : Dataset or None
        What is known of these events.
    event_dim : str
        Name of their axis in the store.

    Raises
    ------
    OutputError
        If the disk is full or the path cannot be written.
    """
    renamed = {"event": event_dim}
    columns = columns.rename(renamed)
    dtype = np.dtype(run.source.dtype)
    codec = TileCodec(dtype=dtype, tile=layout.tile, packing=layout.packing)
    serializer, compressors = codec.zarr_codecs()
    with interrupts_wait(), output_errors(path):
        root = zarr.create_group(
            LocalStore(path),
            attributes=_root_attributes(run),
        )
        root.create_array(
            "frames",
            shape=(columns.sizes[event_dim], *layout.frame_shape),
            dtype=dtype,
            chunks=layout.chunks,
            shards=layout.shards,
            serializer=serializer,
            compressors=compressors,
            fill_value=illegal_value(dtype),
            dimension_names=(event_dim, *run.detector.frame_dims),
            attributes={"long_name": "detector frames", "units": "ADU"},
            config={"write_empty_chunks": True},
        )
        _write_array(root, "mask", _mask_column(run.detector))
        _write_columns(root, columns)
        if truth is not None:
            write_table(path, "truth", truth.rename(renamed))


def panels_missing(
    source: FrameSource, shards: Iterable[ShardWritten], events: NDArray[np.int64]
) -> xr.Dataset:
    """Make the column that says which panels of an event are not whole.

    Parameters
    ----------
    source : FrameSource
        Of the frames.
    shards : iterable of ShardWritten
        That hold them.
    events : ndarray of int64
        Their positions in the source, in the order of the store.

    Returns
    -------
    Dataset
        ``panel_missing``, bool, on dimensions ``event`` and ``panel``; without variables if every
        panel of these events is whole.
    """
    missing = {p: panels for shard in shards for p, *panels in shard.missing}
    marked = np.zeros((events.size, len(source.detector.panels)), np.bool_)
    for place, event in enumerate(events.tolist()):
        marked[place, missing.get(event, ())] = True
    if not marked.any():
        return xr.Dataset()
    while isinstance(source, WrappedFrames):
        source = source.source
    attrs: dict[str, Any] = {"long_name": "panels of which pixels could not be read"}
    dtype = np.dtype(source.dtype)
    if dtype.kind in "iu":
        fill = source.fill if isinstance(source, DeclaresMissing) else illegal_value(dtype)
        attrs["fill_value"] = int(fill)
    return xr.Dataset({PANEL_MISSING: (("event", "panel"), marked, attrs)})


def write_columns(path: Path, columns: xr.Dataset) -> None:
    """Write more columns into a store that is there.

    Parameters
    ----------
    path : Path
        Of the store.
    """
    with interrupts_wait(), output_errors(path):
        _write_columns(zarr.open_group(LocalStore(path), mode="r+", zarr_format=3), columns)


def write_table(
    path: Path, group: str, table: xr.Dataset, *, attributes: Mapping[str, Any] | None = None
) -> None:
    """Write a dataset as one more group of a store.

    Parameters
    ----------
    path : Path
        Of the store.
    table : Dataset
        Numbers and text.
    attributes : mapping, optional
        JSON attributes of the group besides the dataset's own.
    """
    with interrupts_wait(), output_errors(path):
        root = zarr.open_group(LocalStore(path), mode="r+", zarr_format=3)
        child = root.create_group(
            group, attributes=plain_attributes({**table.attrs, **(attributes or {})})
        )
        _write_columns(child, table)


def _root_attributes(run: Run) -> dict[str, Any]:
    """What a store says of itself and of its run."""
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "experiment": run.experiment,
        "run": run.name,
        "provenance": run.provenance,
        "detector": detector_to_json(run.detector),
        # By CF and xarray: which of the columns names the events.
        "coordinates": "event_id",
    }


def _mask_column(detector: Detector) -> xr.DataArray:
    return xr.DataArray(
        detector.mask,
        dims=detector.frame_dims,
        attrs={"long_name": "pixel mask, zero is good", "units": "1"},
    )


def consolidate(path: Path) -> None:
    """Repeat the metadata of a store in its root, where xarray looks for them first.

    Without it xarray warns whoever opens the store. This package never reads it.

    Parameters
    ----------
    path : Path
        Of the store, complete but for its manifest.
    """
    with interrupts_wait(), output_errors(path), warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(LocalStore(path), zarr_format=3)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest into the attributes of a child group, after all else.

    Parameters
    ----------
    path : Path
        Of the store.
    """
    with interrupts_wait(), output_errors(path):
        root = zarr.open_group(LocalStore(path), mode="r+", zarr_format=3)
        root.create_group(MANIFEST_GROUP, attributes=manifest_to_json(manifest))


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
        attributes=plain_attributes(column.attrs),
        config={"write_empty_chunks": True},
    )
    array[...] = column.values.astype(object) if is_text else column.values


def plain_attributes(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as JSON can hold them; they may come from any file."""
    plain: dict[str, Any] = {}
    for name, value in attributes.items():
        item = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if isinstance(item, bytes):
            item = item.decode(errors="replace")
        is_json = isinstance(item, str | int | float | bool | list | tuple | dict | None)
        plain[str(name)] = item if is_json else str(item)
    return plain
