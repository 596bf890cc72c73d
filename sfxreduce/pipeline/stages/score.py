"""A score for every event, lazily and block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

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
from sfxreduce.decisions.decide import ScoreBound
from sfxreduce.decisions.method import RunThreshold
from sfxreduce.io.chunks.shards import pixel_hash
from sfxreduce.io.writers.shards import Scored
from sfxreduce.pipeline.stages.batch import (
    SCORE_DTYPE,
    SOURCE_LOST,
    first_window_of,
    read_here_alone,
    score_events,
    unscored_rows,
)
from sfxreduce.pipeline.stages.conditions import with_conditions
from sfxreduce.run.reasons import UNREAD, UNSAFE, Reason
from sfxreduce.run.run import FrameSource, Run, block_sizes, select_run
from sfxreduce.run.window import Window
from sfxreduce.scorers.calibration.record import FirstLook
from sfxreduce.scorers.protocol import Scorer, calibration_of, needs_gpu

__all__ = [
    "EVENTS_PER_BATCH",
    "SEEN_ON_PIXELS",
    "Rescored",
    "ScoredJob",
    "SeesScores",
    "bound_by_first_tiles",
    "collect_scores",
    "differing_pixels",
    "events_per_batch",
    "highest_scores",
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


SEEN_ON_PIXELS = (
    Reason.PANELS_MISSING
    | Reason.FEW_NONFINITE
    | Reason.MANY_NONFINITE
    | Reason.CONSTANT
    | Reason.SATURATED
    | Reason.PANEL_HOT
    | Reason.OUT_OF_DISTRIBUTION
    | Reason.DOUBTED_AT_FIRST
)
"""Reasons that a scored event can have from being scored. Any other one lies in the run's columns,
or came later: when the event was copied, drawn, or doubted by the run-similarity check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """What had to be scored again although something of a score was known.

    Parameters
    ----------
    reread : int
        Events of which more than the first tiles was needed, because what these say of the score
        does not decide.
    tiles_read : int
        Tiles that their new scores rest on.
    """

    reread: int = 0
    tiles_read: int = 0


@runtime_checkable
class SeesScores(Protocol):
    """Progress that is also shown the scores as they come."""

    def scored(self, first: int, rows: NDArray[np.void]) -> None:
        """See what the first tiles say of consecutive events, the first at this position."""
        ...

    def settled(self, rows: NDArray[np.void], threshold: float) -> None:
        """See the scores of all events, and the threshold of the run."""
        ...


def events_per_batch(scorer: Scorer) -> int:
    """Events of one scoring task of a scorer."""
    return EVENTS_PER_STREAM if needs_gpu(scorer) else EVENTS_PER_BATCH


