"""Runs of the European XFEL, read in place from the files of the detector's modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError, SfxReduceError, SourceError
from sfxreduce.io.readers.count_mask import MASK_FRAMES, lasting_sentinels
from sfxreduce.io.readers.crop import take_window
from sfxreduce.io.readers.euxfel.index import IMAGES, EventRows, index_run, run_files
from sfxreduce.io.readers.hdf5.file import FileStamp, Hdf5File, open_hdf5
from sfxreduce.io.readers.hdf5.guard import check_chunks
from sfxreduce.io.readers.hdf5.unwritten import find_holes
from sfxreduce.io.store.metadata import illegal_value
from sfxreduce.run.columns import event_columns, plain_text
from sfxreduce.run.detector import Detector, PixelFlag
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window

__all__ = ["EuxfelFrames", "open_euxfel"]

PIXEL_SIZES_M = {"AGIPD": 200e-6, "LPD": 500e-6}
"""Of the square pixels of these detectors; those of a DSSC are hexagons."""

MOST_MASKS = 16
"""Pictures of a module that its mask is made from; as many as of a CXI file."""


def open_euxfel(folder: Path, source: str) -> Run:
    """Open the corrected data of a detector in a run's folder.

    An event is a pulse of which any module has a picture. Modules that have none of it are missing
    panels of this event; those that have none at all are a masked region.

    Parameters
    ----------
    source : str
        Name of the detector, ``SPB_DET_AGIPD1M-1``.

    Raises
    ------
    RunNotFound
        If there are no files in the folder.
    UsageError
        If EXtra-data is not installed, there is no such detector, or its data are raw.
    SourceError
        If a file is damaged.
    SchemaError
        If modules are of several shapes or types, or no pixel is good.
    """
    files = run_files(folder)
    facts = _facts(tuple(map(FileStamp.of, files)), source)
    rows = facts.rows
    paths = tuple(sorted({Path(path) for path, _ in rows.files}))
    ids = [f"{train}:{pulse}" for train, pulse in zip(rows.train, rows.pulse, strict=True)]
    columns = event_columns(
        len(ids),
        event_id=ids,
        timestamp_ns=rows.time_ns,
        source_file=[str(folder)] * len(ids),
        source_event=np.arange(len(ids)),
    )
    carried = {"train_id": rows.train, "pulse_id": rows.pulse, "cell_id": rows.cell}
    for name, values in carried.items():
        first, second = name.split("_")
        # Where the virtual CXI files of the facility have them.
        path = f"/entry_1/{first}{second.capitalize()}"
        columns[name] = ("event", values.astype(np.int64), {"path": path})
    frames = EuxfelFrames(
        path=str(folder),
        source=source,
        n_events=len(ids),
        frame_shape=facts.detector.frame_shape,
        dtype=facts.dtype,
        n_bytes=sum(path.stat().st_size for path in paths),
        inputs=paths,
    )
    return Run(
        source=frames,
        columns=columns,
        name=plain_text(folder.name),
        provenance=plain_text(f"read from {source} in {folder.name}"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EuxfelFrames:
    """Frames of a run of the European XFEL; see `sfxreduce.run.run.FrameSource`.

    Parameters
    ----------
    path, source : str
        The run's folder, and the detector's name.
    frame_shape : tuple of int
        (module, y, x).
    inputs : tuple of Path
        The files of the detector's modules.
    """

    path: str
    source: str
    n_events: int
    frame_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    n_bytes: int
    inputs: tuple[Path, ...]

    @property
    def detector(self) -> Detector:
        """Geometry, which no file has, and mask."""
        return self._facts().detector

    @property
    def fill(self) -> float:
        """See `sfxreduce.run.run.DeclaresMissing`."""
        return illegal_value(self.dtype)

    @property
    def lacking(self) -> NDArray[np.bool_]:
        """See `sfxreduce.run.run.DeclaresMissing`."""
        return self._facts().lacking

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events; see `sfxreduce.run.run.FrameSource.read`."""
        frames = np.full((len(events), *self.frame_shape), self.fill, self.dtype)
        try:
            facts = self._facts()
            given = (len(facts.rows.train), facts.detector.frame_shape, facts.dtype)
            if given != (self.n_events, self.frame_shape, self.dtype):
                return self._nothing(events, window, Reason.UNEXPECTED_FORMAT)
            unread = _read_modules(facts, events, frames)
        except SfxReduceError:
            # The files were there when the run was opened; now its events cannot be judged.
            return self._nothing(events, window, Reason.FILE_UNREADABLE)
        absent = facts.missing[list(events)]
        reasons = np.where(absent.any(axis=1), np.uint32(Reason.DATA_HOLE), np.uint32(0))
        reasons[unread.any(axis=1)] |= np.uint32(Reason.READ_ERROR)
        gone = absent | unread
        if window is not None:
            return Reading(pixels=take_window(frames, facts.detector, window), reasons=reasons)
        n_lacking = np.count_nonzero(facts.lacking.any(axis=(1, 2)))
        missing = {
            place: np.array(np.broadcast_to(gone[place][:, None, None], self.frame_shape))
            for place in np.flatnonzero(reasons).tolist()
            if np.count_nonzero(gone[place]) < len(gone[place]) - n_lacking
        }
        return Reading(pixels=frames, reasons=reasons, missing=missing)

    def _nothing(self, events: Sequence[int], window: Window | None, reason: Reason) -> Reading:
        shape = self.frame_shape if window is None else window.shape
        return Reading(
            pixels=np.zeros((len(events), *shape), self.dtype),
            reasons=np.full(len(events), reason, np.uint32),
        )

    def _facts(self) -> _EuxfelFacts:
        files = run_files(Path(self.path))
        return _facts(tuple(map(FileStamp.of, files)), self.source)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _EuxfelFacts:
    """What a process remembers of a run.

    Parameters
    ----------
    missing : ndarray of bool
        Shape (event, module): modules without a picture, but for those that never have one.
    lacking : ndarray of bool
        In the shape of a frame: pixels of modules that never have a picture.
    """

    rows: EventRows
    dtype: np.dtype[np.generic]
    detector: Detector
    missing: NDArray[np.bool_]
    lacking: NDArray[np.bool_]


