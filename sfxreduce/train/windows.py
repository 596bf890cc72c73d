"""What fewer tiles would lose of held-out events, for the choice of a model's window."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfxreduce.run.detector import Detector
from sfxreduce.run.window import FULL, TileChoice
from sfxreduce.scorers.calibration.windows import MEAN_LOSS, WindowLoss

__all__ = ["CHOICES", "low_quantile", "window_curve"]

CHOICES = (
    TileChoice(most=1),
    TileChoice(most=5),
    TileChoice(most=9),
    TileChoice(most=9, spread=True),
    TileChoice(most=13, spread=True),
    TileChoice(most=25),
    TileChoice(most=25, spread=True),
    FULL,
)
"""Windows that are tried, the smallest first."""


def window_curve(
    of_tiles: NDArray[np.floating], is_hit: NDArray[np.bool_], detector: Detector
) -> tuple[WindowLoss, ...]:
    """Measure windows on held-out events of one detector, the fewest tiles first.

    The threshold of each window is chosen on one half of the events and judged on the other, and
    the other way round.

    Parameters
    ----------
    of_tiles : ndarray
        Hit probability of every tile of the picture, the nearest to the middle first, shape (event,
        tile); the loudest tile speaks for the event.
    is_hit : ndarray of bool
        Shape (event,).
    """
    tried: dict[tuple[int, ...], TileChoice] = {}
    for choice in CHOICES:
        tried[tuple(np.sort(choice.columns(detector)).tolist())] = choice
    curve = []
    for columns, choice in tried.items():
        lost, kept = _both_ways(of_tiles[:, list(columns)].max(axis=1), is_hit)
        curve.append(
            WindowLoss(tiles=choice, mean_loss=lost, worst_loss=lost, least_specificity=1.0 - kept)
        )
    return tuple(curve)


def low_quantile(hit_scores: NDArray[np.floating], share: float) -> float:
    """Score below which no more than this share of the hits lies."""
    return float(np.quantile(hit_scores, share, method="lower"))


def _both_ways(score: NDArray[np.floating], is_hit: NDArray[np.bool_]) -> tuple[float, float]:
    """Shares of hits lost and of misses kept, each half judged by the threshold of the other."""
    half = np.zeros(len(score), np.bool_)
    for kind in (is_hit, ~is_hit):
        half[np.flatnonzero(kind)[::2]] = True
    low = np.zeros(len(score), np.bool_)
    for own in (half, ~half):
        others = score[is_hit & ~own]
        low[own] = score[own] < (low_quantile(others, MEAN_LOSS) if others.size else 0.0)
    return float(np.mean(low[is_hit])), float(np.mean(~low[~is_hit]))