def score(run: Run, scorer: Scorer, *, batch: int = 0, first: bool = False) -> da.Array:
    """Scores of all events of a run, lazily: one task per batch of consecutive events.

    A task reads its own events' window and returns scores only, so that no pixels travel between
    workers. Batches depend on the event's position alone: any pool gives the same numbers.

    Parameters
    ----------
    batch : int
        Events of one task; 0 for `events_per_batch`.
    first : bool
        Look at the first tiles only, where that can be: what comes out bounds the scores.

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
        first=first,
        chunks=(block_sizes(run.n_events, batch),),
        dtype=SCORE_DTYPE,
        meta=np.empty(0, SCORE_DTYPE),
        name=f"score-{tokenize(run.source, scorer, batch, first)}",
    )
    return scores


def score_rescue(
    run: Run, scorer: Scorer, *, batch: int = 0, first: bool = False
) -> Rescue[range, NDArray[np.void]]:
    """What becomes of a batch that ends its workers: the events that do it have no score.

    Parameters
    ----------
    run, scorer, batch, first
        As for `score`.
    """
    return Rescue(
        item=partial(
            _events_of_block, batch=batch or events_per_batch(scorer), n_events=run.n_events
        ),
        attempt=partial(score_events, run.source, scorer, first=first),
        halves=halves_of,
        lost=_lost_rows,
        joined=_joined_rows,
        doubted=partial(_doubted, run.source, scorer),
    )


def _doubted(source: FrameSource, scorer: Scorer, events: range, rows: NDArray[np.void]) -> bool:
    """Whether an event can be read here of which a worker says that it cannot."""
    return read_here_alone(source, events, rows["reason"], scorer.window(source.detector))


def _lost_rows(events: range) -> NDArray[np.void]:
    rows = unscored_rows(len(events))
    rows["reason"] = Reason.WORKER_LOST
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
    first: bool,
    block_id: tuple[int],
) -> NDArray[np.void]:
    """Score one batch of events."""
    events = _events_of_block(block_id[0], batch=batch, n_events=n_events)
    return score_events(source, scorer, events, first=first)


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
    first: bool = False,
    stage: str = "score",
    notes: Notes = NO_NOTES,
    progress: Progress = silent,
) -> NDArray[np.void]:
    """Score every event of a run; the scores are computed here, batch by batch.

    Parameters
    ----------
    run : Run
        With its conditions, if the scorer needs them.
    first : bool
        Look at the first tiles only: see `score`.
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
    scores = score(run, scorer, first=first)
    rescue = score_rescue(run, scorer, first=first)

    def work(left: Sequence[int]) -> Iterator[tuple[int, NDArray[Any]]]:
        # Of the array as it is, all blocks; what is taken out of it costs tasks of its own.
        some = scores if len(left) == scores.npartitions else scores.blocks[list(left)]
        return pool.blocks(some, needs_gpu=needs_gpu(scorer), rescue=rescue.of_parts(left))

    blocks = each_once(
        notes, stage, scores.npartitions, work, dtype=SCORE_DTYPE, is_open=_with_unread
    )
    if stage == "score" and isinstance(progress, SeesScores):
        blocks = _shown(blocks, progress, batch=events_per_batch(scorer))
    for block, values in tracked(blocks, stage=stage, total=scores.npartitions, progress=progress):
        start = block * events_per_batch(scorer)
        rows[start : start + len(values)] = values
    return rows


def _with_unread(rows: NDArray[np.void]) -> bool:
    """Whether a batch has events that could not be read when it was noted."""
    return bool((rows["reason"] & np.uint32(UNREAD)).any())


