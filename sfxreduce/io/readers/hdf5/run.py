"""CXI and other HDF5 runs, read in place."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import RunNotFound, SchemaError, SfxReduceError, SourceError, UsageError
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.readers.count_mask import (
    MASK_FRAMES,
    lasting_sentinels,
    lasting_underloads,
)
from sfxreduce.io.readers.crop import take_window
from sfxreduce.io.readers.hdf5.carried import read_carried
from sfxreduce.io.readers.hdf5.chunk_index import ChunkPlaces, chunk_places
from sfxreduce.io.readers.hdf5.columns import COLUMN_PATHS, read_columns, read_truth
from sfxreduce.io.readers.hdf5.detector import has_mask, read_detector, underload_of
from sfxreduce.io.readers.hdf5.file import HDF5_ERRORS, FileStamp, Hdf5File, open_hdf5
from sfxreduce.io.readers.hdf5.find_frames import find_frames
from sfxreduce.io.readers.hdf5.frames import Hdf5Frames, neighbours
from sfxreduce.io.readers.hdf5.guard import check_chunks
from sfxreduce.io.readers.hdf5.record import StoreRecord, read_record
from sfxreduce.io.readers.hdf5.tiles import Hdf5Tiles, chunk_layout
from sfxreduce.io.readers.hdf5.unwritten import find_missing
from sfxreduce.io.store.in_hdf5 import RECORD_PATH
from sfxreduce.io.store.metadata import illegal_value, pixels_missing
from sfxreduce.run.columns import plain_text
from sfxreduce.run.detector import Detector, PixelFlag
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window

__all__ = [
    "CxiFrames",
    "FrameFacts",
    "few_of",
    "fill_of",
    "forget_files",
    "masked_by_values",
    "of_a_link",
    "open_cxi",
    "refuse_polarity",
]

DEFAULT_EVENTS_PER_BLOCK = 32
MOST_NAMED = 3
"""Files that a message names. Chosen."""


def open_cxi(
    path: Path,
    *,
    data_path: str = "",
    roots: Sequence[str] = (),
    mask_good_is: int | None = None,
) -> Run:
    """Open a run in a CXI, NXmx or other HDF5 file; at most `MASK_FRAMES` frames are read.

    Parameters
    ----------
    data_path : str
        Of the frames, (event, y, x) or (event, panel, y, x); where CXI and NXmx keep them if empty.
    roots : sequence of str
        Folders that links and virtual datasets may lead into, besides that of the file.
    mask_good_is : int, optional
        0 or 1: value of good pixels in the file's mask; by default zero.

    Raises
    ------
    RunNotFound
        If nothing lies at the path.
    SourceError
        If the file is truncated, damaged or not HDF5, or its compression filter is not known.
    SchemaError
        If there are no frames in it, or it leads outside its own folder.
    UsageError
        If good pixels are said to be other than zero, and it has no mask.
    """
    facts = _fresh_facts(FileStamp.of(path), data_path, tuple(roots), mask_good_is)
    n_events = len(facts.missing)
    with open_hdf5(path, roots) as file:
        record = read_record(file)
        columns = _columns(file, facts, record, path)
        truth = record.truth_of(file, n_events) or read_truth(file, n_events)
        files = {*(one.path for one in facts.files), *file.opened}
        named = {**facts.named, **file.named, str(path): of_a_link(path)}
    columns.attrs["warnings"] += _absences(named)
    source = CxiFrames(
        path=str(path),
        data_path=data_path,
        n_events=n_events,
        frame_shape=facts.detector.frame_shape,
        dtype=facts.dtype,
        n_bytes=sum(FileStamp.of(name).n_bytes for name in files),
        # A link that is turned elsewhere is as much a change of the source as another file.
        inputs=tuple(Path(name) for name in sorted({*files, *filter(os.path.exists, named)})),
        unmovable=tuple(sorted(filter(None, named.values()))),
        roots=tuple(roots),
        mask_good_is=mask_good_is,
    )
    return Run(
        source=source,
        columns=columns,
        truth=truth,
        experiment=record.experiment,
        name=record.name or plain_text(path.stem),
        provenance=record.provenance or plain_text(f"read from {path.name}"),
        events_per_block=facts.events_per_block,
    )


def forget_files() -> None:
    """Forget what this process knows of files: one that is written may change without a trace, in
    the same tick of the clock.
    """
    for known in (_facts, _places, _layout, _decoded_share):
        known.cache_clear()


def _fresh_facts(
    stamp: FileStamp, data_path: str, roots: tuple[str, ...], mask_good_is: int | None
) -> FrameFacts:
    """What is known of a run, looked up again if a file that it leads to has changed."""
    facts = _facts(stamp, data_path, roots, mask_good_is)
    if facts.is_outdated():
        forget_files()
        facts = _facts(stamp, data_path, roots, mask_good_is)
    return facts


def _columns(file: Hdf5File, facts: FrameFacts, record: StoreRecord, path: Path) -> xr.Dataset:
    """Columns of a run, and what else comes along."""
    n_events, frames = len(facts.missing), file.trusted(facts.path)
    columns = read_columns(file, n_events, path=str(path), frames_path=facts.path)
    known = (*COLUMN_PATHS, RECORD_PATH, *record.datasets)
    carried, left = read_carried(file, n_events, known=known, frames=frames)
    columns = columns.merge(record.columns_of(file, n_events)).merge(carried)
    return columns.assign_attrs(not_carried=list(left), warnings=_oddities(frames))


def _oddities(frames: h5py.Dataset) -> list[str]:
    """What to know of frames whose axes may have been meant otherwise."""
    n_events, *frame_shape = frames.shape
    by_event = frames.chunks is not None and frames.chunks[0] == 1
    if by_event or n_events < 2 or frame_shape[0] != n_events or frame_shape[-1] == n_events:
        return []
    return [
        f"its {n_events} events have as many rows each; if {frames.shape} is (y, x, event), store "
        "the events on the first axis"
    ]


def few_of(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are.

    Examples
    --------
    >>> few_of(["a.h5"]), few_of(["a.h5", "b.h5", "c.h5", "d.h5", "e.h5"])
    ('a.h5', 'a.h5, b.h5, c.h5 and 2 more')
    """
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _absences(named: Mapping[str, str]) -> list[str]:
    """What to know of files that a file names and that are not there."""
    absent = [Path(name) for name, why in named.items() if why]
    names = [path.name for path in absent if not path.exists()]
    if not names:
        return []
    return [plain_text(f"{few_of(names)}: not there, so that what it takes from them is missing")]


