"""Scores of a whole run, computed on a pool and put in order."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.conditions import Conditioned, conditions_of_run
from sfxreduce.look import SCORE_DTYPE, SOURCE_LOST
from sfxreduce.progress import Progress, silent, tracked
from sfxreduce.run import Run
from sfxreduce.score import events_per_batch, score, score_rescue
from sfxreduce.scorer import Scorer

__all__ = ["as_seen", "collect_scores"]


def collect_scores(
    run: Run,
    scorer: Scorer,
    *,
    pool: Pool,
    closed_from: float = math.inf,
    stage: str = "score",
    progress: Progress = silent,
) -> NDArray[np.void]:
    """Score every event of a run; the scores are computed here, batch by batch.

    A scorer that adapts sees the run's own gain, hot and noisy pixels, measured on a few frames
    first.

    Parameters
    ----------
    run : Run
    scorer : Scorer
    pool : Pool
    closed_from : float
        An event with such a score is a hit whatever its other tiles show: see `score`.
    stage : str
        What the progress is called.
    progress : Progress

    Returns
    -------
    ndarray
        Shape (event,), dtype `SCORE_DTYPE`.
    """
    rows = np.zeros(run.n_events, SCORE_DTYPE)
    seen = as_seen(run, scorer)
    scores = score(seen, scorer, closed_from=closed_from)
    rescue = score_rescue(seen, scorer, closed_from=closed_from)
    blocks = pool.blocks(scores, needs_gpu=scorer.needs_gpu, rescue=rescue)
    for block, values in tracked(blocks, stage=stage, total=scores.npartitions, progress=progress):
        start = block * events_per_batch(scorer)
        rows[start : start + len(values)] = values
    return rows


def as_seen(run: Run, scorer: Scorer) -> Run:
    """Give the run its own gain, hot and noisy pixels, once, for scorers to which they matter.

    Parameters
    ----------
    run : Run
        Some of its frames are read; none if this was done before.
    scorer : Scorer
    """
    if not scorer.adapts or isinstance(run.source, Conditioned):
        return run
    try:
        found = conditions_of_run(run)
    except SOURCE_LOST:
        return run  # every event will say so for itself
    return replace(run, source=Conditioned(source=run.source, found=found))
