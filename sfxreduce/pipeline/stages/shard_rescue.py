"""A shard with an event that ends whatever reads it: found by halves, and left out as a hole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sfxreduce.cluster.rescue import Rescue, halves_of
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.writers.shards import ShardJob, ShardWritten, TiledSource, copy_shard
from sfxreduce.run.reasons import Reason
from sfxreduce.run.source import Reading, WrappedFrames
from sfxreduce.run.window import Window

__all__ = ["shard_rescue"]


def shard_rescue(
    write: Callable[[ShardJob], ShardWritten],
) -> Rescue[ShardJob, ShardWritten]:
    """What becomes of a shard that ends its workers: the events that do it become holes.

    Parts are only read: a part of a shard must never lie where the whole one belongs.

    Parameters
    ----------
    write : callable
        `copy_shard` or `encode_shard`.
    """
    return Rescue(
        attempt=partial(_read, copies=write is copy_shard),
        halves=_halves,
        lost=_lost,
        joined=partial(_written, write=write),
    )


def _read(job: ShardJob, *, copies: bool) -> tuple[int, ...]:
    """Read what the job would; none of its events is lost."""
    if copies and isinstance(job.source, TiledSource):
        for _ in job.source.encoded(job.events):
            pass
    else:
        for event in job.events:
            job.source.read([event])
    return ()


def _halves(job: ShardJob) -> list[ShardJob]:
    return [replace(job, events=events) for events in halves_of(job.events)]


def _lost(job: ShardJob) -> tuple[int, ...]:
    return job.events


def _written(
    job: ShardJob,
    parts: Sequence[tuple[int, ...]],
    *,
    write: Callable[[ShardJob], ShardWritten],
) -> ShardWritten:
    """Write the shard, once, without the events that are lost."""
    lost = frozenset(event for part in parts for event in part)
    return write(replace(job, source=_Spared(source=job.source, lost=lost)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spared(WrappedFrames):
    """A source of frames some of which are never read. See `sfxreduce.run.source.FrameSource`."""

    lost: frozenset[int]

    @property
    def layout(self) -> Layout | None:
        """Layout of its stored tiles; None if there are none."""
        return self.source.layout if isinstance(self.source, TiledSource) else None

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read what is not lost; see `sfxreduce.run.source.FrameSource.read`."""
        there = np.array([event not in self.lost for event in events], np.bool_)
        reasons = np.full(len(events), Reason.WORKER_LOST, np.uint32)
        shape = self.detector.frame_shape if window is None else window.shape
        pixels = np.zeros((len(events), *shape), self.dtype)
        if there.any():
            chosen = [event for event, here in zip(events, there, strict=True) if here]
            reading = self.source.read(chosen, window)
            pixels[there], reasons[there] = reading.pixels, reading.reasons
        return Reading(pixels=pixels, reasons=reasons)

    def encoded(self, events: Sequence[int]) -> Iterator[list[bytes | None]]:
        """Stored tiles of events; none of those that are lost."""
        if not isinstance(self.source, TiledSource) or self.layout is None:
            return
        tiles = self.source.encoded([event for event in events if event not in self.lost])
        for event in events:
            yield [None] * self.layout.tiles_per_event if event in self.lost else next(tiles)
