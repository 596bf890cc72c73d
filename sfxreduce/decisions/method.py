"""How the events of a run are judged: which threshold, and what it promises."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.decisions.assurance import Assurance
from sfxreduce.decisions.blanks import Gap, find_gap
from sfxreduce.decisions.threshold import (
    Promise,
    Threshold,
    binomial_threshold,
    given_threshold,
)
from sfxreduce.quality.conditions import Conditioned
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.calibration.record import Calibration, Curves
from sfxreduce.scorers.protocol import Scorer, calibration_of, own_threshold

__all__ = ["MAX_BLANKS_KEPT", "Method", "ThresholdRule", "method_for", "threshold_rule"]

MAX_BLANKS_KEPT = 0.02
"""Share of the blanks that may be kept to lose no hit that scores below the promised threshold."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ThresholdRule:
    """How the threshold of a run is set: all of it that is known before an event is scored.

    Parameters
    ----------
    value : float
        Smallest score of a hit on a run whose blanks score as low as those calibrated on.
    promise : Promise
        What is asked of the threshold.
    claim : Threshold, optional
        What the value promises; none for a threshold that the user gave, which does not move with
        the run either, and for a scorer without labelled hits.
    is_given : bool
        Whether the user gave the value.
    """

    calibration: Calibration
    value: float
    promise: Promise
    claim: Threshold | None = None
    is_given: bool = False

    @property
    def closed_from(self) -> float:
        """Score from which an event is a hit, whatever level the scores of its run will have."""
        if self.is_given:
            return self.value
        level = self.calibration.level
        return level.threshold(self.value, level.most)

    def gap(self, scores: NDArray[np.float32], move: float, *, max_blanks: float) -> Gap | str:
        """Find the run's own gap below the threshold, or say why none counts.

        Parameters
        ----------
        scores : ndarray of float32
            Of all events of the run, shape (event,).
        move : float
            How much higher its blanks score, in logits.
        max_blanks : float
            Largest share of the blanks that may be kept for it.
        """
        if self.claim is None or not self.claim.certified:
            return "nothing is promised that a lower threshold could keep"
        known, reference = self.calibration, self.calibration.reference
        blanks = np.zeros(0) if reference is None else reference.blank_scores
        return find_gap(
            scores,
            promised=known.level.threshold(self.value, move),
            blank_scores=known.level.reduced(blanks, -move),
            max_blanks=max_blanks,
        )

    def at_level(self, move: float) -> tuple[float, Threshold | None]:
        """Return threshold and claim for a run whose blanks score this much higher, in logits."""
        level, hits = self.calibration.level, self.calibration.hit_scores
        value, claim = self.value, self.claim
        if not self.is_given:
            value = level.threshold(value, move)
        elif hits.size:
            claim = given_threshold(level.threshold(value, -move), hits, promise=self.promise)
        if claim and claim.value > -math.inf:
            claim = replace(claim, value=value)
        return value, claim


def threshold_rule(
    scorer: Scorer,
    *,
    threshold: float | None = None,
    promise: Promise,
    detector: Detector | None = None,
) -> ThresholdRule:
    """Set the rule by the threshold given, or by one that keeps the promise.

    Parameters
    ----------
    detector : Detector, optional
        Of the run; one with a picture of the usual size if not given.
    threshold : float, optional
        It voids the promise.

    Raises
    ------
    UsageError
        If none is given and the scorer brings none along.
    """
    known = calibration_of(scorer, detector)
    if threshold is not None:
        return ThresholdRule(
            calibration=known, value=float(threshold), promise=promise, is_given=True
        )
    if known.hit_scores.size:
        claim = binomial_threshold(known.hit_scores, promise=promise, groups=known.hit_groups)
        # Where nothing can be promised every event is kept: no score is below zero.
        value = max(claim.value, 0.0)
        return ThresholdRule(calibration=known, value=value, promise=promise, claim=claim)
    return ThresholdRule(calibration=known, value=own_threshold(scorer), promise=promise)


