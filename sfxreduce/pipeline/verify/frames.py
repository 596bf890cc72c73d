"""Kept events against those they were copied from, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import Progress, silent, tracked
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.run.run import FrameSource

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
        if ours.reasons[0] or theirs.reasons[0]:
            same = _same_holes(job, place, source_index)
        else:
            same = (
                ours.pixels.dtype == theirs.pixels.dtype
                and ours.pixels.shape == theirs.pixels.shape
                and ours.pixels.tobytes() == theirs.pixels.tobytes()
            )
        if not same:
            differing.append(place)
    return differing


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
    return bool(kept.read([place]).reasons[0] and source.read([source_index]).reasons[0])
