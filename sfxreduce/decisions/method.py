"""How the events of a run are judged: which threshold, and what it promises.

Between the blanks of a run and its hits lies a gap, in nearly every run, that any threshold may lie
in. So the threshold may be lower than the labelled hits of other runs allow.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from sfxreduce.decisions.assurance import Assurance
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
from sfxreduce.scorers.calibration.record import Calibration, Curves, FirstLook, Reference
from sfxreduce.scorers.protocol import Scorer, calibration_of, own_threshold

__all__ = [
    "MAX_BLANKS_KEPT",
    "Gap",
    "Method",
    "RunThreshold",
    "ThresholdRule",
    "find_gap",
    "method_for",
    "threshold_rule",
]

MAX_BLANKS_KEPT = 0.02
"""Share of the blanks that may be kept to lose no hit that scores below the promised threshold."""


FEWEST_LOW = 20
"""Scores below the promised threshold, by which the edge of a run's blanks is told."""

_SPREAD = 0.16  # quantile one standard deviation below the median of a normal distribution
_MARGIN = 0.25  # of the gap, above the edge; chosen, not measured
_DRAWS, _SEED = 200, 20
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What lies between the blanks of a run and the threshold that labelled hits allow.

    Parameters
    ----------
    edge : float
        Score that hardly any blank of the run reaches.
    threshold : float
        Above the edge, and below the promised threshold.
    promised : float
        The threshold that the labelled hits allow.
    moved : int
        Events that score between the two: they are kept for this.
    blanks_kept : float
        Share of calibrated blanks that would lie above the threshold in this run.
    """

    edge: float
    threshold: float
    promised: float
    moved: int
    blanks_kept: float

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return asdict(self)


def find_gap(
    scores: ArrayLike, *, promised: float, reference: Reference, max_blanks: float
) -> Gap | str:
    """Look for a gap between a run's own blanks and the promised threshold.

    The blanks are the events below that threshold. Their median and the spread of their lower half,
    which hits among them hardly touch, are the run's; how many such spreads above the median the
    upper quantile lies is that of the blanks of calibrated experiments.

    Parameters
    ----------
    scores : array_like
        Of the run's events in source order, between 0 and 1, shape (event,).
    promised : float
        Threshold that the labelled hits allow.
    reference : Reference
        With the scores of calibrated blanks.
    max_blanks : float
        Largest share of these that may lie above the edge.

    Returns
    -------
    Gap or str
        Why there is none.

    Examples
    --------
    >>> blanks, hits = np.geomspace(1e-4, 5e-3, 90), np.full(6, 0.07)
    >>> known = Reference(blank_scores=blanks.astype(np.float32))
    >>> gap = find_gap(np.r_[blanks, hits], promised=0.1, reference=known, max_blanks=0.02)
    >>> gap.moved, gap.edge < gap.threshold < 0.07
    (6, True)
    """
    seen = np.asarray(scores, np.float64)
    low = seen[np.isfinite(seen) & (seen < promised)]
    known, narrowest = _in_spreads(reference)
    if not known.size or not 0.0 < promised < 1.0:
        return "no calibrated blanks to compare with"
    if low.size < FEWEST_LOW:
        return f"fewer than {FEWEST_LOW} events score below the promised threshold"
    values, reach = _finite_logit(low), float(np.quantile(known, 1.0 - max_blanks))
    edge = _edge(values, reach, narrowest)
    gap = float(logit(promised)) - edge
    if gap <= 0.0:
        return "the blanks of the run score up to the promised threshold"
    rng = np.random.default_rng(_SEED)
    edges = [_edge(rng.choice(values, values.size), reach, narrowest) for _ in range(_DRAWS)]
    if np.diff(np.quantile(edges, _INTERVAL)) > gap:
        return "where the blanks of the run end depends on single events"
    middle, spread = _middle_and_spread(values, narrowest)
    value = edge + _MARGIN * gap
    threshold = float(expit(value))
    return Gap(
        edge=float(expit(edge)),
        threshold=threshold,
        promised=promised,
        moved=int(np.count_nonzero(low >= threshold)),
        blanks_kept=float(np.mean(known >= (value - middle) / spread)),
    )


def _in_spreads(reference: Reference) -> tuple[NDArray[np.float64], float]:
    """Calibrated blanks as spreads above the median of their experiment; the least spread."""
    parts, spreads = [], []
    blanks, groups = _finite_logit(reference.blank_scores), reference.blank_groups
    groups = groups if groups.size == blanks.size else np.zeros(blanks.size, np.int32)
    for group in np.unique(groups):
        values = blanks[groups == group]
        middle, spread = _middle_and_spread(values, 0.0)
        if spread > 0.0:
            parts.append((values - middle) / spread)
            spreads.append(spread)
    return np.concatenate([np.zeros(0), *parts]), min(spreads, default=0.0)


def _finite_logit(scores: ArrayLike) -> NDArray[np.float64]:
    """Logits of scores; those of 0 and 1 are finite as well."""
    finite: NDArray[np.float64] = logit(np.clip(np.asarray(scores, np.float64), 1e-9, 1.0 - 1e-9))
    return finite


def _middle_and_spread(values: NDArray[np.float64], least: float) -> tuple[float, float]:
    """Median, and the spread of the lower half."""
    middle = float(np.median(values))
    return middle, max(middle - float(np.quantile(values, _SPREAD)), least)


def _edge(values: NDArray[np.float64], reach: float, narrowest: float) -> float:
    """Upper end of values by their median and the spread of their lower half."""
    middle, spread = _middle_and_spread(values, narrowest)
    return middle + max(reach, 0.0) * spread


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

    def for_run(self, scores: NDArray[np.float32], *, max_blanks: float) -> RunThreshold:
        """Set the threshold of a run.

        Parameters
        ----------
        scores : ndarray of float32
            Of all events of the run, shape (event,): the highest that their first tiles allow where
            these are looked at first.
        max_blanks : float
            Largest share of the blanks that may be kept for a lower threshold than the promised
            one.
        """
        move = self.calibration.level.move(scores)
        value, claim = self.at_level(move)
        gap = self.gap(scores, move, max_blanks=max_blanks)
        if isinstance(gap, Gap):
            value = gap.threshold
            claim = claim and replace(claim, value=value)
        return RunThreshold(value=value, claim=claim, gap=gap, move=move)

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
        known = self.calibration
        return find_gap(
            scores,
            promised=known.level.threshold(self.value, move),
            reference=known.reference or Reference(),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunThreshold:
    """Threshold of one run.

    Parameters
    ----------
    value : float
        Smallest score of a hit.
    claim : Threshold, optional
        What it promises.
    gap : Gap or str
        The run's own gap below the promised threshold, or why there is none.
    move : float
        How much higher the blanks of the run score, in logits.
    """

    value: float
    claim: Threshold | None = None
    gap: Gap | str = "nobody looked for one"
    move: float = 0.0


def method_for(
    run: Run,
    scorer: Scorer,
    rule: ThresholdRule,
    chosen: RunThreshold,
    *,
    scores: NDArray[np.float32],
) -> Method:
    """Say how the events of a run are judged.

    Parameters
    ----------
    run : Run
        With its conditions, if the scorer needs them.
    scores : ndarray of float32
        Of all events of the run, shape (event,).
    """
    known = rule.calibration
    window = scorer.window(run.detector)
    reduced = known.level.reduced(scores, chosen.move)
    return Method(
        scorer=scorer.name,
        settings=", ".join([scorer.settings, *_own_conditions(run, known, chosen)]),
        scorer_settings=scorer.settings,
        threshold=chosen.value,
        model_sha256=known.model_sha256,
        claim=chosen.claim,
        gap=chosen.gap,
        assurance=Assurance(promise=rule.promise),
        hit=known.hit,
        covers=known.covers,
        curves=known.curves,
        rejected_showing=_rejected_showing(known.curves, reduced, scores < chosen.value),
        first_look=known.first_look,
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


def _own_conditions(run: Run, known: Calibration, chosen: RunThreshold) -> list[str]:
    """What was measured on the run itself before its events were judged, in words."""
    words = []
    if isinstance(run.source, Conditioned):
        found = run.source.found
        words += [
            f"gain {found.adu_per_photon:.4g} ADU a photon",
            f"{found.hot_index.size} hot and {found.noisy_index.size} noisy pixels "
            f"on {found.frames} frames",
        ]
    if chosen.move:
        words.append(f"threshold moved up by {chosen.move:.3g} (logit) with the run's blanks")
    if known.first_look is not None:
        line = known.first_look.share * chosen.value
        words.append(f"other tiles looked at from {line:.6g} on the first {known.first_look.tiles}")
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
    covers : tuple of str
        What the calibrated runs were like, a range in each.
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
    first_look : FirstLook or None
        How events are judged by their first tiles; None where all of them are looked at.
    """

    scorer: str
    settings: str
    scorer_settings: str
    threshold: float
    model_sha256: str | None
    claim: Threshold | None = None
    hit: str = "what the labels call one"
    covers: tuple[str, ...] = ()
    window_tiles: int | None = None
    tiles_total: int | None = None
    gap: Gap | str = "nobody looked for one"
    assurance: Assurance = field(default_factory=Assurance)
    curves: Curves = field(default_factory=Curves)
    rejected_showing: float | None = None
    first_look: FirstLook | None = None

    @property
    def judge(self) -> str:
        """What seeds the random sample of rejects: the model, or else the scorer as it is set."""
        return self.model_sha256 or f"{self.scorer}, {self.scorer_settings}"

    @property
    def _first_look(self) -> dict[str, Any] | None:
        """How the first tiles were judged, and from which score on the others were looked at."""
        look = self.first_look
        if look is None:
            return None
        return {"tiles": look.tiles, "share": look.share, "line": look.share * self.threshold}

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
            "first_look": self._first_look,
            "window_tiles": self.window_tiles,
            "tiles_total": self.tiles_total,
        }
