"""CXI and other HDF5 runs, read where they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from sfxreduce.columns import plain_text
from sfxreduce.decide import Reason
from sfxreduce.errors import SfxReduceError
from sfxreduce.geometry import Box, Detector, Window
from sfxreduce.io.readers.cxi_detector import has_mask, read_detector
from sfxreduce.io.readers.cxi_events import read_columns, read_truth
from sfxreduce.io.readers.cxi_frames import find_frames
from sfxreduce.io.readers.file_stamp import FileStamp
from sfxreduce.io.readers.hdf5 import HDF5_ERRORS, open_hdf5
from sfxreduce.io.readers.holes import find_holes
from sfxreduce.io.readers.sentinels import MASK_FRAMES, lasting_sentinels
from sfxreduce.io.readers.windows import take_window, window_boxes
from sfxreduce.run import Reading, Run

__all__ = ["CxiFrames", "open_cxi"]

DEFAULT_EVENTS_PER_BLOCK = 32


def open_cxi(path: Path, *, data_path: str = "") -> Run:
    """Open a run in a CXI, NXmx or other HDF5 file; at most `MASK_FRAMES` frames are read.

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
    facts = _facts(stamp, data_path)
    n_events = len(facts.holes)
    with open_hdf5(path) as file:
        columns = read_columns(file, n_events, path=str(path))
        truth = read_truth(file, n_events)
        inputs = sorted({*facts.files, *file.opened})
    source = CxiFrames(
        path=str(path),
        data_path=data_path,
        n_events=n_events,
        frame_shape=facts.detector.frame_shape,
        dtype=facts.dtype,
        n_bytes=sum(FileStamp.of(name).n_bytes for name in inputs),
        inputs=tuple(Path(name) for name in inputs),
    )
    grouped = facts.events_per_chunk > 1
    return Run(
        source=source,
        columns=columns,
        truth=truth,
        name=plain_text(path.stem),
        provenance=plain_text(f"read from {path.name}"),
        events_per_block=facts.events_per_chunk if grouped else DEFAULT_EVENTS_PER_BLOCK,
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
        Of the file and of those that it reads from.
    inputs : tuple of Path
        Real paths of the same files: what links and virtual datasets lead to is as much a source
        as the file that leads there.
    """

    path: str
    data_path: str
    n_events: int
    frame_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    n_bytes: int
    inputs: tuple[Path, ...]

    @property
    def detector(self) -> Detector:
        """Geometry and mask."""
        return self._facts().detector

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events; see `sfxreduce.run.FrameSource.read`."""
        shape = self.frame_shape if window is None else window.shape
        pixels = np.zeros((len(events), *shape), self.dtype)
        reasons = np.zeros(len(events), np.uint32)
        try:
            facts = self._facts()
            if not facts.give(self):
                reasons[:] = Reason.SCHEMA
                return Reading(pixels=pixels, reasons=reasons)
            with open_hdf5(self.path) as file:
                frames = _Frames(dataset=file.trusted(facts.path), detector=facts.detector)
                reasons[facts.holes[list(events)]] = Reason.DATA_HOLE
                for group in _groups(events, np.flatnonzero(reasons == 0), facts.events_per_chunk):
                    start = events[group[0]]
                    unread = frames.read_into(pixels[group[0] : group[-1] + 1], start, window)
                    reasons[group[unread]] = Reason.READ_ERROR
        except SfxReduceError:
            # The file was there when the run was opened; now its events cannot be judged.
            reasons[:] = Reason.FILE_UNREADABLE
        return Reading(pixels=pixels, reasons=reasons)

    def _facts(self) -> _Facts:
        return _facts(FileStamp.of(self.path), self.data_path)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Facts:
    """What a process remembers of a run, so that it looks at a file once."""

    path: str
    dtype: np.dtype[np.generic]
    events_per_chunk: int
    detector: Detector
    holes: NDArray[np.bool_]
    files: tuple[str, ...]

    def give(self, source: CxiFrames) -> bool:
        """Whether the file still holds what it held when the run was opened."""
        found = (len(self.holes), self.detector.frame_shape, self.dtype)
        return found == (source.n_events, source.frame_shape, source.dtype)


@lru_cache(maxsize=16)
def _facts(stamp: FileStamp, data_path: str) -> _Facts:
    """Look at the run behind a stamp, once a process."""
    with open_hdf5(stamp.path) as file:
        path, frames = find_frames(file, data_path)
        detector = read_detector(file, frames.shape[1:])
        holes = find_holes(file, frames)
        return _Facts(
            path=path,
            dtype=frames.dtype.newbyteorder("="),
            events_per_chunk=int(frames.chunks[0]) if frames.chunks else 1,
            detector=detector if has_mask(file) else _masked(detector, frames, holes),
            holes=holes,
            files=tuple(file.opened),
        )


def _masked(detector: Detector, frames: h5py.Dataset, holes: NDArray[np.bool_]) -> Detector:
    """Detector with the mask that a few frames, spread evenly over the run, give away."""
    whole = np.flatnonzero(~holes)
    spread = np.linspace(0, whole.size - 1, min(whole.size, MASK_FRAMES)).astype(int)
    sample = []
    for event in whole[spread]:
        # One that cannot be read says nothing of the mask; it is flagged when its turn comes.
        with suppress(*HDF5_ERRORS):
            sample.append(np.asarray(frames[event]).reshape(detector.frame_shape))
    mask = lasting_sentinels(sample, count_cutoff=detector.saturation_adu)
    return detector if mask is None else detector.with_mask(mask)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Frames:
    """The dataset of the frames while its file is open."""

    dataset: h5py.Dataset
    detector: Detector

    def read_into(
        self, pixels: NDArray[np.generic], start: int, window: Window | None
    ) -> list[int]:
        """Read consecutive events; returns the places of those that cannot be read."""
        try:
            pixels[:] = self._read(start, len(pixels), window)
        except HDF5_ERRORS:
            if len(pixels) == 1:
                return [0]
            single = [
                self.read_into(pixels[i : i + 1], start + i, window) for i in range(len(pixels))
            ]
            return [i for i, unread in enumerate(single) if unread]
        return []

    def _read(self, start: int, count: int, window: Window | None) -> NDArray[np.generic]:
        """Read consecutive events, whole or in a window."""
        events = slice(start, start + count)
        shape = (count, *self.detector.frame_shape)
        if window is None:
            return np.asarray(self.dataset[events]).reshape(shape)
        if self._read_by_box():
            frames = np.zeros((count, *self.dataset.shape[1:]), self.dataset.dtype)
            for box in window_boxes(self.detector, window):
                part = self._selection(box)
                frames[:, *part] = self.dataset[events, *part]
        else:
            frames = np.asarray(self.dataset[events])
        return take_window(frames.reshape(shape), self.detector, window)

    def _read_by_box(self) -> bool:
        """Whether a part of a frame costs less to read than all of it."""
        if self.dataset.is_virtual:
            return False
        chunks = self.dataset.chunks
        return chunks is None or math.prod(chunks[1:]) < math.prod(self.dataset.shape[1:])

    def _selection(self, box: Box) -> tuple[int | slice, ...]:
        """Where the pixels of a box lie in a frame of the file."""
        x = slice(box.x0, box.x1)
        if self.dataset.ndim == 4:
            return box.panel, slice(box.y0, box.y1), x
        top = box.panel * self.detector.panel_shape[0]
        return slice(top + box.y0, top + box.y1), x


def _groups(
    events: Sequence[int], wanted: NDArray[np.int64], events_per_chunk: int
) -> list[NDArray[np.int64]]:
    """Split positions in `events` into runs of neighbours that share a chunk."""
    if wanted.size == 0:
        return []
    number = np.asarray(events, np.int64)[wanted]
    apart = (np.diff(wanted) != 1) | (np.diff(number) != 1)
    apart |= np.diff(number // events_per_chunk) != 0
    return np.split(wanted, np.flatnonzero(apart) + 1)
