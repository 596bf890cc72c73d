"""How far to go from an old network to a new one, by the labelled events of a run."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfxreduce.run.labels import Label
from sfxreduce.scorers.cnn.model import Model
from sfxreduce.scorers.cnn.patches.network import PatchNetwork
from sfxreduce.scorers.cnn.patches.pooling import Pooling
from sfxreduce.train.patches.looks import ExpectedPeaks, evidence_of
from sfxreduce.train.patches.peak_labels import SeenEvents

__all__ = ["Judged", "Tried", "best_between", "margin_of"]

_SHARES = (0.25, 0.5, 1.0)
_WORTH_IT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """How a model does on the events of the run that it has not learned from.

    Parameters
    ----------
    hits, lost : int
        Labelled hits, and those below the threshold.
    blanks, rejected : int
        Labelled misses, and those below the threshold.
    lost_at_equal_specificity : int
        Hits lost if the threshold rejected as many misses as that of the old model.
    """

    threshold: float
    hits: int
    lost: int
    blanks: int
    rejected: int
    lost_at_equal_specificity: int

    def to_json(self) -> dict[str, Any]:
        """Counts, and the ratios made of them."""
        return asdict(self) | {
            "loss": self.lost / self.hits,
            "specificity": self.rejected / self.blanks,
            "loss_at_equal_specificity": self.lost_at_equal_specificity / self.hits,
            "labels": "peak finder",
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tried:
    """A network, how its answers are pooled, and what it makes of the events that were seen.

    Parameters
    ----------
    share : float
        How far it is from the old network (0) to the new one (1).
    evidence : ExpectedPeaks
        Of the events.
    score : ndarray of float32
        Hit probabilities, less the level of the run, shape (event,).
    most : ndarray of float32
        The highest that their first tiles allow, likewise.
    """

    network: PatchNetwork
    pooling: Pooling
    share: float
    evidence: ExpectedPeaks
    score: NDArray[np.float32]
    most: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        network: PatchNetwork,
        pooling: Pooling,
        seen: SeenEvents,
        start: Model,
        *,
        share: float = 0.0,
    ) -> Tried:
        """Score what was seen, less the level of the run."""
        evidence = evidence_of(
            seen.patches,
            network,
            pooling,
            picture_tiles=seen.picture_tiles,
            look=start.config.first_look,
        )
        level, most = start.config.level, evidence.most(pooling)
        move = level.move(most)
        return cls(
            network=network,
            pooling=pooling,
            share=share,
            evidence=evidence,
            score=level.reduced(evidence.score(pooling), move),
            most=level.reduced(most, move),
        )

    def split(
        self, seen: SeenEvents, events: NDArray[np.int64], *, most: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores of the hits and of the misses among some events, or the highest they can be."""
        label, score = seen.label[events], (self.most if most else self.score)[events]
        return score[label == Label.HIT], score[label == Label.MISS]

    def lost_at(self, seen: SeenEvents, events: NDArray[np.int64], rejected: int) -> int:
        """Hits lost by the threshold that rejects so many misses, and no more."""
        hits, misses = self.split(seen, events)
        limit = 0.0 if rejected == 0 else np.nextafter(np.sort(misses)[rejected - 1], np.float32(2))
        return int(np.count_nonzero(hits < limit))

    def judged(
        self, seen: SeenEvents, events: NDArray[np.int64], threshold: float, rejected: int
    ) -> Judged:
        """Count what it does at its own threshold, and at another's specificity."""
        hits, misses = self.split(seen, events)
        return Judged(
            threshold=threshold,
            hits=hits.size,
            lost=int(np.count_nonzero(hits < threshold)),
            blanks=misses.size,
            rejected=int(np.count_nonzero(misses < threshold)),
            lost_at_equal_specificity=self.lost_at(seen, events, rejected),
        )


def best_between(
    old: Tried, new: PatchNetwork, seen: SeenEvents, events: NDArray[np.int64], start: Model
) -> Tried:
    """Of the networks between old and new, the one that tells hits and misses apart best.

    Parameters
    ----------
    new : PatchNetwork
        The same network after it learned from the run.
    events : ndarray of int64
        Those to choose by, shape (event,).
    start : Model
        Whose rule of the level counts.
    """
    best, most = old, margin_of(old, seen, events) + _WORTH_IT
    for share in _SHARES:
        network = _between(old.network, new, share)
        raw = Tried.of(network, old.pooling, seen, start, share=share)
        margin = margin_of(raw, seen, events)
        if margin > most:  # a step further must be worth it, too
            pooling = _matched(old, raw, seen)
            best = Tried.of(network, pooling, seen, start, share=share)
            most = margin + _WORTH_IT
    return best


def margin_of(of: Tried, seen: SeenEvents, events: NDArray[np.int64]) -> float:
    """How far the weakest hits lie above the strongest misses, in logarithms of evidence.

    Parameters
    ----------
    events : ndarray of int64
        Positions in `seen`, shape (event,); hits and misses are among them.
    """
    log = np.log(np.maximum(of.evidence.whole[events], 0.01))
    label = seen.label[events]
    hits, misses = log[label == Label.HIT], log[label == Label.MISS]
    return float(np.quantile(hits, 0.05) - np.quantile(misses, 0.98))


def _between(old: PatchNetwork, new: PatchNetwork, share: float) -> PatchNetwork:
    """Network a part of the way from one to the other."""
    network = deepcopy(old)
    first, last = old.state_dict(), new.state_dict()
    mixed = {name: torch.lerp(first[name], last[name], share) for name in first}
    network.load_state_dict(mixed)
    return network.eval().requires_grad_(requires_grad=False)


def _matched(old: Tried, new: Tried, seen: SeenEvents) -> Pooling:
    """Pooling that puts typical hits and misses of the run where they were with the old network."""

    def typical(of: Tried) -> tuple[float, float]:
        log = np.log(np.maximum(of.evidence.whole, 0.01))
        return (
            float(np.median(log[seen.label == Label.MISS])),
            float(np.median(log[seen.label == Label.HIT])),
        )

    (miss, hit), (new_miss, new_hit) = typical(old), typical(new)
    slope = old.pooling.slope * (hit - miss) / (new_hit - new_miss)
    offset = old.pooling.offset + old.pooling.slope * miss - slope * new_miss
    return replace(old.pooling, slope=slope, offset=offset)