@lru_cache(maxsize=4)
def _facts(stamps: tuple[FileStamp, ...], source: str) -> _EuxfelFacts:
    """Look at the run behind stamps, once a process."""
    rows = index_run([Path(stamp.path) for stamp in stamps], source)
    shape, dtype = _unwritten(rows)
    missing = rows.file < 0
    where = Path(stamps[0].path).parent
    always: NDArray[np.bool_] = np.logical_and.reduce(missing, axis=0)
    if always.all():
        raise SchemaError(f"{where}: expected pictures of {source}, found none; was it off?")
    n_modules = missing.shape[1]
    lacking = np.zeros((n_modules, *shape), np.bool_)
    lacking[always] = True
    size = next((m for kind, m in PIXEL_SIZES_M.items() if kind in source), float("nan"))
    bare = Detector.unplaced(source, lacking.shape)
    detector = Detector(
        name=source,
        panel_shape=bare.panel_shape,
        panels=bare.panels,
        stacked=True,
        pixel_size_m=size,
    )
    mask = _mask(rows, lacking.shape)
    mask[lacking] = PixelFlag.INVALID
    if mask.all():
        raise SchemaError(f"{where}: expected good pixels of {source}, found none")
    return _EuxfelFacts(
        rows=rows,
        dtype=dtype,
        detector=detector.with_mask(mask),
        missing=missing & ~always,
        lacking=lacking,
    )


def _unwritten(rows: EventRows) -> tuple[tuple[int, int], np.dtype[np.generic]]:
    """Take rows that were never written for absent; shape and dtype of a module's picture."""
    kinds = set()
    for number, (path, source) in enumerate(rows.files):
        with open_hdf5(path) as file:
            data = file.dataset(f"/{IMAGES.format(source=source, key='data')}")
            if data is None or data.ndim != 3 or data.dtype.kind not in "iuf":
                raise SchemaError(f"{path}: expected pictures of {source}, found none")
            kinds.add((data.shape[1:], data.dtype.newbyteorder("=")))
            holes = find_holes(file, data)
        here = np.nonzero(rows.file == number)
        rows.file[tuple(axis[holes[rows.row[here]]] for axis in here)] = -1
    if len(kinds) != 1:
        raise SchemaError(
            f"{Path(rows.files[0][0]).parent}: expected modules of one shape and type, found "
            f"{sorted(map(str, kinds))[:3]}"
        )
    return kinds.pop()


