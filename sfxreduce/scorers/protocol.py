"""What scores events: the one protocol of every method, and what some of them can do besides."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    "Fitting",
    "LooksFirst",
    "Scorer",
    "Streamer",
    "calibration_of",
    "needs_gpu",
    "not_counted",
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
    width_px : ndarray of float32
        Their median width, a standard deviation in pixels, shape (event,); NaN without peaks.
    first : ndarray of float32, optional
        Score by the first tiles alone, shape (event,), of a scorer that looks at them first: class
        and peaks are of these tiles as well, whether the others were seen or not.
    """

    score: NDArray[np.float32]
    kind: NDArray[np.uint8]
    reason: NDArray[np.uint32]
    peaks: NDArray[np.int16]
    width_px: NDArray[np.float32]
    first: NDArray[np.float32] | None = None

    def of_events(self, events: NDArray[np.integer]) -> EventScores:
        """Return those of some events, by position."""
        return EventScores(
            score=self.score[events],
            kind=self.kind[events],
            reason=self.reason[events],
            peaks=self.peaks[events],
            width_px=self.width_px[events],
            first=None if self.first is None else self.first[events],
        )


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


@runtime_checkable
class LooksFirst(Protocol):
    """A scorer that can judge events by the first tiles of its window, and bound their score."""

    def first_window(self, detector: Detector) -> Window | None:
        """First tiles of its window; None where all of them are looked at together."""
        ...

    def look_first(self, parts: Iterable[NDArray[np.generic]], detector: Detector) -> EventScores:
        """Judge events by their first tiles.

        Parameters
        ----------
        parts : iterable of ndarray
            A few events each, shape (event, tile, row, column) of `first_window`, in ADU. The next
            may lie where the last one lay: a part is looked at before the next is asked for.

        Returns
        -------
        EventScores
            The score is the highest that an event can have by these tiles.
        """
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


def not_counted(n_events: int) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Peaks and their width of events whose peaks nobody counted, as `EventScores` has them."""
    return np.full(n_events, NOT_COUNTED, np.int16), np.full(n_events, np.nan, np.float32)


def needs_gpu(scorer: Scorer) -> bool:
    """Whether a scorer can only run on a worker with a GPU."""
    return isinstance(scorer, Streamer) and scorer.device != "cpu"


@runtime_checkable
class Fitting(Protocol):
    """A scorer whose calibration depends on the picture."""

    def calibrated_for(self, detector: Detector) -> Calibration:
        """Return what is known of it on pictures of a detector."""
        ...


def calibration_of(scorer: Scorer, detector: Detector | None = None) -> Calibration:
    """Calibration of a scorer; one that knows nothing where it brings none along.

    Parameters
    ----------
    detector : Detector, optional
        On whose pictures it is asked; on those of the usual size if not given.
    """
    if detector is not None and isinstance(scorer, Fitting):
        return scorer.calibrated_for(detector)
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