def _shown(
    blocks: Iterator[tuple[int, NDArray[Any]]], watcher: SeesScores, *, batch: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Show blocks of scores on their way, before it is told that they are done."""
    for block, values in blocks:
        watcher.scored(block * batch, values)
        yield block, values


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
    threshold_of: Callable[[NDArray[np.float32]], RunThreshold],
    pool: Pool,
    notes: Notes = NO_NOTES,
    progress: Progress = silent,
) -> tuple[NDArray[np.void], RunThreshold, Rescored]:
    """Look at the first tiles of every event, set the threshold, and score what is open then whole.

    The threshold depends on the first tiles alone, so that any pool, and a run that was cut off and
    resumed, gives the same.

    Parameters
    ----------
    run : Run
        With its conditions, if the scorer needs them.
    known : ndarray, optional
        Known scores, shape (event,), dtype `SCORE_DTYPE`; pixels are read only where these do not
        say on which side of the threshold an event lies.
    threshold_of : callable
        Given the highest score that each event can have, shape (event,), sets the threshold.

    Returns
    -------
    tuple of ndarray, RunThreshold and Rescored
        Rows of shape (event,) and dtype `SCORE_DTYPE`; and what of the known ones was read again.
    """
    rows, chosen, rescored = _scored(
        run, scorer, known=known, threshold_of=threshold_of, pool=pool, notes=notes,
        progress=progress,
    )  # fmt: skip
    if isinstance(progress, SeesScores):
        progress.settled(rows, chosen.value)
    return rows, chosen, rescored


def _scored(
    run: Run,
    scorer: Scorer,
    *,
    known: NDArray[np.void] | None,
    threshold_of: Callable[[NDArray[np.float32]], RunThreshold],
    pool: Pool,
    notes: Notes,
    progress: Progress,
) -> tuple[NDArray[np.void], RunThreshold, Rescored]:
    """See `score_run`."""
    detector, look = run.detector, calibration_of(scorer, run.detector).first_look
    rows = (
        collect_scores(run, scorer, pool=pool, first=True, notes=notes, progress=progress)
        if known is None
        else known.copy()
    )
    chosen = threshold_of(highest_scores(rows, look))
    chosen = _noted(chosen, notes)
    if look is None:
        return rows, chosen, Rescored()
    first = first_window_of(run.source, scorer, detector)
    open_events = np.flatnonzero(
        bound_by_first_tiles(rows, look, threshold=chosen.value, again=first is not None)
    )
    if open_events.size:
        # A name of its own: what is noted of these events is not of the run's batches.
        whole = collect_scores(
            select_run(run, open_events),
            scorer,
            pool=pool,
            stage="whole",
            notes=notes,
            progress=progress,
        )
        whole["reason"] |= rows["reason"][open_events] & np.uint32(Reason.DOUBTED_AT_FIRST)
        rows[open_events] = whole
    if known is None:
        return rows, chosen, Rescored()
    tiles_read = int(rows["tiles"][open_events].sum())
    return rows, chosen, Rescored(reread=int(open_events.size), tiles_read=tiles_read)


def _noted(chosen: RunThreshold, notes: Notes) -> RunThreshold:
    """Write the threshold down before more is read for it."""
    value = np.array([chosen.value], np.float64)
    [(_, noted)] = each_once(notes, "threshold", 1, lambda _: iter([(0, value)]), dtype=value.dtype)
    return replace(chosen, value=float(noted[0]))


def highest_scores(rows: NDArray[np.void], look: FirstLook | None) -> NDArray[np.float32]:
    """Highest score that each event can have by its first tiles, shape (event,).

    Parameters
    ----------
    rows : ndarray
        Shape (event,), dtype `SCORE_DTYPE`.
    look : FirstLook, optional
        Of the scorer; the scores themselves without one.
    """
    scores: NDArray[np.float32] = rows["score"] if look is None else look.most(rows["first"])
    return scores


def bound_by_first_tiles(
    rows: NDArray[np.void], look: FirstLook, *, threshold: float, again: bool
) -> NDArray[np.bool_]:
    """Write down what the first tiles say of each score; which events have to be seen whole.

    Parameters
    ----------
    rows : ndarray
        Shape (event,), dtype `SCORE_DTYPE`; changed in place.
    again : bool
        Whether `filter` would look at the first tiles only: a score that is known exactly, and
        which it would not ask for, is then replaced by what it would write.

    Examples
    --------
    >>> rows = unscored_rows(3)
    >>> rows["first"], rows["bound"] = [0.01, 0.06, 0.2], ScoreBound.AT_MOST
    >>> look = FirstLook(tiles=9, share=0.5)
    >>> bound_by_first_tiles(rows, look, threshold=0.1, again=True).tolist()
    [False, True, False]
    >>> [ScoreBound(bound).name for bound in rows["bound"]]
    ['AT_MOST', 'AT_MOST', 'AT_LEAST']
    """
    exact = rows["bound"] == ScoreBound.EXACT
    doubted = (rows["reason"] & np.uint32(Reason.DOUBTED_AT_FIRST)) != 0
    looked_at = np.isfinite(rows["first"]) & ~doubted & (again | ~exact)
    most = look.most(rows["first"])
    low, high = looked_at & (most < threshold), looked_at & (rows["first"] >= threshold)
    for bounded, bound, score in (
        (low, ScoreBound.AT_MOST, most),
        (high, ScoreBound.AT_LEAST, rows["first"]),
    ):
        rows["bound"][bounded], rows["score"][bounded] = bound, score[bounded]
        rows["tiles"][bounded] = look.tiles
        # What only all of the tiles showed is not known to one who looks at the first alone.
        rows["reason"][bounded] &= ~np.uint32(SEEN_ON_PIXELS)
    open_events: NDArray[np.bool_] = np.isfinite(rows["first"]) & ~exact & ~low & ~high
    return open_events
