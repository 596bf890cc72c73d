"""Where a CXI, NXmx or other HDF5 file keeps its frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

import h5py

from sfxreduce.errors import SchemaError
from sfxreduce.io.chunks.limits import check_extent, check_frames
from sfxreduce.io.readers.hdf5.file import Hdf5File

__all__ = ["FRAME_PATHS", "find_frames"]

FRAME_PATHS = (
    "/entry_1/data_1/data",
    "/entry_1/instrument_1/detector_1/data",
    "/entry/data/data",
)
OTHER_DETECTORS = ("/entry_1/data_2/data", "/entry_1/instrument_1/detector_2/data")
MOST_LISTED = 8
MOST_LOOKED_AT = 10_000
"""Objects that are looked at for a message, so that it comes at once for a file of any number of
them, and for one whose links run in a circle. Chosen."""


def find_frames(file: Hdf5File, data_path: str) -> tuple[str, h5py.Dataset]:
    """Find the frames of a run.

    Parameters
    ----------
    data_path : str
        Where they are; empty for the first of `FRAME_PATHS` that exists.

    Returns
    -------
    tuple of (str, Dataset)
        The path that leads to them, and the frames, (event, y, x) or (event, panel, y, x).

    Raises
    ------
    SchemaError
        If there are none, or there are those of two entries or detectors and none is named, or they
        declare far more than is stored; see `check_extent`.
    SourceError
        If they are compressed with a filter that is not installed.
    """
    paths = (data_path,) if data_path else FRAME_PATHS
    found = ((path, file.dataset(path)) for path in paths)
    path, frames = next((item for item in found if item[1] is not None), ("", None))
    if frames is None:
        raise SchemaError(
            f"{file.path}: expected frames at {' or '.join(paths)}, found {_listing(file)}; "
            "name their dataset with data_path"
        )
    if frames.ndim not in (3, 4) or frames.dtype.kind not in "iuf" or 0 in frames.shape[1:]:
        raise SchemaError(
            f"{file.path}: expected {frames.name} to be numbers (event, y, x) or (event, panel, "
            f"y, x), found {frames.dtype} {frames.shape}; name the frames with data_path"
        )
    where = f"{file.path}: {frames.name}"
    check_frames(frames.shape[1:], frames.dtype, where=where)
    check_extent(frames.shape, frames.dtype, stored=file.stored_bytes, where=where)
    if not data_path:
        if file.find("/entry_2") is not None:
            raise SchemaError(
                f"{file.path}: expected all events in entry_1, found an entry_2 as well; name the "
                "frames of one of them with data_path"
            )
        _check_only(file, path, frames)
    return path, frames


def _check_only(file: Hdf5File, path: str, frames: h5py.Dataset) -> None:
    """Refuse a file with the frames of another detector: which is meant has to be said."""
    for other_path in (*FRAME_PATHS, *OTHER_DETECTORS):
        other = file.dataset(other_path)
        if other is not None and other != frames and other.ndim >= 3:
            raise SchemaError(
                f"{file.path}: expected the frames of one detector, found {path} {frames.shape} "
                f"and {other_path} {other.shape}; name one of them with --data-path"
            )


def _listing(file: Hdf5File) -> str:
    """Name the datasets of a file with an event axis, the first few."""
    found = file.attempt(lambda: list(islice(_arrays(file.handle), MOST_LISTED)), "/")
    return ", ".join(found) or "no array of two or more axes"


def _arrays(root: h5py.Group) -> Iterator[str]:
    """Names and shapes of arrays of two or more axes, those of the outer groups first.

    One link after the other: HDF5's own walk begins each name at the root, so that groups nested
    deep cost the square of their depth.
    """
    waiting, looked_at = deque([("", root)]), 0
    while waiting and looked_at < MOST_LOOKED_AT:
        path, group = waiting.popleft()
        for name in group:
            looked_at += 1
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            item = group[name]
            if isinstance(item, h5py.Dataset) and item.ndim >= 2:
                yield f"{path}/{name} {item.shape}"
            elif isinstance(item, h5py.Group):
                waiting.append((f"{path}/{name}", item))
