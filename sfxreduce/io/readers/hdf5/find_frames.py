"""Where a CXI, NXmx or other HDF5 file keeps its frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

import h5py

from sfxreduce.errors import SchemaError
from sfxreduce.io.chunks.limits import check_extent, check_frames
from sfxreduce.io.readers.hdf5.columns import COLUMN_PATHS
from sfxreduce.io.readers.hdf5.file import Hdf5File
from sfxreduce.io.readers.hdf5.nexus import CXI_FRAMES, NEXUS_FRAMES, are_same, frames_by_class

__all__ = ["FRAME_PATHS", "find_frames"]

FRAME_PATHS = (*CXI_FRAMES, *NEXUS_FRAMES)
MOST_DETECTORS = 9
"""Detectors of a CXI entry that are looked for."""

LEAST_SIDE = 32
"""Pixels on a side of frames: fewer beside two axes of twice as many and more are events. Chosen:
the smallest tile of a camera has 64."""
MOST_LISTED = 8
MOST_LOOKED_AT = 10_000
"""Objects that are looked at for a message, so that it comes at once for a file of any number of
them, and for one whose links run in a circle. Chosen."""


def find_frames(file: Hdf5File, data_path: str) -> tuple[str, h5py.Dataset]:
    """Find the frames of a run.

    Parameters
    ----------
    data_path : str
        Where they are; empty for the first of `FRAME_PATHS` that exists, or else those of the only
        NXdata or NXdetector group that has some.

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
    known = ((path, file.dataset(path)) for path in paths)
    path, frames = next((item for item in known if item[1] is not None), ("", None))
    if frames is None and not data_path:
        path, frames = next(frames_by_class(file), ("", None))
    if frames is None:
        raise SchemaError(
            f"{file.path}: expected frames at {' or '.join(paths)}, found {_listing(file)}; "
            "name their dataset with --data-path, with {tag} for what differs where each image has "
            "one of its own"
        )
    if frames.ndim not in (3, 4) or frames.dtype.kind not in "iuf" or 0 in frames.shape[1:]:
        raise SchemaError(
            f"{file.path}: expected {frames.name} to be numbers (event, y, x) or (event, panel, "
            f"y, x), found {frames.dtype} {frames.shape}; name the frames with --data-path, with "
            "{tag} for what differs where each image is a dataset of its own"
        )
    where = f"{file.path}: {frames.name}"
    if _ends_with_events(file, frames):
        raise SchemaError(
            f"{where}: expected (event, y, x), found {frames.shape}, of which the last axis seems "
            "to be that of the events; store them on the first, in Python by np.moveaxis(frames, "
            "-1, 0)"
        )
    check_frames(frames.shape[1:], frames.dtype, where=where)
    check_extent(frames.shape, frames.dtype, stored=file.stored_bytes, where=where)
    if not data_path:
        _check_only(file, path, frames)
    return path, frames


def _ends_with_events(file: Hdf5File, frames: h5py.Dataset) -> bool:
    """Whether events seem to be on the last axis: by its name, its length, chunks, or columns."""
    *_, n_y, n_x, n_last = frames.shape
    named = file.attempt(lambda: frames.attrs.get("axes", ""), str(frames.name))
    text = named.decode(errors="replace") if isinstance(named, bytes) else str(named)
    if text.count(":") == frames.ndim - 1:
        return text.endswith(":experiment_identifier")
    if min(n_y, n_x) < 2 * LEAST_SIDE:
        return False
    chunks = frames.chunks or ()
    a_frame_each = chunks[-3:] == (n_y, n_x, 1) and n_last > 1
    columns = [column for path in COLUMN_PATHS if (column := file.dataset(path)) is not None]
    lengths = {column.shape[0] for column in columns if column.ndim and column.size > 1}
    by_columns = n_last in lengths and frames.shape[0] not in lengths
    return bool(n_last < LEAST_SIDE or a_frame_each or by_columns)


def _check_only(file: Hdf5File, path: str, frames: h5py.Dataset) -> None:
    """Refuse a file with frames of another detector or entry: which is meant has to be said."""
    if file.find("/entry_2") is not None:
        raise SchemaError(
            f"{file.path}: expected all events in entry_1, found an entry_2 as well; name the "
            "frames of one of them with --data-path"
        )
    others = [(path, file.dataset(path)) for path in (*FRAME_PATHS, *_other_detectors())]
    for other_path, other in (*others, *frames_by_class(file)):
        if other is not None and other.ndim >= 3 and not are_same(frames, other):
            raise SchemaError(
                f"{file.path}: expected the frames of one detector, found {path} {frames.shape} "
                f"and {other_path} {other.shape}; name one of them with --data-path"
            )


def _other_detectors() -> Iterator[str]:
    """Where CXI keeps the frames of the second detector and of those after it."""
    for number in range(2, MOST_DETECTORS + 1):
        yield f"/entry_1/data_{number}/data"
        yield f"/entry_1/instrument_1/detector_{number}/data"


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
