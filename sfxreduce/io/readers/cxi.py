"""CXI and other HDF5 runs, read where they lie."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from sfxreduce.decide import Reason
from sfxreduce.errors import SchemaError, SfxReduceError, SourceError
from sfxreduce.geometry import Box, Detector, Window
from sfxreduce.io.readers.cxi_detector import read_detector
from sfxreduce.io.readers.cxi_events import read_columns, read_truth
from sfxreduce.io.readers.hdf5 import HDF5_ERRORS, FileStamp, Hdf5File, open_hdf5
from sfxreduce.io.readers.holes import find_holes
from sfxreduce.io.readers.windows import take_window, window_boxes
from sfxreduce.run import Reading, Run

__all__ = ["CxiFrames", "open_cxi"]

FRAME_PATHS = (
    "/entry_1/data_1/data",
    "/entry_1/instrument_1/detector_1/data",
    "/entry/data/data",
)
MOST_LISTED = 8
DEFAULT_EVENTS_PER_BLOCK = 32


def open_cxi(path: Path, *, data_path: str = "") -> Run:
    """Open a run in a CXI, NXmx or other HDF5 file; no frame is read.

    Parameters
    ----------
    path : Path
    data_path : str
        Dataset of the frames within the file, (event, y, x) or (event, panel, y, x); by default
        the first of the places where CXI and NXmx keep them.

    Raises
    ------
    RunNotFound
        If nothing lies at the path.
    SourceError
        If the file is truncated, damaged or not HDF5, or its compression filter is not known.
    SchemaError
        If there are no frames in it, or it leads outside its own folder.
    """
    stamp = FileStamp.of(path)
    opened = _open(stamp, data_path, os.getpid())
    source = CxiFrames(
        path=str(path),
        data_path=data_path,
        n_events=opened.frames.shape[0],
        frame_shape=opened.detector.frame_shape,
        dtype=opened.frames.dtype.newbyteorder("="),
        n_bytes=stamp.n_bytes,
    )
    chunks = opened.frames.chunks
    return Run(
        source=source,
        columns=read_columns(opened.file, source.n_events, path=str(path)),
        truth=read_truth(opened.file, source.n_events),
        name=path.stem,
        provenance=f"read from {path.name}",
        events_per_block=chunks[0] if chunks and chunks[0] > 1 else DEFAULT_EVENTS_PER_BLOCK,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CxiFrames:
    """Frames of an HDF5 file. Holds names and numbers only; each process opens the file itself.

    Parameters
    ----------
    path, data_path : str
        Of the file, and of the dataset within it; empty for the usual places.
    n_events : int
    frame_shape : tuple of int
        (y, x) or (panel, y, x), as the detector has it.
    dtype : dtype
        Of a pixel, in the machine's own byte order.
    n_bytes : int
        Of the file.
    """

    path: str
    data_path: str
    n_events: int
    frame_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    n_bytes: int

    @property
    def detector(self) -> Detector:
        """Geometry and mask."""
        return self._opened().detector

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events; see `sfxreduce.run.FrameSource.read`."""
        shape = self.frame_shape if window is None else window.shape
        pixels = np.zeros((len(events), *shape), self.dtype)
        try:
            opened = self._opened()
        except SfxReduceError:
            # The file was there when the run was opened; now its events cannot be judged.
            return Reading(pixels=pixels, reasons=_same(events, Reason.FILE_UNREADABLE))
        if not opened.gives(self):
            return Reading(pixels=pixels, reasons=_same(events, Reason.SCHEMA))
        reasons = _same(events, Reason(0))
        reasons[opened.holes[list(events)]] = Reason.DATA_HOLE
        for group in _groups(events, np.flatnonzero(reasons == 0), opened.events_per_chunk):
            try:
                pixels[group] = opened.read(events[group[0]], len(group), window)
            except HDF5_ERRORS:
                opened.read_one_by_one(events, group, window, pixels, reasons)
        return Reading(pixels=pixels, reasons=reasons)

    def _opened(self) -> _OpenRun:
        return _open(FileStamp.of(self.path), self.data_path, os.getpid())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _OpenRun:
    """What a process keeps of a run that it has opened."""

    file: Hdf5File
    frames: h5py.Dataset
    detector: Detector
    holes: NDArray[np.bool_]

    @property
    def events_per_chunk(self) -> int:
        """Events that have to be decoded together."""
        return int(self.frames.chunks[0]) if self.frames.chunks else 1

    def gives(self, source: CxiFrames) -> bool:
        """Whether the file still holds what it held when the run was opened."""
        return (
            self.frames.shape[0] == source.n_events
            and self.detector.frame_shape == source.frame_shape
            and self.frames.dtype.newbyteorder("=") == source.dtype
        )

    def read(self, start: int, count: int, window: Window | None) -> NDArray[np.generic]:
        """Read consecutive events, whole or in a window."""
        stop = start + count
        whole = (count, *self.detector.frame_shape)
        if window is None:
            return np.asarray(self.frames[start:stop]).reshape(whole)
        if not self._read_by_box():
            frames = np.asarray(self.frames[start:stop])
            return take_window(frames.reshape(whole), self.detector, window)
        frames = np.zeros((count, *self.frames.shape[1:]), self.frames.dtype)
        for box in window_boxes(self.detector, window):
            part = (slice(start, stop), *self._selection(box))
            frames[:, *part[1:]] = self.frames[part]
        return take_window(frames.reshape(whole), self.detector, window)

    def read_one_by_one(
        self,
        events: Sequence[int],
        group: NDArray[np.int64],
        window: Window | None,
        pixels: NDArray[np.generic],
        reasons: NDArray[np.uint32],
    ) -> None:
        """Read what can be read of a group of events, and flag the others."""
        for i in group:
            try:
                pixels[i] = self.read(events[i], 1, window)[0]
            except HDF5_ERRORS:
                reasons[i] = Reason.READ_ERROR

    def _read_by_box(self) -> bool:
        """Whether a part of a frame costs less to read than all of it."""
        if self.frames.is_virtual:
            return False
        chunks = self.frames.chunks
        return chunks is None or math.prod(chunks[1:]) < math.prod(self.frames.shape[1:])

    def _selection(self, box: Box) -> tuple[int | slice, ...]:
        """Where the pixels of a box lie in a frame of the file."""
        x = slice(box.x0, box.x1)
        if self.frames.ndim == 4:
            return box.panel, slice(box.y0, box.y1), x
        top = box.panel * self.detector.panel_shape[0]
        return slice(top + box.y0, top + box.y1), x


