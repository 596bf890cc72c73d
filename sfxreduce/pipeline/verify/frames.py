"""Kept events against those they were copied from, bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import Progress, silent, tracked
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.io.writers.shards import marked_in
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import FrameSource, Reading

__all__ = ["CompareJob", "compare_events", "differing_events"]

EVENTS_PER_TASK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareJob:
    """Kept events to compare.

    Parameters
    ----------
    first : int
        Position in the output of the first of these events; the others follow it.
    source_index : tuple of int
        Their positions in the source.
    """

    kept: FrameSource
    source: FrameSource
    first: int
    source_index: tuple[int, ...]


def compare_events(
    kept: FrameSource,
    source: FrameSource,
    index: NDArray[np.int64],
    *,
    pool: Pool,
    progress: Progress = silent,
) -> list[int]:
    """Compare all events of a store with their source; both are read whole.

    Parameters
    ----------
    index : ndarray of int64
        Positions in the source of the store's events, shape (event,).
    pool : Pool
        Reads and compares, a few events at a time.

    Returns
    -------
    list of int
        Positions in the store of events that differ or cannot be compared, ascending.
    """
    starts = range(0, index.size, EVENTS_PER_TASK)
    jobs = (
        CompareJob(
            kept=kept,
            source=source,
            first=start,
            source_index=tuple(index[start : start + EVENTS_PER_TASK].tolist()),
        )
        for start in starts
    )
    work = pool.map("verify", differing_events, jobs)
    done = tracked(work, stage="verify", total=len(starts), progress=progress)
    return sorted(place for _, found in done for place in found)


def differing_events(job: CompareJob) -> list[int]:
    """Positions in the output of events that are not bit for bit those of the source."""
    differing = []
    for place, source_index in enumerate(job.source_index, start=job.first):
        if place >= job.kept.n_events or source_index >= job.source.n_events:
            differing.append(place)
            continue
        ours, theirs = job.kept.read([place]), job.source.read([source_index])
        if ours.lost[0] or theirs.lost[0]:
            same = _same_holes(job, place, source_index)
        else:
            same = _same_where_read(ours, theirs, _marked(job.kept, place))
        if not same:
            differing.append(place)
    return differing


def _marked(kept: FrameSource, place: int) -> NDArray[np.bool_]:
    """Pixels of panels that the output says are missing, in the shape of a frame."""
    shape = kept.detector.frame_shape
    panels = marked_in(kept, [place]).get(place, [])
    marked = np.zeros((len(kept.detector.panels), math.prod(shape[-2:])), np.bool_)
    marked[panels] = True
    return marked.reshape(shape)


def _same_where_read(ours: Reading, theirs: Reading, marked: NDArray[np.bool_]) -> bool:
    """Whether the source has, bit for bit, all pixels that the output has of one event.

    What is missing without being marked has to be missing of the source as well; and a tile that is
    damaged since is no hole.
    """
    if ours.pixels.dtype != theirs.pixels.dtype or ours.pixels.shape != theirs.pixels.shape:
        return False
    if 0 not in ours.missing:
        return 0 not in theirs.missing and ours.pixels.tobytes() == theirs.pixels.tobytes()
    if ours.reasons[0] & np.uint32(Reason.READ_ERROR):
        return False
    nothing = np.zeros(marked.shape, np.bool_)
    missing = theirs.missing.get(0, nothing)
    read = ~ours.missing[0]
    there = not (missing & read).any() and not (~read & ~marked & ~missing).any()
    same = ours.pixels[0][read].tobytes() == theirs.pixels[0][read].tobytes()
    return there and same


def _same_holes(job: CompareJob, place: int, source_index: int) -> bool:
    """Whether what the source cannot deliver, and nothing else, is a hole in the output."""
    kept, source = job.kept, job.source
    if (
        isinstance(kept, ZarrFrames)
        and isinstance(source, ZarrFrames)
        and kept.layout is not None
        and kept.layout == source.layout
    ):
        return next(kept.encoded([place])) == next(source.encoded([source_index]))
    return bool(kept.read([place]).lost[0] and source.read([source_index]).lost[0])
