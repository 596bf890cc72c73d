"""What a scorer brings along: its calibration, and how its threshold follows a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from sfxreduce.run.window import TileChoice
from sfxreduce.scorers.calibration.probability import ProbabilityMap, ReliabilityBin
from sfxreduce.scorers.calibration.windows import WindowLoss

__all__ = [
    "Calibration",
    "Curves",
    "FirstLook",
    "LevelRule",
    "Reference",
    "level_of",
    "level_rule",
]

FEWEST_SCORES = 20
"""With fewer events the lowest scores tell no level: not one lies below `_QUANTILE`."""

_QUANTILE = 0.05  # low, because most events of a run are blanks; chosen, not measured
# Seven experiments, each left out: 3 of 4,455 hits lost, 95.3 % of the blanks rejected or more.
_POWER = 0.75
_FAR_ABOVE = 0.5  # of the calibrated range; chosen, not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelRule:
    """How a threshold follows the level of a run.

    Parameters
    ----------
    power : float
        Share of a change of the level that the threshold takes part in; 0 leaves it alone.
    lowest, highest : float
        Range of levels in calibration. The threshold moves with levels between them; the one that
        was calibrated belongs to the lowest.
    """

    power: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0

    @property
    def most(self) -> float:
        """Farthest that the threshold moves for any run, as a difference of logits."""
        return self.power * (self.highest - self.lowest)

    def move(self, scores: ArrayLike) -> float:
        """How far the threshold moves for a run, as a difference of logits.

        Parameters
        ----------
        scores : array_like
            Of all events of the run, shape (event,); those that are not finite do not count.

        Returns
        -------
        float
            0 if there are too few scores, or if they all lie far above every calibrated level: then
            no blanks were seen.

        Examples
        --------
        >>> rule = LevelRule(power=0.5, lowest=-4.0, highest=-2.0)
        >>> [round(rule.move(np.full(50, expit(level))), 3) for level in (-9, -3, -2, 3)]
        [0.0, 0.5, 1.0, 0.0]
        """
        level = level_of(scores)
        width = self.highest - self.lowest
        if not self.power or math.isnan(level) or level > self.highest + _FAR_ABOVE * width:
            return 0.0
        return self.power * (min(max(level, self.lowest), self.highest) - self.lowest)

    def reduced(self, scores: ArrayLike, move: float) -> NDArray[np.float32]:
        """Scores of a run as those of a run of the lowest level, shape as given.

        Parameters
        ----------
        move : float
            `move` of the run.
        """
        seen: NDArray[np.float32] = _moved(np.asarray(scores, np.float32), -move)
        return seen

    def levelled(self, scores: ArrayLike) -> NDArray[np.float32]:
        """Scores of all events of a run as those of a run of the lowest level, shape as given.

        Parameters
        ----------
        scores : array_like
            Between 0 and 1.
        """
        return self.reduced(scores, self.move(scores))

    def threshold(self, calibrated: float, move: float) -> float:
        """Threshold of a run from the calibrated one.

        Examples
        --------
        >>> LevelRule().threshold(0.25, 0.0), round(LevelRule().threshold(0.25, math.log(3)), 6)
        (0.25, 0.5)
        """
        return float(_moved(np.float64(calibrated), move))


def level_of(scores: ArrayLike) -> float:
    """Level of a run: a low quantile of the logits of its scores; NaN if there are too few.

    Parameters
    ----------
    scores : array_like
        Between 0 and 1, shape (event,).
    """
    values = np.asarray(scores, np.float64)
    known = values[np.isfinite(values)]
    if known.size < FEWEST_SCORES:
        return math.nan
    # One of the scores, never a value between a blank's and a hit's.
    return float(logit(np.quantile(known, _QUANTILE, method="lower")))


def level_rule(runs: Sequence[ArrayLike]) -> LevelRule:
    """Rule that covers the levels of calibrated runs.

    Parameters
    ----------
    runs : sequence of array_like
        Scores of all events of each run, blanks among them.
    """
    levels = [level_of(scores) for scores in runs]
    known = [level for level in levels if math.isfinite(level)]
    if not known:
        return LevelRule()
    return LevelRule(power=_POWER, lowest=min(known), highest=max(known))


def _moved(scores: Any, by: float) -> Any:
    """Scores with so much added to their logits, in their own precision."""
    return expit(logit(scores) + scores.dtype.type(by)) if by else scores


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstLook:
    """How events are judged by their first tiles, so that the others of a blank need not be read.

    With E1 the score by the first tiles alone and E that by all of them, the score of an event is
    ``min(E1 / share, max(E, E1))``. It is known to be no more than E1 / share, and no less than
    that or E1, before the other tiles are read.

    Parameters
    ----------
    tiles : int
        That are looked at first, the nearest to the middle.
    share : float
        Of the threshold, that the first tiles of a hit reach.
    most_peaks : int
        Peaks that the first tiles of calibrated blanks show, at most.

    Examples
    --------
    >>> look = FirstLook(tiles=9, share=0.5, most_peaks=6)
    >>> first, whole = np.float32([0.01, 0.3, 0.7]), np.float32([0.9, 0.2, 0.8])
    >>> look.score(first, whole).tolist() == np.float32([0.02, 0.3, 0.8]).tolist()
    True
    """

    tiles: int
    share: float
    most_peaks: int = 0

    def most(self, first: NDArray[np.floating]) -> NDArray[np.float32]:
        """Highest score of events, by what their first tiles score; shape as given."""
        highest: NDArray[np.float32] = np.minimum(first / self.share, 1.0).astype(np.float32)
        return highest

    def score(
        self, first: NDArray[np.floating], whole: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Scores of events that were seen whole; shape as given."""
        seen: NDArray[np.float32] = np.minimum(self.most(first), np.maximum(first, whole))
        return seen


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """What a model was calibrated on. A test whose part is empty is skipped.

    Parameters
    ----------
    hit_scores, blank_scores : ndarray of float32
        Of labelled events the model has not learned from; the highest that their first tiles allow
        where these are looked at first, so that they can be compared with those of every event.
    blank_groups : ndarray of int32
        Experiment of each of these blanks, shape (blank,); empty where they are not told apart.
    envelope : ndarray of float64
        Shape (quantity, 2): lowest and highest of `QUANTITIES`.
    usual_shape : float
        Shape distance between calibrated experiments, see `usual_shape`.
    peaks : ndarray of float64
        Of calibrated hits the least and most width of peaks, in pixels, and number of peaks, shape
        (2, 2).
    """

    hit_scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    blank_scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    blank_groups: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    envelope: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    usual_shape: float = 0.0
    peaks: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Curves of a scorer for reports. A part that was not measured is empty.

    Parameters
    ----------
    window : TileChoice, optional
        Tiles it reads.
    loss : tuple of WindowLoss
        Hit loss through this window and others, the fewest tiles first.
    probability : ProbabilityMap, optional
        From scores, less the level of their run, to the probability that a frame shows diffraction.
    reliability : tuple of ReliabilityBin
        Such probabilities against what became true, on experiments the model had not seen.
    shows : str
        What counts as showing diffraction.
    """

    window: TileChoice | None = None
    loss: tuple[WindowLoss, ...] = ()
    probability: ProbabilityMap | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    shows: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """What a scorer brings along.

    Parameters
    ----------
    threshold : float, optional
        Smallest score of a hit unless the user gives another; without either nothing is decided.
    hit : str
        What counts as a hit, in words: "an event with ...".
    model_sha256 : str, optional
        Of the model's weights; none for a scorer without a model.
    hit_scores : ndarray of float32
        Scores of labelled hits it has not learned from, shape (hit,).
    hit_groups : ndarray of int32
        Experiment of each of these hits, shape (hit,).
    reference : Reference, optional
        What it was calibrated on, to compare a run with; none for a scorer without a model.
    level : LevelRule
        How its threshold follows the level of a run's own scores.
    curves : Curves
        What reports show of it.
    covers : tuple of str
        What the calibrated runs were like, a range in each.
    needs_conditions : bool
        Whether the run's gain and bad pixels have to be measured before it scores.
    fits_window : bool
        Whether all this was measured through the window that it looks through.
    highest : float, optional
        Highest score that the picture's tiles can give; none where scores have no such limit.
    first_look : FirstLook, optional
        How events are judged by their first tiles; none where all of them are looked at.
    """

    threshold: float | None = None
    hit: str = "what the labels call one"
    model_sha256: str | None = None
    hit_scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    hit_groups: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    reference: Reference | None = None
    level: LevelRule = field(default_factory=LevelRule)
    curves: Curves = field(default_factory=Curves)
    covers: tuple[str, ...] = ()
    needs_conditions: bool = False
    fits_window: bool = True
    highest: float | None = None
    first_look: FirstLook | None = None
