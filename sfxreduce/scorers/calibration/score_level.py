"""The run's own level: where the scores of its blanks lie, and a threshold that follows it.

Blanks of a noisy detector score higher than those of a quiet one, and so do hits. One threshold for
all runs is set by the noisiest blanks and costs hits elsewhere. Most events of a run are blanks,
so that a low quantile of its unlabelled scores tells its level. The threshold is calibrated on
scores from which the level was taken off, and moves with the level of the run at hand.

Levels are logits of scores. The move is never downwards, and none at all where the level is not
known: a threshold that is too low costs disk space, one that is too high costs hits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

__all__ = ["LevelRule", "level_of", "level_rule"]

FEWEST_SCORES = 20
"""With fewer events the lowest scores tell no level: not one lies below `_QUANTILE`."""

_QUANTILE = 0.05  # low, because most events of a run are blanks; chosen, not measured
# Seven experiments, each left out: none of 560 hits lost, 97.5 % of the blanks rejected or more.
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
