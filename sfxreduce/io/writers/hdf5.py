"""What every HDF5 file of hits is written with: whole or not at all, the same bytes each time."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import OutputError, OutputExists
from sfxreduce.run.run import FrameSource

__all__ = [
    "frames_of",
    "gzipped",
    "put",
    "put_column",
    "text",
    "write_carried",
    "write_hdf5",
    "write_times",
]

BLOCK_BYTES = 64 << 20

# Old readers, CrystFEL's HDF5 among them, cannot read what newer libraries write by default.
LIBRARY_VERSIONS = ("earliest", "v110")


def write_hdf5(path: Path, write: Callable[[h5py.File], int], *, n_bytes: int) -> int:
    """Create a file, and let something write into it; nothing is left there after an error.

    Parameters
    ----------
    path : Path
        Must not exist.
    write : callable
        Writes it all; what it returns is returned.
    n_bytes : int
        Bytes that it needs at most, for the message when the disk is full.

    Raises
    ------
    OutputExists
        If something lies at the path.
    OutputError
        If the file cannot be written.
    """
    if os.path.lexists(path):
        raise OutputExists(f"{path}: already exists; choose another path")
    complete = False
    try:
        with h5py.File(path, "x", libver=LIBRARY_VERSIONS) as file:
            written = write(file)
        complete = True
    except (OSError, RuntimeError, ValueError) as error:
        # h5py tells a full disk by any of these, when it writes and once more when it closes.
        path.unlink(missing_ok=True)
        raise _output_error(path, n_bytes, error) from error
    finally:
        if not complete:
            path.unlink(missing_ok=True)
    return written


def _output_error(path: Path, n_bytes: int, error: Exception) -> OutputError:
    """Say in one line why a file could not be written."""
    free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
    cause = " ".join(str(error).split())
    for text in ("No space left on device", "Disk quota exceeded", "File too large"):
        if text in cause:
            return OutputError(
                f"{path}: {text}: at most {n_bytes} bytes are needed, {free} are free; "
                "free some space or choose another disk"
            )
    return OutputError(f"{path}: cannot be written ({cause})")


def put(file: h5py.File, name: str, values: object) -> h5py.Dataset:
    """Write a small dataset."""
    return file.create_dataset(name, data=values, track_times=False)


def put_column(file: h5py.File, name: str, values: NDArray[Any]) -> h5py.Dataset:
    """Write numbers or text."""
    if values.dtype.kind in "OUT":
        values = text([str(value) for value in values.ravel()]).reshape(values.shape)
    return put(file, name, values)


def text(names: list[str]) -> NDArray[np.bytes_]:
    """Names as text of one length, which lies where HDF5 puts it the same way every time."""
    encoded = [name.encode() for name in names]
    return np.array(encoded, h5py.string_dtype("utf-8", max([1, *map(len, encoded)])))


def gzipped(chunk: tuple[int, ...]) -> dict[str, Any]:
    """How large datasets are stored."""
    return {
        "chunks": chunk,
        "shuffle": True,
        "compression": "gzip",
        "compression_opts": 1,
        "fletcher32": True,
        "track_times": False,
    }


def frames_of(
    source: FrameSource,
) -> Iterator[tuple[NDArray[np.generic] | None, NDArray[np.bool_] | None]]:
    """Frames in order, a few in memory at a time, and which pixels are missing of them, if any are;
    None in place of a frame that cannot be read.
    """
    n = source.n_events
    step = max(1, BLOCK_BYTES // (math.prod(source.detector.frame_shape) * source.dtype.itemsize))
    for start in range(0, n, step):
        reading = source.read(range(start, min(start + step, n)))
        for place, (frame, lost) in enumerate(zip(reading.pixels, reading.lost, strict=True)):
            yield None if lost else frame, reading.missing.get(place)


def write_times(file: h5py.File, columns: xr.Dataset) -> None:
    """Write the times of events under the LCLS names; one that is not known is zero."""
    time_ns = columns["timestamp_ns"].values
    known = np.where(time_ns > 0, time_ns, 0)
    put(file, "/LCLS/machineTime", known // 1_000_000_000)
    put(file, "/LCLS/machineTimeNanoSeconds", known % 1_000_000_000)


def write_carried(file: h5py.File, columns: xr.Dataset) -> list[str]:
    """Write per-event data of the source under the names that they had there; returns these."""
    written = []
    # A store lists its columns in any order.
    paths = {str(column.attrs.get("path", "")): column for column in columns.values()}
    for path, column in sorted(paths.items()):
        # What the file has already says the same in its own way.
        if path.startswith("/") and path not in file and _is_free(file, path):
            put_column(file, path, column.values)
            written.append(path)
    return written


def _is_free(file: h5py.File, path: str) -> bool:
    """Whether a dataset may lie at a path: nothing above it is one."""
    parts = path.strip("/").split("/")
    above = ("/" + "/".join(parts[:n]) for n in range(1, len(parts)))
    return all(parts) and all(not isinstance(file.get(one), h5py.Dataset) for one in above)
