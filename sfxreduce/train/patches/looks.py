"""What is expected of events on all tiles of a window, and on those that are looked at first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfxreduce.run.window import TileChoice
from sfxreduce.scorers.calibration.record import FirstLook
from sfxreduce.scorers.cnn.patches.network import PatchNetwork
from sfxreduce.scorers.cnn.patches.pooling import Pooling
from sfxreduce.train.patches.candidates import PatchSet

__all__ = ["FIRST_LOOK", "ExpectedPeaks", "evidence_of", "first_look_through"]

FIRST_LOOK = FirstLook(tiles=9, share=0.5)
"""How the shipped model looks at events first (decision 25)."""

_FEWEST_TILES = 25
"""Of a window that is looked at in two steps: of fewer tiles nine are the bulk."""


def first_look_through(window: TileChoice) -> FirstLook | None:
    """How the first tiles of a window are judged; None if all of them are looked at together."""
    return FIRST_LOOK if window.most >= _FEWEST_TILES and not window.spread else None


class ExpectedPeaks(NamedTuple):
    """Expected peaks of events.

    Parameters
    ----------
    whole : ndarray of float64
        On all tiles of a window, shape (event,).
    first : ndarray of float64, optional
        On the first of them alone, where these are looked at first.
    """

    whole: NDArray[np.float64]
    first: NDArray[np.float64] | None = None

    def most(self, pooling: Pooling) -> NDArray[np.float32]:
        """Highest scores that the first tiles allow; the scores where there is no first look."""
        if self.first is None:
            return pooling.probability(self.whole)
        return FIRST_LOOK.most(pooling.probability(self.first))

    def score(self, pooling: Pooling) -> NDArray[np.float32]:
        """Scores of events that were seen whole."""
        whole = pooling.probability(self.whole)
        if self.first is None:
            return whole
        return FIRST_LOOK.score(pooling.probability(self.first), whole)


def evidence_of(
    events: PatchSet,
    network: PatchNetwork,
    pooling: Pooling,
    *,
    picture_tiles: int,
    look: FirstLook | None,
) -> ExpectedPeaks:
    """Expected peaks of events that were found within a window.

    Parameters
    ----------
    picture_tiles : int
        Tiles of the whole picture.
    """

    def pooled(part: PatchSet) -> NDArray[np.float64]:
        return pooling.pooled(part.evidence(network, pooling), n_tiles=picture_tiles)

    if look is None or events.n_tiles < _FEWEST_TILES:
        return ExpectedPeaks(pooled(events))
    return ExpectedPeaks(pooled(events), pooled(events.within(np.arange(look.tiles))))
