"""Runs that grow while they are looked at: which events are there by now, and since when.

Nothing is believed for good: what a look finds is for scores that nothing rests on. The final
output is made of the run as it is read when nobody writes any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import (
    LeadsOutside,
    RunNotFound,
    SchemaError,
    SourceError,
    UnfinishedRun,
    UsageError,
)
from sfxreduce.io.files.being_written import being_written, hdf5_writer
from sfxreduce.io.open import HDF5_SUFFIXES, IMAGE_SUFFIXES
from sfxreduce.io.readers.hdf5.file import FileStamp
from sfxreduce.io.readers.hdf5.run import CxiFrames
from sfxreduce.io.readers.inputs import WILD, expand_input
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.run.run import FrameSource, Run, WrappedFrames

__all__ = ["Growing", "GrowingFile", "GrowingFolder", "GrowingStore", "Look", "Piece", "growing"]

Opener: TypeAlias = Callable[[Path], Run]

MOST_OPENED = 16
"""Files that are opened at a look: the events of these are scored before others are opened."""

NOT_YET = (RunNotFound, SchemaError, SourceError, UnfinishedRun)
"""What opening something raises that is not whole yet."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """A file of a run, or a run store, as far as it is there.

    Parameters
    ----------
    name : str
        Tells it from the other pieces of its run.
    changed_ns : ndarray of int64
        Time at which what holds each event was written, in nanoseconds since 1970, shape (event,);
        0 where an event is not there yet.
    """

    name: str
    run: Run
    changed_ns: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Look:
    """What is there of a run at a moment.

    Parameters
    ----------
    signs : frozenset
        Whatever differs from an earlier look once anything was written.
    has_more : bool
        Whether more is there than was looked at this time.
    """

    pieces: tuple[Piece, ...] = ()
    signs: frozenset[object] = frozenset()
    has_more: bool = False

    @property
    def n_events(self) -> int:
        """Events that are there."""
        return sum(int(np.count_nonzero(piece.changed_ns)) for piece in self.pieces)


class Growing(Protocol):
    """A run that may still be written."""

    def look(self) -> Look:
        """See what is there by now; damage of what is there is no reason to raise."""
        ...


def growing(path: Path, opened: Opener) -> Growing:
    """Make ready to look at a run; it need not be there yet.

    Parameters
    ----------
    path : Path
        A folder in which HDF5 files appear, or a glob or ``@list.txt`` of some; a run store whose
        shards appear; or an HDF5 file that is written so that others can read it (SWMR).
    opened : callable
        Opens what lies at a path, as `sfxreduce.open_run` does.

    Raises
    ------
    RunNotFound
        If there is no folder in which it could appear.
    """
    is_named_by_others = path.name.startswith("@") or any(sign in str(path) for sign in WILD)
    if not is_named_by_others and not path.absolute().parent.is_dir():
        raise RunNotFound(
            f"{path}: there is no folder {path.absolute().parent}; check the path given to --in"
        )
    if path.suffix.lower() == ".zarr" or (path / "zarr.json").exists():
        return GrowingStore(path, opened)
    if path.suffix.lower() in HDF5_SUFFIXES and not is_named_by_others and not path.is_dir():
        return GrowingFile(path, opened)
    return GrowingFolder(path, opened)


def _stamps(paths: Iterable[Path]) -> frozenset[object]:
    """Stamps of those files that are there."""
    stamps = set()
    for path in paths:
        with suppress(RunNotFound, SourceError):
            stamps.add(FileStamp.of(path))
    return frozenset(stamps)


class GrowingFolder:
    """A folder in which files appear; one that is open for writing does not count yet.

    Parameters
    ----------
    path, opened
        See `growing`.
    """

    def __init__(self, path: Path, opened: Opener) -> None:
        self._path = path
        self._opened = opened
        self._known: dict[Path, tuple[FileStamp, Piece | None]] = {}

    def look(self) -> Look:
        """See which files were closed. See `Growing`."""
        files: list[Path] = []
        with suppress(RunNotFound, SourceError):
            found = expand_input(self._path, (IMAGE_SUFFIXES, HDF5_SUFFIXES))
            files = [file.absolute() for file in found if file.is_file()]
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        if images:
            raise UsageError(
                f"--follow: expected HDF5 files or a run store, found {images[0].name}; wait until "
                "all images are there, and filter them without --follow"
            )
        stamps: dict[Path, FileStamp] = {}
        for file in files:
            with suppress(RunNotFound, SourceError):
                stamps[file] = FileStamp.of(file)
        new = [file for file, stamp in stamps.items() if self._known.get(file, ("",))[0] != stamp]
        closed = [file for file in new if not being_written([file], settle_seconds=0)]
        for file in closed[:MOST_OPENED]:
            self._look_at(file, stamps[file])
        there = (self._known[file] for file in files if file in self._known)
        return Look(
            pieces=tuple(piece for _, piece in there if piece is not None),
            signs=frozenset(stamps.values()),
            has_more=len(closed) > MOST_OPENED,
        )

    def _look_at(self, file: Path, stamp: FileStamp) -> None:
        piece = None
        with suppress(*NOT_YET):
            run = self._opened(file)
            changed = np.full(run.n_events, stamp.modified_ns, np.int64)
            piece = Piece(name=str(file), run=run, changed_ns=changed)
        self._known[file] = stamp, piece


class GrowingStore:
    """A run store whose shards appear.

    Parameters
    ----------
    path, opened
        See `growing`.
    """

    def __init__(self, path: Path, opened: Opener) -> None:
        self._path = path
        self._opened = opened
        self._run: tuple[frozenset[object], Run] | None = None

    def look(self) -> Look:
        """See which shards are there. See `Growing`."""
        names = (self._path / "zarr.json", self._path / "frames" / "zarr.json")
        signs = _stamps(names)
        if self._run is None or self._run[0] != signs:
            try:
                self._run = signs, self._opened(self._path)
            except LeadsOutside:
                raise
            except NOT_YET:
                return Look(signs=signs)
        run = self._run[1]
        source = _innermost(run.source)
        layout = source.layout if isinstance(source, ZarrFrames) else None
        if layout is None:
            raise UsageError(
                f"--follow: expected a run store, found {self._path}, of which nothing says what "
                "is there yet; wait until it is whole, and filter it without --follow"
            )
        changed = np.zeros(run.n_events, np.int64)
        for number in range(layout.n_shards(run.n_events)):
            start = number * layout.events_per_shard
            with suppress(OSError):
                facts = (self._path / "frames" / layout.shard_key(number)).stat()
                changed[start : start + layout.events_per_shard] = facts.st_mtime_ns
        piece = Piece(name="", run=run, changed_ns=changed)
        return Look(pieces=(piece,), signs=signs | {changed.tobytes()})


class GrowingFile:
    """An HDF5 file that grows while others may read it.

    Parameters
    ----------
    path, opened
        See `growing`.
    """

    def __init__(self, path: Path, opened: Opener) -> None:
        self._path = path
        self._opened = opened
        self._numbers = count(1)
        self._inputs: tuple[Path, ...] = (path,)
        self._looked_at: frozenset[object] = frozenset()
        self._last = Look()
        self._lists_others = False
        self._seen_ns = np.zeros(0, np.int64)

    def look(self) -> Look:
        """See which frames were written. See `Growing`."""
        signs = _stamps(self._inputs)
        # Files that a file lists may appear without a change of anything that is there.
        if not signs or (signs == self._looked_at and not self._lists_others):
            return self._last
        try:
            stamp = FileStamp.of(self._path)
            # A number of its own: what is known of the file now is not what it will be.
            as_of = replace(stamp, modified_ns=-next(self._numbers))
            run = self._opened(self._path)
            run = replace(run, source=_frozen(run.source, as_of))
            there = self._there(run)
        except LeadsOutside:
            raise
        except NOT_YET:
            return replace(self._last, signs=signs)  # and the next look tries again
        self._looked_at = signs
        self._inputs = run.source.inputs
        self._lists_others = not isinstance(_innermost(run.source), CxiFrames)
        changed = np.zeros(run.n_events, np.int64)
        changed[: self._seen_ns.size] = self._seen_ns[: changed.size]
        changed[there & (changed == 0)] = stamp.modified_ns
        self._seen_ns = changed
        piece = Piece(name="", run=run, changed_ns=changed)
        also = {run.n_events} if self._lists_others else set()
        self._last = Look(pieces=(piece,), signs=signs | also)
        return self._last

    def _there(self, run: Run) -> NDArray[np.bool_]:
        """Events that are written whole."""
        source = _innermost(run.source)
        if not isinstance(source, CxiFrames):
            return np.ones(run.n_events, np.bool_)
        there = np.zeros(run.n_events, np.bool_)
        written = source.written[: run.n_events]
        there[: written.size] = written
        step = source.events_per_chunk
        if step > 1 and there.any() and hdf5_writer(self._path):
            # Of the last chunk that is there, only some events may be.
            there[np.flatnonzero(there)[-1] // step * step :] = False
        return there


def _innermost(source: FrameSource) -> FrameSource:
    """The source that reads the files."""
    while isinstance(source, WrappedFrames):
        source = source.source
    return source


def _frozen(source: FrameSource, as_of: FileStamp) -> FrameSource:
    """Source that goes on to read a file that has grown since."""
    if isinstance(source, WrappedFrames):
        return replace(source, source=_frozen(source.source, as_of))
    return replace(source, as_of=as_of) if isinstance(source, CxiFrames) else source