@lru_cache(maxsize=16)
def _open(stamp: FileStamp, data_path: str, _pid: int) -> _OpenRun:
    """Open the run behind a stamp, once a process."""
    file = open_hdf5(stamp.path)
    frames = _find_frames(file, data_path)
    _check_filters(file, frames)
    return _OpenRun(
        file=file,
        frames=frames,
        detector=read_detector(file, frames.shape[1:]),
        holes=find_holes(file, frames),
    )


def _find_frames(file: Hdf5File, data_path: str) -> h5py.Dataset:
    """Find the dataset of the frames, or say what is there instead."""
    paths = (data_path,) if data_path else FRAME_PATHS
    frames = file.dataset(*paths)
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
    if not data_path and file.find("/entry_2") is not None:
        raise SchemaError(
            f"{file.path}: expected all events in entry_1, found an entry_2 as well; name the "
            "frames of one of them with data_path"
        )
    return frames


def _listing(file: Hdf5File) -> str:
    """Name the datasets of a file with an event axis, the first few."""
    found: list[str] = []

    def note(name: str, item: h5py.Dataset | h5py.Group) -> bool | None:
        if isinstance(item, h5py.Dataset) and item.ndim >= 2:
            found.append(f"/{name} {item.shape}")
        return True if len(found) == MOST_LISTED else None

    file.attempt(lambda: file.handle.visititems(note), "/")
    return ", ".join(found) or "no array of two or more axes"


def _check_filters(file: Hdf5File, frames: h5py.Dataset) -> None:
    """Refuse frames of which every single one would fail to decode."""
    created = frames.id.get_create_plist()
    for i in range(created.get_nfilters()):
        code, _, _, name = created.get_filter(i)
        if not h5py.h5z.filter_avail(code):
            raise SourceError(
                f"{file.path}: {frames.name} is compressed with filter {code} "
                f"({name.decode(errors='replace')}), which is not installed; set HDF5_PLUGIN_PATH"
            )


def _same(events: Sequence[int], reason: Reason) -> NDArray[np.uint32]:
    """One reason for all events."""
    return np.full(len(events), reason, np.uint32)


def _groups(
    events: Sequence[int], wanted: NDArray[np.int64], events_per_chunk: int
) -> list[NDArray[np.int64]]:
    """Split positions in `events` into runs of neighbours that share a chunk."""
    if wanted.size == 0:
        return []
    number = np.asarray(events, np.int64)[wanted]
    apart = (np.diff(number) != 1) | (np.diff(number // events_per_chunk) != 0)
    return np.split(wanted, np.flatnonzero(apart) + 1)
