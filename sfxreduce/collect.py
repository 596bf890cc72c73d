"""Scores of a whole run, computed on a pool and put in order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.look import SCORE_DTYPE
from sfxreduce.notes import NO_NOTES, Notes, each_once
from sfxreduce.progress import Progress, silent, tracked
from sfxreduce.run import Run
from sfxreduce.score import events_per_batch, score, score_rescue
from sfxreduce.scorer import Scorer
from sfxreduce.seen import as_seen

__all__ = ["collect_scores"]


def collect_scores(
    run: Run,
    scorer: Scorer,
    *,
    pool: Pool,
    closed_from: float = math.inf,
    stage: str = "score",
    notes: Notes = NO_NOTES,
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
    notes : Notes
        Scores that are known already, and where to note new ones.
    progress : Progress

    Returns
    -------
    ndarray
        Shape (event,), dtype `SCORE_DTYPE`.
    """
    rows = np.zeros(run.n_events, SCORE_DTYPE)
    seen = as_seen(run, scorer, pool=pool)
    scores = score(seen, scorer, closed_from=closed_from)
    rescue = score_rescue(seen, scorer, closed_from=closed_from)

    def work(left: Sequence[int]) -> Iterator[tuple[int, NDArray[Any]]]:
        # Of the array as it is, all blocks; what is taken out of it costs tasks of its own.
        some = scores if len(left) == scores.npartitions else scores.blocks[list(left)]
        return pool.blocks(some, needs_gpu=scorer.needs_gpu, rescue=rescue.of_parts(left))

    blocks = each_once(notes, stage, scores.npartitions, work, dtype=SCORE_DTYPE)
    for block, values in tracked(blocks, stage=stage, total=scores.npartitions, progress=progress):
        start = block * events_per_batch(scorer)
        rows[start : start + len(values)] = values
    return rows
