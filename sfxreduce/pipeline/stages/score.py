"""A score for every event, lazily and block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import (
    NO_NOTES,
    Notes,
    Progress,
    Rescue,
    each_once,
    halves_of,
    silent,
    tracked,
)
from sfxreduce.io.chunks.shards import pixel_hash
from sfxreduce.io.writers.shards import Scored
from sfxreduce.pipeline.stages.batch import (
    SCORE_DTYPE,
    SOURCE_LOST,
    rechecked,
    reopened,
    score_events,
)
from sfxreduce.pipeline.stages.conditions import with_conditions
from sfxreduce.run.reasons import UNSAFE, Reason
from sfxreduce.run.run import FrameSource, Run, block_sizes
from sfxreduce.run.select import select_run
from sfxreduce.run.window import Window
from sfxreduce.scorers.protocol import NOT_COUNTED, Scorer, needs_gpu

__all__ = [
    "EVENTS_PER_BATCH",
    "Rescored",
    "ScoredJob",
    "collect_scores",
    "differing_pixels",
    "events_per_batch",
    "safe_scores",
    "score",
    "score_rescue",
    "score_run",
    "scored_pixels",
]

EVENTS_PER_BATCH = 64
"""Events of one scoring task: large enough that a task's own cost is a few per cent of it."""


EVENTS_PER_STREAM = 8192
"""The same where a device works while threads decode: its pipeline must fill and empty once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """What had to be scored again although a score was known.

    Parameters
    ----------
    events_reopened : int
        Events that were closed early as sure hits, and whose score no longer decides.
    events_rechecked : int
        Events that were scored whole, and that the new threshold may close early as sure hits.
    tiles_read : int
        Tiles that the new scores of both rest on.
    """

    events_reopened: int = 0
    events_rechecked: int = 0
    tiles_read: int = 0


def events_per_batch(scorer: Scorer) -> int:
    """Events of one scoring task of a scorer."""
    return EVENTS_PER_STREAM if needs_gpu(scorer) else EVENTS_PER_BATCH


def score(run: Run, scorer: Scorer, *, batch: int = 0, closed_from: float = math.inf) -> da.Array:
    """Scores of all events of a run, lazily: one task per batch of consecutive events.

    A task reads its own events' window and returns scores only, so that no pixels travel between
    workers. Batches depend on the event's position alone: any pool gives the same numbers.

    Parameters
    ----------
    batch : int
        Events of one task; 0 for `events_per_batch`.
    closed_from : float
        An event with such a score is a hit whatever its other tiles show, so that a scorer that
        can look at a few tiles first need not read them. Its score is then the least it can be.

    Returns
    -------
    dask.array.Array
        Shape (event,), dtype `SCORE_DTYPE`. The score is NaN where an event could not be read.
    """
    batch = batch or events_per_batch(scorer)
    scores: da.Array = da.map_blocks(
        _score_block,
        source=run.source,
        scorer=scorer,
        batch=batch,
        n_events=run.n_events,
        closed_from=closed_from,
        chunks=(block_sizes(run.n_events, batch),),
        dtype=SCORE_DTYPE,
        meta=np.empty(0, SCORE_DTYPE),
        name=f"score-{tokenize(run.source, scorer, batch, closed_from)}",
    )
    return scores


def score_rescue(
    run: Run, scorer: Scorer, *, batch: int = 0, closed_from: float = math.inf
) -> Rescue[range, NDArray[np.void]]:
    """What becomes of a batch that ends its workers: the events that do it have no score.

    Parameters
    ----------
    run, scorer, batch, closed_from
        As for `score`.
    """
    return Rescue(
        item=partial(
            _events_of_block, batch=batch or events_per_batch(scorer), n_events=run.n_events
        ),
        attempt=partial(score_events, run.source, scorer, closed_from=closed_from),
        halves=halves_of,
        lost=_lost_rows,
        joined=_joined_rows,
    )


def _lost_rows(events: range) -> NDArray[np.void]:
    rows = np.zeros(len(events), SCORE_DTYPE)
    rows["score"] = rows["width_px"] = np.nan
    rows["reason"], rows["peaks"] = Reason.WORKER_LOST, NOT_COUNTED
    return rows


def _joined_rows(_: range, parts: Sequence[NDArray[np.void]]) -> NDArray[np.void]:
    return np.concatenate(parts)


def _events_of_block(block: int, *, batch: int, n_events: int) -> range:
    return range(block * batch, min((block + 1) * batch, n_events))


def _score_block(
    *,
    source: FrameSource,
    scorer: Scorer,
    batch: int,
    n_events: int,
    closed_from: float,
    block_id: tuple[int],
) -> NDArray[np.void]:
    """Score one batch of events."""
    events = _events_of_block(block_id[0], batch=batch, n_events=n_events)
    return score_events(source, scorer, events, closed_from=closed_from)


def safe_scores(
    run: Run, scorer: Scorer, *, pool: Pool, progress: Progress, stage: str
) -> NDArray[np.float32]:
    """Scores of all events of a run; NaN where a reject would not be allowed.

    Parameters
    ----------
    stage : str
        What `progress` is told is being done.

    Returns
    -------
    ndarray of float32
        Shape (event,).
    """
    measured = with_conditions(run, scorer, pool=pool)
    rows = collect_scores(measured, scorer, pool=pool, stage=stage, progress=progress)
    unsafe = (rows["reason"] & np.uint32(UNSAFE)) != 0
    return np.where(unsafe, np.float32(np.nan), rows["score"])


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

    Parameters
    ----------
    run : Run
        With its conditions, if the scorer needs them.
    closed_from : float
        An event with such a score is a hit whatever its other tiles show: see `score`.
    stage : str
        What the progress is called.
    notes : Notes
        Scores that are known already, and where to note new ones.

    Returns
    -------
    ndarray
        Shape (event,), dtype `SCORE_DTYPE`.
    """
    rows = np.zeros(run.n_events, SCORE_DTYPE)
    scores = score(run, scorer, closed_from=closed_from)
    rescue = score_rescue(run, scorer, closed_from=closed_from)

    def work(left: Sequence[int]) -> Iterator[tuple[int, NDArray[Any]]]:
        # Of the array as it is, all blocks; what is taken out of it costs tasks of its own.
        some = scores if len(left) == scores.npartitions else scores.blocks[list(left)]
        return pool.blocks(some, needs_gpu=needs_gpu(scorer), rescue=rescue.of_parts(left))

    blocks = each_once(notes, stage, scores.npartitions, work, dtype=SCORE_DTYPE)
    for block, values in tracked(blocks, stage=stage, total=scores.npartitions, progress=progress):
        start = block * events_per_batch(scorer)
        rows[start : start + len(values)] = values
    return rows


