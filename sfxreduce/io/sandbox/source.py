"""Runs that nobody vouches for: read by a process that may crash, hang or be taken over.

The libraries that unpack foreign files are large, and written in C. So another process calls them,
which has limits on memory, processor time and files, and which hands over numbers and text only.
What it cannot read, or dies of, is undecided; this process goes on.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SfxReduceError, SourceError
from sfxreduce.io.sandbox.answers import OpenedRun, opened_run
from sfxreduce.io.sandbox.process import ProcessLimits, ReaderDied, ReaderProcess
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window

__all__ = ["UntrustedFrames", "open_untrusted"]

MOST_OPEN_BYTES = 2 << 30
"""Most bytes of mask, columns and truth of a run."""

ASKED_BYTES = 64 << 20
"""Pixels that are asked for at once, unless one event has more."""

MOST_DEATHS = 16
"""Deaths of its process after which the rest of a run is not tried any more."""

MOST_READERS = 4


def open_untrusted(
    paths: Sequence[str],
    *,
    data_path: str,
    roots: Sequence[str],
    limits: ProcessLimits | None = None,
) -> Run:
    """Open a run through a process of its own; see `sfxreduce.io.open.open_run`.

    Parameters
    ----------
    paths : sequence of str
        Absolute.

    Raises
    ------
    SfxReduceError
        Whatever opening it raises.
    SourceError
        If the process dies of it.
    """
    asked = _Asked(
        paths=tuple(paths),
        data_path=data_path,
        roots=tuple(roots),
        limits=limits or ProcessLimits(),
    )
    opened = _reader(asked).open()
    facts = opened.facts
    return Run(
        source=UntrustedFrames(
            asked=asked,
            path=facts["path"],
            n_events=facts["n_events"],
            frame_shape=opened.detector.frame_shape,
            dtype=np.dtype(facts["dtype"]),
            n_bytes=facts["n_bytes"],
            inputs=tuple(Path(str(name)) for name in facts["inputs"]),
            fill=facts["fill"],
        ),
        columns=opened.columns,
        truth=opened.truth,
        experiment=facts["experiment"],
        name=facts["name"],
        provenance=facts["provenance"],
        events_per_block=facts["events_per_block"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a process is to open, and what it may use for it."""

    paths: tuple[str, ...]
    data_path: str
    roots: tuple[str, ...]
    limits: ProcessLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class UntrustedFrames:
    """Frames that another process reads. Holds names and numbers only.

    Parameters
    ----------
    frame_shape : tuple of int
    dtype : dtype
        Of a pixel.
    fill : int or float
        See `sfxreduce.run.run.DeclaresMissing`.
    """

    asked: _Asked
    path: str
    n_events: int
    frame_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    n_bytes: int
    inputs: tuple[Path, ...]
    fill: float

    @property
    def lacking(self) -> NDArray[np.bool_]:
        """Nothing: the mask has it."""
        return np.zeros(self.frame_shape, np.bool_)

    @property
    def detector(self) -> Detector:
        """Geometry and mask."""
        return _reader(self.asked).open().detector

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events; see `sfxreduce.run.run.FrameSource.read`."""
        shape = self.frame_shape if window is None else window.shape
        pixels = np.zeros((len(events), *shape), self.dtype)
        reasons = np.zeros(len(events), np.uint32)
        missing: dict[int, NDArray[np.bool_]] = {}
        size = max(ASKED_BYTES // max(math.prod(shape) * self.dtype.itemsize, 1), 1)
        for start in range(0, len(events), size):
            part = slice(start, start + size)
            found = self._read(events[part], window, pixels[part], reasons[part])
            missing |= {start + place: lost for place, lost in found.items()}
        return Reading(pixels=pixels, reasons=reasons, missing=missing)

    def _read(
        self,
        events: Sequence[int],
        window: Window | None,
        pixels: NDArray[np.generic],
        reasons: NDArray[np.uint32],
    ) -> dict[int, NDArray[np.bool_]]:
        """Read a few events; if the process dies of them, one by one, to find the one it was."""
        try:
            reading = _reader(self.asked).read(self, events, window)
        except ReaderDied:
            missing: dict[int, NDArray[np.bool_]] = {}
            if len(events) == 1:
                reasons[:] = Reason.READ_ERROR
                return missing
            for i in range(len(events)):
                one = slice(i, i + 1)
                found = self._read(events[one], window, pixels[one], reasons[one])
                if found:
                    missing[i] = found[0]
            return missing
        except SfxReduceError:
            reasons[:] = Reason.FILE_UNREADABLE
            return {}
        reasons[:], pixels[:] = reading.reasons, reading.pixels
        return dict(reading.missing)


class _ReaderProcess:
    """A process that reads one run, and its successors if it dies."""

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked
        self._lock = threading.Lock()
        self._process: ReaderProcess | None = None
        self._opened: OpenedRun | None = None
        self._deaths = 0

    def open(self) -> OpenedRun:
        """Open the run, if that was not done yet; raises what `open_untrusted` raises."""
        with self._lock:
            if self._opened is not None:
                return self._opened
            try:
                return self._started()[1]
            except ReaderDied as error:
                raise SourceError(
                    f"{', '.join(self._asked.paths)}: the process that was to read it died of it: "
                    f"{error}; nothing of it was used, is it what it should be?"
                ) from error

    def read(
        self, source: UntrustedFrames, events: Sequence[int], window: Window | None
    ) -> Reading:
        """Read events.

        Raises
        ------
        ReaderDied
            If the process died of it.
        SourceError
            If too many have died, or the run is another one by now.
        """
        with self._lock:
            if self._deaths >= MOST_DEATHS:
                raise SourceError(f"{source.path}: too many processes died of it")
            process, opened = self._started()
            if opened.facts["n_events"] != source.n_events:
                raise SourceError(f"{source.path}: holds other events than when it was opened")
            shape = (len(events), *(source.frame_shape if window is None else window.shape))
            question = {"events": [int(event) for event in events], "window": _tiles(window)}
            n_bytes = math.prod(shape) * (source.dtype.itemsize + 1) + 4 * len(events)
            try:
                answer, arrays = process.ask(question, most_bytes=n_bytes)
            except ReaderDied:
                self._process = None
                self._deaths += 1
                raise
        places = answer.get("missing")
        kinds = [(array.shape, array.dtype) for array in arrays]
        whole = [(shape[:1], np.dtype(np.uint32)), (shape, source.dtype)]
        masks = [(source.frame_shape, np.dtype(np.bool_))] * len(arrays[2:])
        if (
            kinds != whole + masks
            or not isinstance(places, list)
            or len(places) != len(masks)
            or any(type(place) is not int or not 0 <= place < len(events) for place in places)
        ):
            raise SourceError(f"{source.path}: the process that reads it answered something else")
        missing = dict(zip(places, arrays[2:], strict=True))
        return Reading(pixels=arrays[1], reasons=arrays[0], missing=missing)

    def end(self) -> None:
        """End the process."""
        with self._lock:
            if self._process is not None:
                self._process.end()
            self._process = None

    def _started(self) -> tuple[ReaderProcess, OpenedRun]:
        """Return a living process with the run opened."""
        if self._process is not None and self._opened is not None:
            return self._process, self._opened
        process = ReaderProcess(self._asked.limits)
        question = {
            "paths": list(self._asked.paths),
            "data_path": self._asked.data_path,
            "roots": list(self._asked.roots),
        }
        try:
            answer, arrays = process.ask(question, most_bytes=MOST_OPEN_BYTES)
            opened = opened_run(answer, arrays, where=", ".join(self._asked.paths))
        except BaseException:
            process.end()
            self._deaths += 1
            raise
        self._process, self._opened = process, opened
        return process, opened


def _tiles(window: Window | None) -> dict[str, Any] | None:
    if window is None:
        return None
    return {
        "name": window.name,
        "tile_shape": [int(n) for n in window.tile_shape],
        "origins": [[int(n) for n in origin] for origin in window.origins],
    }


_readers: OrderedDict[tuple[int, _Asked], _ReaderProcess] = OrderedDict()
_readers_lock = threading.Lock()


def _reader(asked: _Asked) -> _ReaderProcess:
    """Reader of a run in this process; a forked one has to start its own."""
    key = (os.getpid(), asked)
    with _readers_lock:
        if key not in _readers:
            _readers[key] = _ReaderProcess(asked)
        _readers.move_to_end(key)
        old = [_readers.popitem(last=False)[1] for _ in range(len(_readers) - MOST_READERS)]
    for reader in old:
        reader.end()
    return _readers[key]


@atexit.register
def _end_all() -> None:
    for (owner, _), reader in _readers.items():
        if owner == os.getpid():
            reader.end()