def method_for(
    run: Run,
    scorer: Scorer,
    rule: ThresholdRule,
    *,
    scores: NDArray[np.float32],
    max_blanks: float = MAX_BLANKS_KEPT,
) -> Method:
    """Say how the events of a run are judged.

    Parameters
    ----------
    run : Run
        With its conditions, if the scorer needs them.
    scores : ndarray of float32
        Of all events of the run, shape (event,).
    max_blanks : float
        Largest share of the blanks that may be kept for a lower threshold than the promised one.
    """
    known = rule.calibration
    move = known.level.move(scores)
    value, claim = rule.at_level(move)
    gap = rule.gap(scores, move, max_blanks=max_blanks)
    if isinstance(gap, Gap):
        value = gap.threshold
        claim = claim and replace(claim, value=value)
    window = scorer.window(run.detector)
    reduced = known.level.reduced(scores, move)
    return Method(
        scorer=scorer.name,
        settings=", ".join([scorer.settings, *_own_conditions(run, move)]),
        scorer_settings=scorer.settings,
        threshold=value,
        model_sha256=known.model_sha256,
        claim=claim,
        gap=gap,
        assurance=Assurance(promise=rule.promise),
        hit=known.hit,
        curves=known.curves,
        rejected_showing=_rejected_showing(known.curves, reduced, scores < value),
        window_tiles=None if window is None else len(window.origins),
        tiles_total=None if window is None else len(Window.tiled(run.detector).origins),
    )


def _rejected_showing(
    curves: Curves, reduced: NDArray[np.float32], low: NDArray[np.bool_]
) -> float | None:
    """How many of the low events show diffraction, by their calibrated probabilities."""
    if curves.probability is None or not low.any() or low.all():
        return None
    likely = curves.probability(reduced[low], hit_rate=float(np.mean(~low)))
    return float(likely.sum())


def _own_conditions(run: Run, move: float) -> list[str]:
    """What was measured on the run itself before its events were judged, in words."""
    words = []
    if isinstance(run.source, Conditioned):
        found = run.source.found
        words += [
            f"gain {found.adu_per_photon:.4g} ADU a photon",
            f"{found.hot_index.size} hot and {found.noisy_index.size} noisy pixels "
            f"on {found.frames} frames",
        ]
    if move:
        words.append(f"threshold moved up by {move:.3g} (logit) with the run's blanks")
    return words


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How events were judged.

    Parameters
    ----------
    settings : str
        Of the scorer and of the run's conditions, in words.
    scorer_settings : str
        Of the scorer alone.
    claim : Threshold, optional
        What the threshold promises.
    hit : str
        What counts as a hit in it.
    window_tiles, tiles_total : int or None
        Tiles scored, and all there are; None for whole source frames.
    gap : Gap or str
        The run's own gap below the promised threshold, or why there is none.
    assurance : Assurance
        What is promised for the run, after it was checked.
    curves : Curves
        What reports show of the scorer beside its threshold.
    rejected_showing : float or None
        Rejected events that show diffraction, by their calibrated probabilities.
    """

    scorer: str
    settings: str
    scorer_settings: str
    threshold: float
    model_sha256: str | None
    claim: Threshold | None = None
    hit: str = "what the labels call one"
    window_tiles: int | None = None
    tiles_total: int | None = None
    gap: Gap | str = "nobody looked for one"
    assurance: Assurance = field(default_factory=Assurance)
    curves: Curves = field(default_factory=Curves)
    rejected_showing: float | None = None

    @property
    def judge(self) -> str:
        """What seeds the random sample of rejects: the model, or else the scorer as it is set."""
        return self.model_sha256 or f"{self.scorer}, {self.scorer_settings}"

    @property
    def claims(self) -> dict[str, Any]:
        """What is promised and what was looked at, by the names of `Report`."""
        gap, why = (self.gap.to_json(), None) if isinstance(self.gap, Gap) else (None, self.gap)
        return {
            "max_loss": self.assurance.promise.max_loss,
            "confidence": self.assurance.promise.confidence,
            "certified": self.assurance.promised,
            "assurance": self.assurance.to_json(),
            "gap": gap,
            "gap_reason": why,
            "window_tiles": self.window_tiles,
            "tiles_total": self.tiles_total,
        }