def _mask(rows: EventRows, shape: tuple[int, ...]) -> NDArray[np.uint32]:
    """Pixels that are bad in every picture that is looked at.

    What is bad in some pictures only stays good, as for masks of CXI files: leaving it out
    everywhere could hide Bragg peaks. The facility's bits say why a pixel is bad, in a code of its
    own; here it is bad by any of them.
    """
    mask = np.zeros(shape, np.uint32)
    for module in range(shape[0]):
        events = np.flatnonzero(rows.file[:, module] >= 0)
        spread = np.linspace(0, events.size - 1, min(events.size, MOST_MASKS)).astype(int)
        told = [one != 0 for one in _stored(rows, events[spread], module, "mask")]
        if told:
            mask[module][np.all(told, axis=0)] = PixelFlag.BAD
        elif events.size:
            few = events[np.unique(spread[:: max(1, spread.size // MASK_FRAMES)])]
            lasting = lasting_sentinels(_stored(rows, few, module, "data"))
            mask[module] |= np.uint32(0) if lasting is None else lasting
    return mask


def _stored(
    rows: EventRows, events: NDArray[np.int64], module: int, key: str
) -> list[NDArray[np.generic]]:
    """Pictures or masks of a module in some events; none of files without such a dataset."""
    found: list[NDArray[np.generic]] = []
    numbers = rows.file[events, module]
    for number in np.unique(numbers).tolist():
        path, source = rows.files[number]
        with open_hdf5(path) as file:
            dataset = file.dataset(f"/{IMAGES.format(source=source, key=key)}")
            if dataset is None:
                continue
            holes = find_holes(file, dataset)
            for row in rows.row[events[numbers == number], module].tolist():
                if row >= len(holes) or holes[row]:
                    raise SourceError(
                        f"{path}: the {key} of {source} was not written whole; fetch the file again"
                    )
                found.append(_taken(file, dataset, row, row + 1)[0])
    return found


def _read_modules(
    facts: _EuxfelFacts, events: Sequence[int], frames: NDArray[np.generic]
) -> NDArray[np.bool_]:
    """Fill in the pictures that are there; says which could not be read, shape (event, module)."""
    rows, chosen = facts.rows, np.asarray(events, np.int64)
    numbers = rows.file[chosen]
    unread = np.zeros(numbers.shape, np.bool_)
    for number in np.unique(numbers[numbers >= 0]).tolist():
        path, source = rows.files[number]
        for module in np.unique(np.nonzero(numbers == number)[1]).tolist():
            places = np.flatnonzero(numbers[:, module] == number)
            where = rows.row[chosen[places], module]
            try:
                with open_hdf5(path) as file:
                    data = file.trusted(f"/{IMAGES.format(source=source, key='data')}")
                    for span in _spans(where):
                        lost = _fill_span(file, data, where[span], frames[:, module], places[span])
                        unread[lost, module] = True
            except SfxReduceError:
                unread[places, module] = True
    return unread


def _spans(rows: NDArray[np.int64]) -> Iterator[slice]:
    """Runs of rows that follow one another."""
    cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    yield from (slice(a, b) for a, b in pairwise(cuts) if b > a)


def _fill_span(
    file: Hdf5File,
    data: h5py.Dataset,
    rows: NDArray[np.int64],
    frames: NDArray[np.generic],
    places: NDArray[np.int64],
) -> list[int]:
    """Read consecutive rows, one by one if that fails; places of those that cannot be read."""
    first, last = int(rows[0]), int(rows[-1])
    try:
        frames[places] = _taken(file, data, first, last + 1)
    except SourceError:
        if first == last:
            return [int(places[0])]
        return [
            lost
            for row, place in zip(rows.tolist(), places.tolist(), strict=True)
            for lost in _fill_span(file, data, np.array([row]), frames, np.array([place]))
        ]
    return []


def _taken(file: Hdf5File, data: h5py.Dataset, start: int, stop: int) -> NDArray[np.generic]:
    file.attempt(partial(check_chunks, data, start, stop), str(data.name))
    return np.asarray(file.attempt(lambda: data[start:stop], str(data.name)))
