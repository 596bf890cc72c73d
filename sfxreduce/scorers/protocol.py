"""What scores events: the one protocol of every method, and what some of them can do besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import UsageError
from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Window
from sfxreduce.scorers.calibration.record import Calibration

__all__ = [
    "NOT_COUNTED",
    "Classifier",
    "EventScores",
    "OpenEvent",
    "Scorer",
    "Stepwise",
    "Streamer",
    "calibration_of",
    "counted",
    "needs_gpu",
    "own_threshold",
]


NOT_COUNTED = -1
"""Number of peaks of an event whose peaks were not counted."""


class EventScores(NamedTuple):
    """What a scorer says of some events.

    Parameters
    ----------
    score : ndarray of float32
        Shape (event,).
    kind : ndarray of uint8
        `sfxreduce.run.reasons.EventClass`, shape (event,); 0 where it is not known.
    reason : ndarray of uint32
        `sfxreduce.run.reasons.Reason` bits not to trust the score, shape (event,).
    peaks : ndarray of int16
        Peaks by the conventional rule, shape (event,); `NOT_COUNTED` where nobody looked.
    """

    score: NDArray[np.float32]
    kind: NDArray[np.uint8]
    reason: NDArray[np.uint32]
    peaks: NDArray[np.int16]


class Scorer(Protocol):
    """Turns pixels into one number per event; higher means more like a hit.

    A scorer is small when pickled: it names its model by path, and each worker loads it once.
    """

    @property
    def name(self) -> str:
        """What it is called in reports: "cnn", "peaks"."""
        ...

    @property
    def settings(self) -> str:
        """How it is set, in words, for reports and manifests."""
        ...

    @property
    def calibration(self) -> Calibration | None:
        """What is known of it before it sees a run; None if nothing is."""
        ...

    def window(self, detector: Detector) -> Window | None:
        """Pixels it reads; None for whole source frames."""
        ...

    def __call__(self, pixels: NDArray[np.generic], detector: Detector) -> NDArray[np.float32]:
        """Score events.

        Parameters
        ----------
        pixels : ndarray
            Shape (event, tile, row, column) of the window, or (event, frame axes), in ADU.

        Returns
        -------
        ndarray of float32
            Shape (event,).
        """
        ...


@runtime_checkable
class Classifier(Protocol):
    """A scorer that also tells the class of an event. No event is ever dropped for its class."""

    def classify(self, pixels: NDArray[np.generic], detector: Detector) -> EventScores:
        """Score events, with the class of each and the reasons not to trust its score."""
        ...


class OpenEvent(Protocol):
    """One event that is being scored, some tiles at a time."""

    def add(self, pixels: NDArray[np.generic]) -> None:
        """Take in the pixels of the next step.

        Parameters
        ----------
        pixels : ndarray
            Shape (1, tile, row, column), in ADU.
        """
        ...

    def so_far(self) -> EventScores:
        """Return what is known of the one event by the tiles taken in."""
        ...


@runtime_checkable
class Stepwise(Protocol):
    """A scorer that can stop early: its score only rises with every further tile."""

    def steps(self, detector: Detector) -> Sequence[Window]:
        """Cut its window into parts, in the order in which they are read."""
        ...

    def begin(self, detector: Detector) -> OpenEvent:
        """Begin with an event."""
        ...


@runtime_checkable
class Streamer(Protocol):
    """A scorer that can stream to a device, which works while threads decode."""

    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda" or "cuda:N"."""
        ...

    def stream(
        self,
        read: Callable[[range, NDArray[np.generic]], None],
        *,
        n_events: int,
        dtype: np.dtype[np.generic],
        detector: Detector,
    ) -> EventScores:
        """Score events and classify them; `read` is called on several threads at once.

        It writes the pixels of consecutive events, given as a range from 0 on, into an array.
        """
        ...


def counted(of_tiles: NDArray[np.integer] | None, *, n_events: int) -> NDArray[np.int16]:
    """Peaks of events as `EventScores` has them.

    Parameters
    ----------
    of_tiles : ndarray of int, optional
        Shape (event, tile); none where they were not counted.
    """
    if of_tiles is None:
        return np.full(n_events, NOT_COUNTED, np.int16)
    return np.minimum(of_tiles.sum(axis=1), np.iinfo(np.int16).max).astype(np.int16)


def needs_gpu(scorer: Scorer) -> bool:
    """Whether a scorer can only run on a worker with a GPU."""
    return isinstance(scorer, Streamer) and scorer.device != "cpu"


def calibration_of(scorer: Scorer) -> Calibration:
    """Calibration of a scorer; one that knows nothing where it brings none along."""
    return scorer.calibration or Calibration()


def own_threshold(scorer: Scorer) -> float:
    """Smallest score of a hit, as a scorer brings it along.

    Raises
    ------
    UsageError
        If it brings none along.
    """
    threshold = calibration_of(scorer).threshold
    if threshold is None:
        raise UsageError(
            f"scorer '{scorer.name}': expected a threshold, found none; pass --threshold with the "
            "smallest score of a hit"
        )
    return threshold
