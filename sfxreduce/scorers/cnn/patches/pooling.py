"""From the answers for single candidates to one probability for the event."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

__all__ = ["Pooling"]

# Evidence of an event without any candidate, in peaks: the logarithm of nothing is not a number.
# Chosen, not measured.
_LEAST_EVIDENCE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """How expected numbers of peaks become a hit probability.

    Parameters
    ----------
    most_per_tile : float
        A tile counts for at most so many peaks, however many it shows. With 6, left-out experiments
        lost 2 to 5 of 300 hits instead of 1 to 2 (decision 6).
    doubt : float
        Taken off the logit of every candidate: chance makes millions of them, crystals a few. With
        2.5, 11 of 132 weak hits were lost instead of 6; with 3.5 nearly all of a photon counter
        (decision 6).
    offset, slope : float
        The probability's logit is ``offset + slope * log(evidence)``, evidence in peaks.
    """

    most_per_tile: float = 3.0
    doubt: float = 3.0
    offset: float = 0.0
    slope: float = 1.0

    def evidence(
        self,
        logits: NDArray[np.floating],
        tile: NDArray[np.integer],
        *,
        n_events: int,
        n_tiles: int,
    ) -> NDArray[np.float64]:
        """Expected number of peaks of every event, shape (event,).

        Parameters
        ----------
        logits : ndarray
            Shape (candidate,), that it is a Bragg peak.
        tile : ndarray of int
            Shape (candidate,): event times `n_tiles`, plus the tile in the window.

        Examples
        --------
        >>> streak = np.full(20, 9.0), np.zeros(20, int)
        >>> Pooling(most_per_tile=3.0).evidence(*streak, n_events=1, n_tiles=9).tolist()
        [3.0]
        """
        of_tiles = self.evidence_of_tiles(logits, tile, n_events=n_events, n_tiles=n_tiles)
        evidence: NDArray[np.float64] = of_tiles.sum(axis=1)
        return evidence

    def evidence_of_tiles(
        self,
        logits: NDArray[np.floating],
        tile: NDArray[np.integer],
        *,
        n_events: int,
        n_tiles: int,
    ) -> NDArray[np.float64]:
        """Expected number of peaks of every tile, at most `most_per_tile`, shape (event, tile)."""
        of_tile = np.bincount(
            tile, weights=expit(logits - self.doubt), minlength=n_events * n_tiles
        )
        return np.minimum(of_tile, self.most_per_tile).reshape(n_events, n_tiles)

    def probability(self, evidence: NDArray[np.floating]) -> NDArray[np.float32]:
        """Hit probability of events of some evidence, in peaks."""
        logit = self.offset + self.slope * np.log(np.maximum(evidence, _LEAST_EVIDENCE))
        probability: NDArray[np.float32] = expit(logit).astype(np.float32)
        return probability
