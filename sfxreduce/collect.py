"""Scores of a whole run, computed on a pool and put in order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.progress import Progress, silent, tracked
from sfxreduce.run import Run
from sfxreduce.score import EVENTS_PER_BATCH, SCORE_DTYPE, Scorer, score

__all__ = ["collect_scores"]


def collect_scores(
    run: Run, scorer: Scorer, *, pool: Pool, stage: str = "score", progress: Progress = silent
) -> NDArray[np.void]:
    """Score every event of a run; the scores are computed here, batch by batch.

    Parameters
    ----------
    run : Run
    scorer : Scorer
    pool : Pool
    stage : str
        What the progress is called.
    progress : Progress

    Returns
    -------
    ndarray
        Shape (event,), dtype `SCORE_DTYPE`.
    """
    rows = np.zeros(run.n_events, SCORE_DTYPE)
    scores = score(run, scorer)
    blocks = pool.blocks(scores, needs_gpu=scorer.needs_gpu)
    for block, values in tracked(blocks, stage=stage, total=scores.npartitions, progress=progress):
        start = block * EVENTS_PER_BATCH
        rows[start : start + len(values)] = values
    return rows
