"""CrystFEL streams: which events of a run an indexer could make sense of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import LabelError, RunNotFound, SourceError
from sfxreduce.io.files.safe_read import open_file
from sfxreduce.io.readers.same_events import find_same_events
from sfxreduce.run.run import Run

__all__ = ["Mention", "read_stream"]

_LONGEST_LINE = 65_536
_CXI = (".cxi", ".h5", ".nxs")


class Mention(IntEnum):
    """What a stream says of an event; a larger value wins if it speaks of it twice."""

    ABSENT = 0
    NO_HIT = 1
    UNCLEAR = 2
    INDEXED = 3


@dataclass(slots=True, kw_only=True)
class _Chunk:
    """What was read of one chunk so far."""

    file: str = ""
    event: int = 0
    n_crystals: int = 0
    is_hit: bool = False
    is_whole: bool = False

    @property
    def seen(self) -> Mention:
        if self.n_crystals:
            return Mention.INDEXED
        return Mention.NO_HIT if self.is_whole and not self.is_hit else Mention.UNCLEAR


def read_stream(path: Path, *, run: Run) -> NDArray[np.int8]:
    """Read what a CrystFEL stream says of each event of a run.

    A chunk means the event whose ``source_file`` and ``source_event`` it names. Of another file
    that is there and names its events, as the CXI file of ``filter --cxi`` does, it is the event of
    that name, see `find_same_events`; events that this file does not hold are unclear, as nobody
    tried to index them. Of one that is gone, it is event N of the run if the file has the name of
    the store. Where no whole path agrees, the names of the files do, if that leaves no doubt.

    Parameters
    ----------
    path : Path
        Read line by line; lines that are not known are passed over.

    Returns
    -------
    ndarray of int8
        Shape (event,): `Mention` of each event.

    Raises
    ------
    RunNotFound
        If there is no such file.
    SourceError
        If it cannot be read.
    LabelError
        If no chunk is of this run, or it cannot be told which events are meant.
    """
    events = _EventsByFile(run)
    other = ""
    try:
        with open_file(path) as file:
            for chunk in _chunks(file):
                if not events.take(chunk, where=str(path)):
                    other = other or chunk.file
    except FileNotFoundError as error:
        raise RunNotFound(f"{path}: no such file; check the path given to --stream") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    found = events.exact if events.exact.any() else events.loose
    if events.shown.any():
        found[~events.shown & (found == Mention.ABSENT)] = Mention.UNCLEAR
    if not found.any():
        raise LabelError(
            f"{path}: no chunk is of {run.path} (read from '{events.example}'), the first is of "
            f"'{other}'; open the file that was indexed with --in"
        )
    return found


class _EventsByFile:
    """Finds the event of a chunk, by whole paths and, apart from that, by names of files."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._n_events = run.n_events
        self._same: dict[str, NDArray[np.int64] | None] = {}
        self.shown = np.zeros(run.n_events, np.bool_)
        self.exact = np.zeros(run.n_events, np.int8)
        self.loose = np.zeros(run.n_events, np.int8)
        files = [str(name) for name in run.columns["source_file"].values]
        self.example = next((name for name in files if name), "no file")
        self._own = Path(run.path)
        self._by_path: dict[tuple[str, int], int] = {}
        self._by_name: dict[tuple[str, int], int] = {}
        self._folders: dict[str, str] = {}
        self._paths = {name: str(Path(name).absolute()) for name in set(files) - {""}}
        for event, (name, place) in enumerate(
            zip(files, run.columns["source_event"].values.tolist(), strict=True)
        ):
            if name:
                _add(self._by_path, (self._paths[name], place), event)
                _add(self._by_name, (Path(name).name, place), event)
        self._sources = set(self._paths.values())

    def take(self, chunk: _Chunk, *, where: str) -> bool:
        """Take a chunk in; False if it is of another run."""
        path = str(Path(chunk.file).absolute())
        if path in self._sources:
            found, state = self._by_path.get((path, chunk.event)), self.exact
        elif (same := self._same_events(path)) is not None:
            known = chunk.event < same.size and same[chunk.event] >= 0
            found, state = int(same[chunk.event]) if known else None, self.exact
        elif self._is_export(chunk) and path == str(self._own.absolute().with_name(_name(chunk))):
            found, state = self._position(chunk), self.exact
        else:
            found, state = self._by_names(chunk), self.loose
        if found is None:
            return False
        # Two files of one name in two folders cannot both be of this run.
        if state is self.loose and self._folders.setdefault(_name(chunk), path) != path:
            found = -1
        if found < 0:
            raise LabelError(
                f"{where}: '{chunk.file} //{chunk.event}' may mean more than one event of "
                f"{self._own}; index the run's own files by their whole paths"
            )
        state[found] = max(state[found], chunk.seen)
        return True

    def _same_events(self, path: str) -> NDArray[np.int64] | None:
        """Positions of the events of a file that names them; None of any other."""
        if path not in self._same:
            file = Path(path)
            known = file.suffix in _CXI and file.is_file()
            self._same[path] = find_same_events(file, self._run) if known else None
        same = self._same[path]
        if same is not None:
            self.shown[same[same >= 0]] = True
        return same

    def _by_names(self, chunk: _Chunk) -> int | None:
        """Position by the name of the file alone; -1 if in doubt."""
        by_source = self._by_name.get((_name(chunk), chunk.event))
        own = self._position(chunk) if self._is_export(chunk) else None
        if by_source is None or own is None or by_source == own:
            return own if by_source is None else by_source
        return -1

    def _is_export(self, chunk: _Chunk) -> bool:
        """Whether a chunk's file has the name of the hits, as what `filter` writes may have."""
        file = Path(chunk.file)
        if "source_index" not in self._run.columns:
            return False  # What has the name of a whole run may hold its hits alone.
        return file.suffix in _CXI and file.stem == self._own.stem

    def _position(self, chunk: _Chunk) -> int | None:
        return chunk.event if chunk.event < self._n_events else None


