"""What scores events: the one protocol of every method, and what some of them can do besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Window
from sfxreduce.scorers.calibration.record import Measured, Reference
from sfxreduce.scorers.calibration.score_level import LevelRule

__all__ = ["Classifier", "Looking", "Scorer", "Stepwise", "Streamer", "Told"]


class Told(NamedTuple):
    """What a scorer says of some events.

    Parameters
    ----------
    score : ndarray of float32
        Shape (event,).
    kind : ndarray of uint8
        `sfxreduce.run.reasons.EventClass`, shape (event,); 0 where it is not known.
    reason : ndarray of uint32
        `sfxreduce.run.reasons.Reason` bits not to trust the score, shape (event,).
    """

    score: NDArray[np.float32]
    kind: NDArray[np.uint8]
    reason: NDArray[np.uint32]


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
    def threshold(self) -> float:
        """Smallest score of a hit unless another is asked for."""
        ...

    @property
    def model_sha256(self) -> str | None:
        """Of the model's weights; None for a scorer without a model."""
        ...

    @property
    def hit_scores(self) -> NDArray[np.float32]:
        """Scores of labelled hits it has not learned from, shape (hit,); none if it has none."""
        ...

    @property
    def hit_groups(self) -> NDArray[np.int32]:
        """Experiment of each of these hits, shape (hit,)."""
        ...

    @property
    def hit(self) -> str:
        """What those hits are, in words: "an event with ..."."""
        ...

    @property
    def reference(self) -> Reference | None:
        """What it was calibrated on, as far as that is known; None for a scorer without a model."""
        ...

    @property
    def measured(self) -> Measured:
        """What is known of it beside its threshold, for reports."""
        ...

    @property
    def level(self) -> LevelRule:
        """How its threshold follows the level of a run's own scores."""
        ...

    @property
    def adapts(self) -> bool:
        """Whether the run's gain and hot pixels are to be measured for it before scoring."""
        ...

    @property
    def needs_gpu(self) -> bool:
        """Whether it can only run on a worker with a GPU."""
        ...

    def window(self, detector: Detector) -> Window | None:
        """Pixels it wants to see; None for whole source frames."""
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
    """A scorer that also tells what kind of event it is. Classes are told, never used to drop."""

    def classify(self, pixels: NDArray[np.generic], detector: Detector) -> Told:
        """Score events, and tell the class of each and what is odd about it."""
        ...


class Looking(Protocol):
    """What a scorer makes of one event, tiles by tiles."""

    def add(self, pixels: NDArray[np.generic]) -> None:
        """Look at the pixels of the next step.

        Parameters
        ----------
        pixels : ndarray
            Shape (1, tile, row, column), in ADU.
        """
        ...

    def told(self) -> tuple[np.float32, np.uint8, np.uint32]:
        """Return score, class and reasons not to trust the score, as far as the event was seen."""
        ...


@runtime_checkable
class Stepwise(Protocol):
    """A scorer whose score only rises with every further tile."""

    def steps(self, detector: Detector) -> Sequence[Window]:
        """Cut its window into parts, in the order in which they are looked at."""
        ...

    def begin(self, detector: Detector) -> Looking:
        """Begin with an event."""
        ...


@runtime_checkable
class Streamer(Protocol):
    """A scorer that has events read for it, so that its device works while threads decode."""

    def stream(
        self,
        read: Callable[[range, NDArray[np.generic]], None],
        *,
        n_events: int,
        dtype: np.dtype[np.generic],
        detector: Detector,
    ) -> Told:
        """Score events and tell what they are; `read` is called on several threads at once.

        It writes the pixels of consecutive events, given as a range from 0 on, into an array.
        """
        ...
