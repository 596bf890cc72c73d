"""How the events of a run are judged: which threshold, and what it promises."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sfxreduce.calibrate import Promise, binomial_threshold, given_threshold
from sfxreduce.conditions import Conditioned
from sfxreduce.geometry import Window
from sfxreduce.measured import Measured
from sfxreduce.report import Method
from sfxreduce.run import Run
from sfxreduce.scorer import Scorer

__all__ = ["closed_from", "method_for"]


def closed_from(scorer: Scorer, threshold: float | None, promise: Promise) -> float:
    """Score from which an event is a hit, whatever level the scores of its run will have.

    Parameters
    ----------
    scorer : Scorer
    threshold : float or None
        It does not move with the run.
    promise : Promise
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
    scorer : Scorer
    threshold : float or None
        It voids the promise.
    promise : Promise
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