def _add(table: dict[tuple[str, int], int], key: tuple[str, int], event: int) -> None:
    table[key] = -1 if key in table else event


def _name(chunk: _Chunk) -> str:
    return Path(chunk.file).name


def _chunks(file: BinaryIO) -> Iterator[_Chunk]:
    """Chunks of a stream that name a file, also one that ends early."""
    chunk: _Chunk | None = None
    for line in _lines(file):
        if line.startswith("----- Begin chunk"):
            if chunk is not None and chunk.file:
                yield chunk
            chunk = _Chunk()
        elif chunk is None:
            continue
        elif line.startswith("----- End chunk"):
            chunk.is_whole = True
            if chunk.file and chunk.event >= 0:
                yield chunk
            chunk = None
        else:
            _read_line(chunk, line)
    if chunk is not None and chunk.file and chunk.event >= 0:
        yield chunk


def _read_line(chunk: _Chunk, line: str) -> None:
    """Take one line of a chunk in."""
    if line.startswith("Image filename:"):
        chunk.file = line.partition(":")[2].strip()
    elif line.startswith("Event:"):
        number = line.partition("//")[2].strip()
        # What names no position is of no event that a run has.
        chunk.event = (
            int(number) if number.isascii() and number.isdigit() and len(number) < 19 else -1
        )
    elif line.startswith("--- Begin crystal"):
        chunk.n_crystals += 1
    elif line.startswith("hit ="):
        chunk.is_hit = line.partition("=")[2].strip() != "0"


def _lines(file: BinaryIO) -> Iterator[str]:
    """Lines of a file, each cut at a length that no line of interest has."""
    is_start = True
    while line := file.readline(_LONGEST_LINE):
        if is_start:
            yield line.decode(errors="backslashreplace").rstrip("\r\n")
        is_start = line.endswith(b"\n")
