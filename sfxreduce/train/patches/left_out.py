"""How an experiment fares with a model that has not seen it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.decisions.decide import Decision, decide, keep_by_peaks
from sfxreduce.decisions.method import MAX_BLANKS_KEPT, Gap, find_gap
from sfxreduce.decisions.threshold import share_upper
from sfxreduce.scorers.cnn.model import Model
from sfxreduce.scorers.peaks.finder import MIN_PEAKS
from sfxreduce.simulate.truth import HIT_PEAKS
from sfxreduce.train.patches.looks import ExpectedPeaks
from sfxreduce.train.patches.simulated import Material

__all__ = ["LeftOut", "judge_left_out", "reduced_scores", "table_of", "threshold_of_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """How an experiment fared with a model that has not seen it.

    Parameters
    ----------
    hits, lost : int
        Events with 10 or more true peaks, and those of them that are rejected.
    loss_upper95 : float
        One-sided upper bound on the share lost.
    weak, weak_lost : int
        The same of events with 5 to 9 true peaks.
    blanks, rejected : int
        Events without a crystal or an artefact, and those of them that are rejected.
    artefacts, artefacts_rejected : int
        The same of events with ice, salt or a streak in place of a crystal.
    rescued : int
        Hits below the threshold that are kept for their number of peaks; they are not lost.
    blanks_rescued : int
        Events without a crystal, artefacts among them, that are kept for it.
    """

    experiment: str
    hits: int
    lost: int
    loss_upper95: float
    weak: int
    weak_lost: int
    blanks: int
    rejected: int
    artefacts: int
    artefacts_rejected: int
    rescued: int
    blanks_rescued: int

    @property
    def loss(self) -> float:
        """Share of the hits that is lost."""
        return self.lost / self.hits

    @property
    def specificity(self) -> float:
        """Share of the events without a crystal, artefacts among them, that is rejected."""
        return (self.rejected + self.artefacts_rejected) / (self.blanks + self.artefacts)

    def to_json(self) -> dict[str, Any]:
        """Counts and ratios by name."""
        return asdict(self) | {"loss": self.loss, "specificity": self.specificity}


def judge_left_out(
    model: Model,
    one: Material,
    evidence: ExpectedPeaks,
    *,
    peaks: NDArray[np.integer] | None = None,
) -> LeftOut:
    """Count what a model loses of an experiment it has not seen, as a run would be decided on.

    Parameters
    ----------
    evidence : ExpectedPeaks
        Of the model's network.
    peaks : ndarray of int, optional
        By the conventional rule on the tiles that are looked at first, shape (event,); nothing is
        kept for them if not given.
    """
    pooling, look = model.config.pooling, model.config.first_look
    scores = evidence.score(pooling)
    threshold = threshold_of_run(model, evidence.most(pooling), promised=model.config.threshold)
    made = decide(scores, np.zeros(scores.size, np.uint32), threshold=threshold)
    by_score = made.decision == Decision.REJECT
    if peaks is not None:
        fewest = MIN_PEAKS if look is None else min(MIN_PEAKS, look.most_peaks + 1)
        made = keep_by_peaks(made, peaks, fewest=fewest)
    low = made.decision == Decision.REJECT
    weak = one.is_weak
    lost, hits = int(np.count_nonzero(low & one.is_hit)), int(one.is_hit.sum())
    return LeftOut(
        experiment=one.name,
        hits=hits,
        lost=lost,
        loss_upper95=share_upper(lost, hits, confidence=0.95),
        weak=int(weak.sum()),
        weak_lost=int(np.count_nonzero(low & weak)),
        blanks=int(one.is_blank.sum()),
        rejected=int(np.count_nonzero(low & one.is_blank)),
        artefacts=int(one.is_artefact.sum()),
        artefacts_rejected=int(np.count_nonzero(low & one.is_artefact)),
        rescued=int(np.count_nonzero(by_score & ~low & one.is_hit)),
        blanks_rescued=int(np.count_nonzero(by_score & ~low & ~one.has_crystal)),
    )


def threshold_of_run(model: Model, scores: NDArray[np.float32], *, promised: float) -> float:
    """Threshold of a run, by the level of its scores and its own gap.

    Parameters
    ----------
    scores : ndarray of float32
        Of all events of the run, shape (event,); the highest that their first tiles allow.
    promised : float
        Threshold that labelled hits allow in a run of the lowest level.
    """
    level = model.config.level
    move = level.move(scores)
    value = level.threshold(promised, move)
    gap = find_gap(scores, promised=value, reference=model.reference, max_blanks=MAX_BLANKS_KEPT)
    return gap.threshold if isinstance(gap, Gap) else value


def reduced_scores(model: Model, evidence: ExpectedPeaks) -> NDArray[np.float32]:
    """Scores of an experiment's events, less the level of its run.

    Parameters
    ----------
    evidence : ExpectedPeaks
        Of the model's network.

    Returns
    -------
    ndarray of float32
        Shape (event,), between 0 and 1.
    """
    level, pooling = model.config.level, model.config.pooling
    return level.reduced(evidence.score(pooling), level.move(evidence.most(pooling)))


_PROVEN = 0.01
"""A smaller bound proves that no more of an experiment's hits are lost: 0 of 299, 1 of 473 or 2 of
628 (`sfxreduce.decisions.threshold.hits_needed`)."""


def table_of(judged: Sequence[LeftOut]) -> str:
    """Table in Markdown: one experiment a line."""
    rows = [
        f"| {one.experiment} | {one.hits} | {one.lost} | {one.loss_upper95:.2%}"
        f"{', proven 1 %' if one.loss_upper95 < _PROVEN else ''} | "
        f"{one.rescued} | {one.weak_lost} of {one.weak} | {one.rejected} of {one.blanks} | "
        f"{one.artefacts_rejected} of {one.artefacts} | {one.specificity:.3f} | "
        f"{one.blanks_rescued} |"
        for one in judged
    ]
    head = (
        "Every experiment judged by a network and a threshold that have not seen it. Hits have\n"
        f"{HIT_PEAKS} or more true peaks of signal to noise 5; the bound on their loss is "
        "one-sided, 95 %, and tells of this experiment alone: seven experiments are seven draws\n"
        "of those that a network may meet.\n\n"
        "| experiment left out | hits | lost | loss below | kept for their peaks alone "
        "| lost of 5 to 9 peaks | blanks rejected | artefacts rejected | specificity "
        "| blanks and artefacts kept for their peaks |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(rows)
