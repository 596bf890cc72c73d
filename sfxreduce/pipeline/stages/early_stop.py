"""Which scores rest on a part of the window, and what another threshold would make of them.

An event is closed, as a sure hit, where its first tiles reach a score that no threshold of its run
will be above. Its score is then a lower bound: the score on all tiles is no less.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfxreduce.run.detector import Detector
from sfxreduce.scorers.protocol import Scorer, Stepwise

__all__ = ["closed_early", "rechecked", "reopened"]


def closed_early(
    tiles: NDArray[np.uint16], scorer: Scorer, detector: Detector
) -> NDArray[np.bool_]:
    """Which events were closed before all of their window was seen.

    Parameters
    ----------
    tiles : ndarray of uint16
        Tiles that each score rests on, shape (event,).
    """
    window = scorer.window(detector)
    n_tiles = 0 if window is None else len(window.origins)
    early: NDArray[np.bool_] = (tiles > 0) & (tiles < n_tiles)
    return early


def reopened(
    rows: NDArray[np.void], scorer: Scorer, detector: Detector, *, closed_from: float
) -> NDArray[np.bool_]:
    """Which events were closed by a score that no longer closes them.

    Parameters
    ----------
    rows : ndarray
        Shape (event,), dtype `sfxreduce.pipeline.stages.batch.SCORE_DTYPE`.
    closed_from : float
        Score that closes an event now.
    """
    found: NDArray[np.bool_] = closed_early(rows["tiles"], scorer, detector) & (
        rows["score"] < closed_from
    )
    return found


def rechecked(
    rows: NDArray[np.void], scorer: Scorer, detector: Detector, *, closed_from: float
) -> NDArray[np.bool_]:
    """Which events were seen whole, and may now be closed by their first tiles.

    Those scored below what closed an event then, and no higher than all tiles do. So an event need
    not be looked at if less closed an event then than now, or if its score does not close it now.
    One that could not be read whole has no score, and yet its first tiles may be whole.

    Parameters
    ----------
    rows, scorer, detector, closed_from
        See `reopened`.
    """
    if not isinstance(scorer, Stepwise) or len(scorer.steps(detector)) < 2:
        return np.zeros(len(rows), np.bool_)
    early = closed_early(rows["tiles"], scorer, detector)
    # What closed an event then is not known; it was no more than any score that did.
    at_most = rows["score"][early].min(initial=np.inf)
    found: NDArray[np.bool_] = ~early & ~(rows["score"] < closed_from) & (closed_from < at_most)
    return found