def of_a_link(path: Path) -> str:
    """Why a copy of what a path leads to would not be the same; empty if it would."""
    return f"{path}: expected a file, found a symbolic link" if path.is_symlink() else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CxiFrames:
    """Frames of an HDF5 file. Holds names and numbers only; each process opens the file itself.

    Parameters
    ----------
    path, data_path : str
        Of the file, and of the dataset within it; empty for the usual places.
    frame_shape : tuple of int
        (y, x) or (panel, y, x), as the detector has it.
    dtype : dtype
        Of a pixel, in the machine's own byte order.
    n_bytes : int
        Of the file and of those that it reads from.
    inputs : tuple of Path
        The same files, by their real paths and by those that lead over symbolic links: what links
        and virtual datasets lead to is as much a source as the file that leads there.
    unmovable : tuple of str
        See `sfxreduce.run.run.LeadsOn`.
    roots : tuple of str
        Folders that they may lead into, besides that of the file.
    mask_good_is : int or None
        Value of good pixels in the file's mask, if the user said it.
    as_of : FileStamp or None
        Stamp under which a process remembers what it knows of a file that grows; None for one that
        is whole, of which nothing is remembered once it has changed.
    """

    path: str
    data_path: str
    n_events: int
    frame_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    n_bytes: int
    inputs: tuple[Path, ...]
    unmovable: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    mask_good_is: int | None = None
    as_of: FileStamp | None = None

    @property
    def detector(self) -> Detector:
        """Geometry and mask."""
        return self._facts().detector

    @property
    def written(self) -> NDArray[np.bool_]:
        """Events that were written whole; those of a file that has grown since at the end."""
        return ~self._facts().holes

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events; see `sfxreduce.run.run.FrameSource.read`."""
        shape = self.frame_shape if window is None else window.shape
        pixels = np.zeros((len(events), *shape), self.dtype)
        reasons, missing = self._read(events, window, pixels)
        return Reading(pixels=pixels, reasons=reasons, missing=missing)

    def read_into(
        self, events: Sequence[int], window: Window | None, pixels: NDArray[np.generic]
    ) -> NDArray[np.uint32]:
        """Read events into an array of zeros. See `sfxreduce.run.run.ReadsInto`."""
        return self._read(events, window, pixels)[0]

    def _read(
        self, events: Sequence[int], window: Window | None, pixels: NDArray[np.generic]
    ) -> tuple[NDArray[np.uint32], dict[int, NDArray[np.bool_]]]:
        """Reasons of events, and which pixels of whole frames are missing."""
        reasons = np.zeros(len(events), np.uint32)
        missing: dict[int, NDArray[np.bool_]] = {}
        try:
            facts = self._facts()
            if not facts.give(self):
                reasons[:] = Reason.UNEXPECTED_FORMAT
                return reasons, missing
            with self.opened() as frames:
                reasons[facts.holes[list(events)]] = Reason.DATA_HOLE
                whole = np.flatnonzero(reasons == 0)
                for group in neighbours(events, whole, facts.events_per_chunk):
                    start = events[group[0]]
                    unread = frames.read_into(pixels[group[0] : group[-1] + 1], start, window)
                    reasons[group[unread]], pixels[group[unread]] = Reason.READ_ERROR, 0
                if facts.lacking.any():
                    pixels[:, _in_window(facts, window)] = facts.fill
                if window is None:
                    missing = _read_parts(frames, facts, events, pixels, reasons)
        except SfxReduceError:
            # The file was there when the run was opened; now its events cannot be judged.
            reasons[:] = Reason.FILE_UNREADABLE
            missing = {}
        return reasons, missing

    @property
    def missing_tail(self) -> str:
        """Last frames that were never written. See `sfxreduce.run.run.HasTail`."""
        written = np.flatnonzero(~self._facts().holes)
        first = int(written[-1]) + 1 if written.size else self.n_events
        if first == self.n_events:
            return ""
        with open_hdf5(self.path, self.roots) as file:
            if file.trusted(self._facts().path).is_virtual:
                return ""  # of other files, which were moved or lost
        last = self.n_events - 1
        one = f"frame {first} of {self.n_events} was" if first == last else ""
        return f"{one or f'frames {first} to {last} of {self.n_events} were'} never written"

    @property
    def events_per_chunk(self) -> int:
        """See `sfxreduce.run.run.ReadsPartly`."""
        return self._facts().events_per_chunk

    def decoded_share(self, window: Window) -> float:
        """See `sfxreduce.run.run.ReadsPartly`."""
        return _decoded_share(self, self._stamp(), window)

    @contextmanager
    def opened(self) -> Iterator[Hdf5Frames]:
        """Open the file, to read frames of it."""
        facts = self._facts()
        with open_hdf5(self.path, self.roots) as file:
            dataset = file.trusted(facts.path)
            stamp, owner = self._stamp(), self.as_of or FileStamp.of(dataset.file.filename)
            places = _places(stamp, facts.path, self.roots, owner)
            grid = None if places is None else places.grid(dataset)
            yield Hdf5Frames(dataset=dataset, detector=facts.detector, grid=grid)

    @property
    def fill(self) -> float:
        """See `sfxreduce.run.run.DeclaresMissing`."""
        return self._facts().fill

    @property
    def lacking(self) -> NDArray[np.bool_]:
        """See `sfxreduce.run.run.DeclaresMissing`."""
        return self._facts().lacking

    def missing_panels(self, event: int) -> NDArray[np.bool_]:
        """Panels of an event that are marked as missing, shape (panel,)."""
        marked: NDArray[np.bool_] = self._facts().marked[event]
        return marked

    @property
    def layout(self) -> Layout | None:
        """Tile grid of a store that takes the chunks over as they are; None if none can."""
        return _layout(FileStamp.of(self.path), self.data_path, self.roots, self.mask_good_is)

    def encoded(self, events: Sequence[int]) -> Iterator[list[bytes | None]]:
        """Tiles of events made of the stored chunks without unpacking; see `Hdf5Tiles.of_event`.

        Raises
        ------
        SchemaError
            If the chunks are no tiles, see `layout`.
        """
        layout = self.layout
        if layout is None:
            raise SchemaError(f"{self.path}: its chunks cannot be copied; encode them instead")
        tiles: list[list[bytes | None]] = [[None] * layout.tiles_per_event for _ in events]
        # As in `read`: of a file that is gone by now, every event is a hole.
        with suppress(SfxReduceError):
            facts = self._facts()
            if facts.give(self):
                with open_hdf5(self.path, self.roots) as file:
                    stored = Hdf5Tiles(dataset=file.trusted(facts.path), layout=layout)
                    tiles = [stored.of_event(event) for event in events]
        yield from tiles

    def _stamp(self) -> FileStamp:
        return self.as_of or FileStamp.of(self.path)

    def _facts(self) -> FrameFacts:
        return _facts(self._stamp(), self.data_path, self.roots, self.mask_good_is)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameFacts:
    """What a process remembers of a run, so that it looks at a file once.

    Parameters
    ----------
    missing : ndarray of bool
        Shape (event, panel): panels that were not written whole, but for those in `lacking`.
    marked : ndarray of bool
        Those of them that are in the file, with the fill value in what was missing of them.
    lacking : ndarray of bool
        In the shape of a frame: pixels of panels that every event lacks, a masked region.
    fill : int or float
        What stands in pixels that are missing.
    files : tuple of FileStamp
        Files that were read for it.
    named : mapping of str to str
        See `Hdf5File`.
    """

    path: str
    dtype: np.dtype[np.generic]
    events_per_chunk: int
    detector: Detector
    missing: NDArray[np.bool_]
    marked: NDArray[np.bool_]
    lacking: NDArray[np.bool_]
    fill: int | float
    files: tuple[FileStamp, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)

    def is_outdated(self) -> bool:
        """Whether one of the files was replaced, or one that was not there has appeared."""
        absent = [Path(name) for name, why in self.named.items() if why]
        known = {file.path for file in self.files}
        try:
            changed = any(FileStamp.of(file.path) != file for file in self.files)
        except (RunNotFound, SourceError):
            return True
        return changed or any(path.exists() for path in absent if str(path.resolve()) not in known)

    @property
    def holes(self) -> NDArray[np.bool_]:
        """Events that were not written whole, shape (event,); panels that all lack left aside."""
        return np.asarray(self.missing.any(axis=1))

    @property
    def events_per_block(self) -> int:
        """Events that are read together: those of a chunk where it has several."""
        return self.events_per_chunk if self.events_per_chunk > 1 else DEFAULT_EVENTS_PER_BLOCK

    def give(self, source: CxiFrames) -> bool:
        """Whether the file still holds what it held when the run was opened; more, if it grows."""
        n_events = len(self.missing)
        if source.as_of is not None:
            n_events = min(n_events, source.n_events)
        found = (n_events, self.detector.frame_shape, self.dtype)
        return found == (source.n_events, source.frame_shape, source.dtype)


@lru_cache(maxsize=16)
def _facts(
    stamp: FileStamp, data_path: str, roots: tuple[str, ...], mask_good_is: int | None
) -> FrameFacts:
    """Look at the run behind a stamp, once a process."""
    with open_hdf5(stamp.path, roots) as file:
        path, frames = find_frames(file, data_path)
        record = read_record(file)
        detector = read_detector(
            file, frames.shape[1:], frames_path=path, mask_good_is=mask_good_is
        )
        detector = record.detector_of(file, detector)
        n_panels = len(detector.panels)
        missing = find_missing(file, frames, n_panels)
        always: NDArray[np.bool_] = missing.sum(axis=0) == max(len(missing), 1)
        # With nothing left there is no region to mask: all events are holes.
        always = always & ~np.all(always)
        missing[:, always] = False
        lacking = np.zeros(detector.frame_shape, np.bool_)
        lacking.reshape(n_panels, -1)[always] = True
        marked, fill = record.marked(file, missing, frames.dtype)
        if not has_mask(file, frames_path=path):
            refuse_polarity(file, mask_good_is)
        events = _spread(frames, np.any(missing, axis=1))
        detector = masked_by_values(detector, file, path, events)
        flags = np.where(lacking, np.uint32(PixelFlag.INVALID), np.uint32(0))
        return FrameFacts(
            path=path,
            dtype=frames.dtype.newbyteorder("="),
            events_per_chunk=int(frames.chunks[0]) if frames.chunks else 1,
            detector=detector.with_mask(detector.mask | flags) if lacking.any() else detector,
            missing=missing | marked,
            marked=marked,
            lacking=lacking,
            fill=fill if marked.any() else fill_of(frames),
            files=tuple(FileStamp.of(name) for name in file.opened),
            named=dict(file.named),
        )


def refuse_polarity(file: Hdf5File, mask_good_is: int | None) -> None:
    """Refuse a word on a mask that is not there.

    Raises
    ------
    UsageError
        If there is one.
    """
    if mask_good_is is not None:
        raise UsageError(
            f"--mask-good-is: expected a mask in {file.path}, found none; give it with --mask FILE"
        )


def fill_of(frames: h5py.Dataset) -> int | float:
    """What stands in pixels that are missing: what the file says, or else what none delivers."""
    declared = frames.id.get_create_plist().fill_value_defined()
    if frames.dtype.kind != "f" and declared == h5py.h5d.FILL_VALUE_USER_DEFINED:
        return int(frames.fillvalue)
    return illegal_value(frames.dtype)


def _in_window(facts: FrameFacts, window: Window | None) -> NDArray[np.bool_]:
    """Pixels that every event lacks, as a window shows them."""
    if window is None:
        return facts.lacking
    shown = take_window(facts.lacking[np.newaxis], facts.detector, window)
    return np.asarray(shown[0], np.bool_)


def _read_parts(
    frames: Hdf5Frames,
    facts: FrameFacts,
    events: Sequence[int],
    pixels: NDArray[np.generic],
    reasons: NDArray[np.uint32],
) -> dict[int, NDArray[np.bool_]]:
    """Read what can be read of frames that are not whole; see `sfxreduce.run.run.Reading`."""
    found = {}
    for place in np.flatnonzero(reasons).tolist():
        event = events[place]
        parts = frames.read_parts(event, facts.missing[event] & ~facts.marked[event], facts.fill)
        if parts is None:
            continue
        lost = parts[1] | pixels_missing(parts[0], facts.marked[event], fill=facts.fill)
        # What every event lacks is no hole of this one.
        if (lost & ~facts.lacking).any() and not lost.all():
            pixels[place] = parts[0]
            found[place] = lost & ~facts.lacking
    return found


def _spread(frames: h5py.Dataset, holes: NDArray[np.bool_]) -> list[tuple[h5py.Dataset, int]]:
    """A few events of those that are whole, spread evenly over the run."""
    whole = np.flatnonzero(~holes)
    spread = np.linspace(0, whole.size - 1, min(whole.size, MASK_FRAMES)).astype(int)
    return [(frames, int(event)) for event in whole[spread]]


def masked_by_values(
    detector: Detector,
    file: Hdf5File,
    frames_path: str,
    events: Sequence[tuple[h5py.Dataset, int]],
) -> Detector:
    """Detector with the pixels masked that are no measurement in any of some events.

    Below the file's underload value, and, where it has no mask, sentinels.

    Parameters
    ----------
    events : sequence of tuple
        A dataset and a place in it.
    """
    least, is_masked = (
        underload_of(file, frames_path=frames_path),
        has_mask(file, frames_path=frames_path),
    )
    if is_masked and math.isnan(least):
        return detector
    sample = []
    for frames, event in events:
        # One that cannot be read says nothing of the mask; it is flagged when its turn comes.
        with suppress(*HDF5_ERRORS, SourceError):
            check_chunks(frames, event, event + 1)
            sample.append(np.asarray(frames[event]).reshape(detector.frame_shape))
    mask = detector.mask
    if not is_masked:
        sentinels = lasting_sentinels(sample, count_cutoff=detector.saturation_adu)
        mask = mask if sentinels is None else mask | sentinels
    if not math.isnan(least):
        below = lasting_underloads(sample, least=least)
        # What a mask or a sentinel says of a pixel is more than that it is low.
        mask = mask if below is None else np.where(mask == 0, below, mask)
    return detector if mask.all() else detector.with_mask(mask)


@lru_cache(maxsize=16)
def _places(
    stamp: FileStamp,
    path: str,
    roots: tuple[str, ...],
    owner: FileStamp,  # noqa: ARG001 - part of the key: a link may lead to another file
) -> ChunkPlaces | None:
    """Where the chunks of the frames at a path lie, taken down once a process."""
    # Where that fails, HDF5 may still read some events, and says which it cannot.
    with open_hdf5(stamp.path, roots) as file, suppress(*HDF5_ERRORS):
        return chunk_places(file.trusted(path))
    return None


@lru_cache(maxsize=16)
def _decoded_share(source: CxiFrames, stamp: FileStamp, window: Window) -> float:  # noqa: ARG001 - the stamp is part of the key
    """Share of an event that is decoded to read a window, looked up once a process."""
    with source.opened() as frames:
        return frames.decoded_share(window)


@lru_cache(maxsize=16)
def _layout(
    stamp: FileStamp, data_path: str, roots: tuple[str, ...], mask_good_is: int | None
) -> Layout | None:
    """Layout of a run store that could take the chunks of a run over."""
    facts = _facts(stamp, data_path, roots, mask_good_is)
    with open_hdf5(stamp.path, roots) as file:
        frames = file.trusted(facts.path)
        if facts.lacking.any():
            return None  # Of what was never stored there is no chunk to copy.
        return file.attempt(lambda: chunk_layout(frames, facts.detector, facts.holes), facts.path)
