"""A run in another format: run store, CXI, NXmx, and back, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import hdf5plugin
import numpy as np
import xarray as xr

from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.errors import OutputError, SfxReduceError, UsageError
from sfxreduce.io.files.durable import disk_bytes
from sfxreduce.io.readers.hdf5.run import open_cxi
from sfxreduce.io.readers.zarr.run import open_zarr
from sfxreduce.io.store.metadata import detector_to_json
from sfxreduce.io.writers.cxi_content import CxiContent
from sfxreduce.io.writers.cxi_process import write_cxi_in_subprocess, write_nxmx_in_subprocess
from sfxreduce.io.writers.nxmx_content import NxmxContent, check_nxmx_codec, parse_sensor
from sfxreduce.io.writers.publish import (
    check_cxi_filter,
    check_cxi_layout,
    check_outputs,
    staged,
)
from sfxreduce.pipeline.ingest import write_store
from sfxreduce.pipeline.stages.settings import check_geometry
from sfxreduce.run.run import Run

__all__ = ["ConvertSummary", "convert_run"]

STORE_SUFFIX = ".zarr"

Write: TypeAlias = Callable[[Run, Path], int]
"""Writes a run at a path, and returns how many of its events could not be read whole."""

Open: TypeAlias = Callable[[Path], Run]
"""Opens what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSummary:
    """What was written.

    Parameters
    ----------
    out : str
        Path of the output.
    events, unreadable : int
        Events of the run, and how many of them could not be read whole; what is missing of them is
        missing in the output.
    bytes_in, bytes_out : int
        Bytes of the source and of the output.
    not_carried : tuple of str
        What the output does not say as the source does: columns, truth, mask, geometry, names; and
        datasets of the source that are no columns.
    plugin_path : str or None
        What other programs need as ``HDF5_PLUGIN_PATH`` to read the output; None if nothing.
    """

    out: str
    events: int
    unreadable: int
    bytes_in: int
    bytes_out: int
    not_carried: tuple[str, ...]
    plugin_path: str | None = None


def convert_run(
    run: Run,
    *,
    out: Path,
    pool: Pool = IN_PROCESS,
    cxi_filter: str = "gzip",
    cxi_layout: str = "modules",
    nxmx_codec: str = "gzip",
    sensor: str = "",
    overwrite: bool = False,
    progress: Progress = silent,
) -> ConvertSummary:
    """Write a run in the format that its name ends in: ``.zarr``, ``.cxi`` or ``.nxs`` (NXmx).

    Frames keep every bit, few of them in memory at a time. What the output does not have of the
    rest is found by opening it again, and is in `not_carried`.

    Parameters
    ----------
    pool : Pool
        Where shards of a run store are made.
    cxi_filter, cxi_layout : str
        See `sfxreduce.io.writers.cxi_content.CxiContent`.
    nxmx_codec, sensor : str
        See `sfxreduce.pipeline.stages.settings.Outputs`.

    Raises
    ------
    UsageError
        If the output's name ends in none of them, or DIALS would refuse the geometry.
    OutputExists
        If something lies at `out`.
    OutputError
        If the disk is full, the path cannot be written, or the output could not be opened again.
    """
    check_cxi_filter(cxi_filter)
    check_cxi_layout(cxi_layout)
    check_nxmx_codec(nxmx_codec)
    formats: Mapping[str, tuple[Write, Open]] = {
        STORE_SUFFIX: (partial(_write_zarr, pool=pool, progress=progress), open_zarr),
        ".cxi": (partial(_write_cxi, cxi_filter=cxi_filter, cxi_layout=cxi_layout), open_cxi),
        ".nxs": (partial(_write_nxmx, codec=nxmx_codec, sensor=sensor), open_cxi),
    }
    suffix = _known_suffix(out, formats)
    write, open_again = formats[suffix]
    stores, files = ([out], []) if suffix == STORE_SUFFIX else ([], [out])
    check_outputs(stores=stores, files=files, inputs=run.inputs, overwrite=overwrite)
    with staged(stores=stores, files=files, overwrite=overwrite) as paths:
        unreadable = write(run, paths[out])
        missing = _missing_in(open_again, paths[out], run, out=out)
    codec = {".cxi": cxi_filter, ".nxs": nxmx_codec}.get(suffix, "gzip")
    return ConvertSummary(
        out=str(out),
        events=run.n_events,
        unreadable=unreadable,
        bytes_in=run.source.n_bytes,
        bytes_out=disk_bytes(out),
        not_carried=(*run.not_carried, *missing),
        plugin_path=None if codec == "gzip" else hdf5plugin.PLUGIN_PATH,
    )


def _known_suffix(out: Path, formats: Mapping[str, object]) -> str:
    """What the output's name ends in, which says what is written."""
    suffix = out.suffix.lower()
    if suffix not in formats:
        raise UsageError(
            f"{out}: expected the name of an output that ends in {', '.join(formats)}, which says "
            f"what is written, found '{out.suffix}'"
        )
    return suffix


def _write_zarr(run: Run, path: Path, *, pool: Pool, progress: Progress) -> int:
    return write_store(run, path, pool=pool, progress=progress).unreadable


def _write_cxi(run: Run, path: Path, *, cxi_filter: str, cxi_layout: str) -> int:
    content = CxiContent(
        source=run.source,
        columns=run.columns.reset_coords(),
        cxi_filter=cxi_filter,
        cxi_layout=cxi_layout,
        run=run,
    )
    return write_cxi_in_subprocess(path, content)


def _write_nxmx(run: Run, path: Path, *, codec: str, sensor: str) -> int:
    check_geometry(run, "convert: DIALS")
    content = NxmxContent(
        source=run.source,
        columns=run.columns.reset_coords(),
        layer=parse_sensor(sensor, detector=run.detector.name),
        codec=codec,
    )
    return write_nxmx_in_subprocess(path, content)


def _missing_in(open_again: Open, path: Path, run: Run, *, out: Path) -> list[str]:
    """What an output does not say as the run does, by the name that the run has for it.

    Raises
    ------
    OutputError
        If it cannot be opened.
    """
    try:
        back = open_again(path)
    except SfxReduceError as error:
        reason = str(error).replace(str(path), str(out))
        raise OutputError(f"{out}: cannot be opened again, and was removed: {reason}") from error
    known = run.columns.reset_coords()
    if not any(known["source_file"].values):
        # An output that is the source of its events says nothing less than a run that names none.
        known = known.drop_vars(["source_file", "source_event"])
    missing = _differing(known, back.columns.reset_coords())
    truth = xr.Dataset() if run.truth is None else run.truth.reset_coords()
    found = xr.Dataset() if back.truth is None else back.truth.reset_coords()
    missing += [f"truth/{name}" for name in _differing(truth, found)]
    if detector_to_json(back.detector) != detector_to_json(run.detector):
        missing.append("geometry")
    if not np.array_equal(back.detector.mask, run.detector.mask):
        missing.append("mask")
    named = ("experiment", "name", "provenance")
    return missing + [name for name in named if getattr(back, name) != getattr(run, name)]


def _differing(table: xr.Dataset, other: xr.Dataset) -> list[str]:
    """Names of variables that the other table lacks or has with other values."""
    return [
        str(name)
        for name, variable in table.items()
        if name not in other or not _is_same(variable, other[name])
    ]


def _is_same(one: xr.DataArray, other: xr.DataArray) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind in "OUT" or other.dtype.kind in "OUT":
        return [*map(str, one.values.flat)] == [*map(str, other.values.flat)]
    equal = np.array_equal(one.values, other.values, equal_nan=one.dtype.kind == "f")
    return equal and one.dtype == other.dtype