def scored_pixels(rows: NDArray[np.void], window: Window | None) -> Scored:
    """What scores rest on.

    Parameters
    ----------
    rows : ndarray
        Shape (event,), dtype `SCORE_DTYPE`.
    window : Window or None
        Of the scorer.
    """
    return Scored(window=window, tiles=rows["tiles"].copy(), seen=rows["seen"].copy())


def differing_pixels(job: ScoredJob) -> list[int]:
    """Events of which other pixels are read now than were scored."""
    differing = []
    for event in np.flatnonzero(job.scored.seen).tolist():
        try:
            reading = job.source.read([job.first + event], job.scored.window_of(event))
        except SOURCE_LOST:
            differing.append(job.first + event)
            continue
        same = not reading.reasons[0] and pixel_hash(reading.pixels[0]) == job.scored.seen[event]
        if not same:
            differing.append(job.first + event)
    return differing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredJob:
    """Consecutive events whose pixels are to be compared with those that were scored.

    Parameters
    ----------
    first : int
        Position of the first of them.
    """

    source: FrameSource
    scored: Scored
    first: int


def score_run(
    run: Run,
    scorer: Scorer,
    *,
    known: NDArray[np.void] | None = None,
    closed_from: float,
    pool: Pool,
    notes: Notes = NO_NOTES,
    progress: Progress = silent,
) -> tuple[NDArray[np.void], Rescored]:
    """Score every event, or only those whose known score rests on more, or fewer, tiles than now.

    Parameters
    ----------
    run : Run
        With its conditions, if the scorer needs them.
    known : ndarray, optional
        Known scores, shape (event,), dtype `SCORE_DTYPE`.
    closed_from : float
        As for `score`.

    Returns
    -------
    tuple of ndarray and Rescored
        Shape (event,), dtype `SCORE_DTYPE`; and what of the known scores had to be done again.
    """
    if known is None:
        rows = collect_scores(
            run, scorer, pool=pool, closed_from=closed_from, notes=notes, progress=progress
        )
        return rows, Rescored()
    opened = reopened(known, scorer, run.detector, closed_from=closed_from)
    checked = rechecked(known, scorer, run.detector, closed_from=closed_from)
    events, rows = np.flatnonzero(opened | checked), known.copy()
    if events.size:
        rows[events] = collect_scores(
            select_run(run, events),
            scorer,
            pool=pool,
            closed_from=closed_from,
            # A name of its own: what is noted of these events is not of the run's batches.
            stage="reopen",
            notes=notes,
            progress=progress,
        )
    return rows, Rescored(
        events_reopened=int(np.count_nonzero(opened)),
        events_rechecked=int(np.count_nonzero(checked)),
        tiles_read=int(rows["tiles"][events].sum()),
    )
