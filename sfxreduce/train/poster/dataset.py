"""Labelled events as the network sees them, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster.pool import Progress, silent, tracked
from sfxreduce.errors import LabelError
from sfxreduce.run.labels import Label, Labels
from sfxreduce.run.run import Run
from sfxreduce.run.window import CENTRE, TileChoice
from sfxreduce.scorers.cnn.poster.normalise import Normalisation, normalise

__all__ = ["EventSet", "gather", "read_labelled", "split_events"]

_TILES_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EventSet:
    """Hits and misses of one run.

    Parameters
    ----------
    seen : ndarray of float16
        Shape (event, tile, y, x), normalised. Half precision: the values are noise units between
        -4 and 16, and a few thousand events must fit in memory.
    is_hit : ndarray of bool
        Shape (event,).
    """

    seen: NDArray[np.float16] = field(repr=False)
    is_hit: NDArray[np.bool_] = field(repr=False)

    def __len__(self) -> int:
        return self.is_hit.size

    @property
    def n_hits(self) -> int:
        """Number of hits."""
        return int(np.count_nonzero(self.is_hit))


def read_labelled(
    run: Run,
    labels: Labels,
    *,
    normalisation: Normalisation,
    most_tiles: int,
    tiles: TileChoice = CENTRE,
    seed: int = 0,
    progress: Progress = silent,
) -> EventSet:
    """Read the window of a run's hits and misses, each once, and normalise it.

    Parameters
    ----------
    most_tiles : int
        If the labelled events have more, a random sample of events is taken: memory is finite, and
        a network of this size learns little from more.
    tiles : TileChoice
        What is read of each event.
    seed : int
        Of that sample.

    Raises
    ------
    LabelError
        If no hit or no miss of the run can be read.
    """
    chosen = np.flatnonzero(labels.label != Label.MAYBE)
    detector = run.detector
    window = tiles.window(detector)
    most_events = max(most_tiles // len(window.origins), 1)
    if chosen.size > most_events:
        chosen = np.sort(np.random.default_rng(seed).permutation(chosen)[:most_events])
    good = window.good(detector)
    seen = np.empty((chosen.size, *window.shape), np.float16)
    readable = np.zeros(chosen.size, np.bool_)
    step = max(_TILES_AT_ONCE // len(window.origins), 1)
    starts = range(0, chosen.size, step)
    for start in tracked(starts, stage="read", total=len(starts), progress=progress):
        part = slice(start, start + step)
        reading = run.source.read(chosen[part].tolist(), window)
        readable[part] = reading.reasons == 0
        seen[part] = normalise(
            reading.pixels, good, adu_per_photon=detector.adu_per_photon, how=normalisation
        )
    is_hit = labels.label[chosen] == Label.HIT
    if not readable.all():
        seen, is_hit = seen[readable], is_hit[readable]
    if is_hit.all() or not is_hit.any():
        n_hits = int(is_hit.sum())
        raise LabelError(
            f"{run.path}: expected hits and misses, found {n_hits} and {is_hit.size - n_hits} that "
            "can be read; pass --miss-at-most and --min-peaks, or leave this run out"
        )
    return EventSet(seen=seen, is_hit=is_hit)


def split_events(events: EventSet, *, every: int) -> tuple[EventSet, EventSet]:
    """Set aside every n-th hit and miss.

    Returns
    -------
    rest, aside : EventSet

    Examples
    --------
    >>> whole = EventSet(seen=np.zeros((6, 1, 1, 1), np.float16), is_hit=np.arange(6) < 3)
    >>> rest, aside = split_events(whole, every=3)
    >>> len(rest), aside.is_hit.tolist()
    (4, [True, False])
    """
    order = np.argsort(~events.is_hit, kind="stable")
    rank = np.empty(len(events), np.int64)
    rank[order] = np.arange(len(events)) - np.where(events.is_hit[order], 0, events.n_hits)
    aside = rank % every == every - 1
    rest, held = (EventSet(seen=events.seen[w], is_hit=events.is_hit[w]) for w in (~aside, aside))
    return rest, held


def gather(
    sets: Sequence[EventSet],
    rows: Sequence[tuple[int, int]],
    *,
    most_tiles: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Copy events, named by set and row, into one array (event, tile, y, x).

    Of events with more tiles than `most_tiles`, or than the other sets have, some are drawn.
    """
    n_tiles = [events.seen.shape[1] for events in sets]
    shown = min(most_tiles, *n_tiles)

    def some(s: int) -> slice | NDArray[np.int64]:
        return slice(None) if n_tiles[s] == shown else rng.permutation(n_tiles[s])[:shown]

    return np.stack([sets[s].seen[row][some(s)] for s, row in rows]).astype(np.float32)
