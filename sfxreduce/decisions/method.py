"""How the events of a run are judged: which threshold, and what it promises."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.decisions.bounds import share_upper
from sfxreduce.decisions.drift import Drift
from sfxreduce.decisions.threshold import Promise, Threshold, binomial_threshold, given_threshold
from sfxreduce.quality.conditions import Conditioned
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.calibration.record import Measured
from sfxreduce.scorers.protocol import Scorer

__all__ = ["Method", "closed_from", "method_for"]


def closed_from(scorer: Scorer, threshold: float | None, promise: Promise) -> float:
    """Score from which an event is a hit, whatever level the scores of its run will have.

    Parameters
    ----------
    threshold : float or None
        It does not move with the run.
    """
    if threshold is not None:
        return float(threshold)
    value, hits = scorer.threshold, scorer.hit_scores
    if hits.size:
        claim = binomial_threshold(hits, promise=promise, groups=scorer.hit_groups)
        value = max(claim.value, 0.0)
    return scorer.level.threshold(value, scorer.level.most)


def method_for(
    run: Run,
    scorer: Scorer,
    threshold: float | None,
    promise: Promise,
    *,
    scores: NDArray[np.float32],
) -> Method:
    """Say how events will be judged: by the threshold given, or by one that keeps the promise.

    Parameters
    ----------
    run : Run
        As the scorer sees it.
    threshold : float or None
        It voids the promise.
    scores : ndarray of float32
        Of all events of the run, shape (event,).
    """
    hits, move = scorer.hit_scores, scorer.level.move(scores)
    if threshold is not None:
        value = float(threshold)
        known = scorer.level.threshold(value, -move)
        claim = given_threshold(known, hits, promise=promise) if hits.size else None
    elif hits.size:
        claim = binomial_threshold(hits, promise=promise, groups=scorer.hit_groups)
        # Where nothing can be promised every event is kept: no score is below zero.
        value = scorer.level.threshold(max(claim.value, 0.0), move)
    else:
        claim, value = None, scorer.level.threshold(scorer.threshold, move)
    if claim and claim.value > -math.inf:
        claim = replace(claim, value=value)
    window, measured = scorer.window(run.detector), scorer.measured
    reduced = scorer.level.reduced(scores, move)
    return Method(
        scorer=scorer.name,
        settings=", ".join([scorer.settings, *_own_conditions(run, move)]),
        threshold=value,
        model_sha256=scorer.model_sha256,
        claim=claim,
        hit=scorer.hit,
        measured=measured,
        rejected_showing=_rejected_showing(measured, reduced, scores < value),
        window_tiles=None if window is None else len(window.origins),
        tiles_total=None if window is None else len(Window.tiled(run.detector).origins),
    )


def _rejected_showing(
    measured: Measured, reduced: NDArray[np.float32], low: NDArray[np.bool_]
) -> float | None:
    """How many of the low events show diffraction, by their calibrated probabilities."""
    if measured.calibration is None or not low.any() or low.all():
        return None
    likely = measured.calibration(reduced[low], hit_rate=float(np.mean(~low)))
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
        Of the scorer, in words.
    claim : Threshold, optional
        What the threshold promises.
    hit : str
        What counts as a hit in it.
    window_tiles, tiles_total : int or None
        Tiles looked at, and all there are; None for whole source frames.
    drift : Drift
        Whether the run is like those the scorer was calibrated on. Without that, nothing is
        promised.
    measured : Measured
        What is known of the scorer beside its threshold.
    rejected_showing : float or None
        Rejected events that show diffraction, by their calibrated probabilities.
    """

    scorer: str
    settings: str
    threshold: float
    model_sha256: str | None
    claim: Threshold | None = None
    hit: str = "what the labels call one"
    window_tiles: int | None = None
    tiles_total: int | None = None
    drift: Drift = field(default_factory=Drift)
    measured: Measured = field(default_factory=Measured)
    rejected_showing: float | None = None

    @property
    def claims(self) -> dict[str, Any]:
        """What is promised and what was looked at, by the names of `Report`."""
        promise = self.claim.promise if self.claim else Promise()
        known = self.claim if self.claim and self.claim.n_hits else None
        return {
            "max_loss": promise.max_loss,
            "confidence": promise.confidence,
            "certified": bool(known and known.certified and self.drift.passed),
            "loss_upper95": share_upper(known.n_lost, known.n_hits, confidence=0.95)
            if known
            else None,
            "window_tiles": self.window_tiles,
            "tiles_total": self.tiles_total,
            "drift": self.drift.to_json(),
        }
