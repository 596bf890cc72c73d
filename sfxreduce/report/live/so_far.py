"""What is known of a filter run while it is under way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from sfxreduce.decisions.assurance import Assurance
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.io.files.durable import disk_bytes, hidden_folders
from sfxreduce.run.reasons import UNSAFE, Reason
from sfxreduce.run.run import Run
from sfxreduce.scorers.protocol import Scorer

__all__ = ["RunSoFar", "Snapshot"]

STRIPES = 60
"""Parts of a run whose rates are drawn side by side."""

SHOWN = 6
"""Frames of a kind that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """A filter run at one moment.

    Parameters
    ----------
    scored, hits, undecided : int
        Events so far.
    provisional : bool
        Whether a score may still fall: the first tiles of an event give the most that it can be.
    stage : str
        Name of what is being done, and how far it is; empty at the end.
    seconds : float
        From when scoring began until the last events that were scored.
    hit_rates, undecided_rates : ndarray of float64
        Shares in each part of the run, shape (part,); NaN where nothing was scored.
    scores : ndarray of float32
        Of the events scored.
    threshold : float or None
        Smallest score of a hit; None if it is not known.
    reasons : mapping of str to int
        Flags for which events are not to be rejected, and how many have each.
    bytes_scored, bytes_all, bytes_written : int
        Pixels that scores rest on, all pixels of the run, and what lies on the disk of the output.
    latest, nearest : tuple of tuple of int and float
        Events with their scores: last hits, and those nearest to the threshold.
    assurance : Assurance or None
        What the checks found; None before they are done.
    """

    scored: int
    hits: int
    undecided: int
    provisional: bool
    stage: str
    seconds: float
    hit_rates: NDArray[np.float64]
    undecided_rates: NDArray[np.float64]
    scores: NDArray[np.float32]
    threshold: float | None
    reasons: Mapping[str, int]
    bytes_scored: int
    bytes_all: int
    bytes_written: int
    latest: tuple[tuple[int, float], ...]
    nearest: tuple[tuple[int, float], ...]
    assurance: Assurance | None


class RunSoFar:
    """What is known of a filter run while it is under way; one thread reports to it, others read.

    It is a `progress` of `sfxreduce.filter_run`, which reports all but the end: call `ended` then.

    Parameters
    ----------
    hit_from : float or None
        Smallest score of a hit, as far as that is known before; see `FilterSettings.hit_from`.
    out : Path
        Where the reduced store will be.

    Attributes
    ----------
    tasks_each_second : callable
        Gives the pace of each worker, in tasks of scoring; what one is worth is known here.
    """

    def __init__(
        self,
        run: Run,
        scorer: Scorer,
        *,
        hit_from: float | None,
        out: Path,
    ) -> None:
        self.tasks_each_second: Callable[[], Mapping[str, float]] = dict
        self._lock = Lock()
        self.begin(run, scorer, hit_from=hit_from, out=out)

    def begin(self, run: Run, scorer: Scorer, *, hit_from: float | None, out: Path) -> None:
        """Turn to another run, which is filtered next; the parameters are those of the class."""
        with self._lock:
            self._begin(run, scorer, hit_from, out)

    def _begin(self, run: Run, scorer: Scorer, hit_from: float | None, out: Path) -> None:
        self.run = run
        window = scorer.window(run.detector)
        pixel_bytes = run.source.dtype.itemsize
        self._frame_bytes = pixel_bytes * math.prod(run.detector.frame_shape)
        self._tile_bytes = 0 if window is None else pixel_bytes * math.prod(window.shape[1:])
        self._out = out
        self._threshold = hit_from
        self._scores = np.full(run.n_events, np.nan, np.float32)
        self._reasons = np.zeros(run.n_events, np.uint32)
        self._tiles = np.zeros(run.n_events, np.uint32)
        self._is_scored = np.zeros(run.n_events, np.bool_)
        self._order: list[int] = []
        self._blocks = 0
        self._stage = "measuring the detector"
        self._begun = self._last = 0.0
        self._decided: Decisions | None = None
        self._assurance: Assurance | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of progress. See `sfxreduce.cluster.pool.Progress`."""
        with self._lock:
            self._stage = f"{stage} {done:,}/{total:,}"
            if stage == "score" and not done:
                self._begun = self._last = time.monotonic()

    def scored(self, first: int, rows: NDArray[np.void]) -> None:
        """Take note of consecutive events, the first of them at this position."""
        some = slice(first, first + len(rows))
        with self._lock:
            self._last = time.monotonic()
            self._blocks += 1
            self._note(some, rows)
            if self._threshold is not None:
                new = first + np.flatnonzero(rows["score"] >= self._threshold)
                self._order = [*self._order, *new.tolist()][-10 * SHOWN :]

    def settled(self, rows: NDArray[np.void], threshold: float) -> None:
        """Take note of the final scores of all events, and of the threshold of this run."""
        with self._lock:
            self._threshold = threshold
            self._note(slice(None), rows)
            hits = set(np.flatnonzero(rows["score"] >= threshold).tolist())
            self._order = [event for event in self._order if event in hits]
            self._stage = "checking the run"

    def planned(self, decisions: Decisions, assurance: Assurance) -> None:
        """Take note of the decisions, and of what the checks found."""
        with self._lock:
            self._decided, self._assurance = decisions, assurance
            self._stage = "writing"

    def ended(self) -> None:
        """Take note that the output is there."""
        with self._lock:
            self._stage = ""

    def workers(self) -> dict[str, float]:
        """Events that each worker scores in a second, of late."""
        with self._lock:
            per_task = int(self._is_scored.sum()) / max(self._blocks, 1)
        return {name: per_task * pace for name, pace in self.tasks_each_second().items()}

    def snapshot(self) -> Snapshot:
        """How far it is now."""
        written = self._bytes_written()
        with self._lock:
            known, scores, threshold = self._is_scored, self._scores, self._threshold
            unsafe = (self._reasons & np.uint32(UNSAFE)) != 0
            if self._decided is None:
                hit = known & (scores >= (np.inf if threshold is None else threshold))
                undecided = known & ~hit & (unsafe | ~np.isfinite(scores))
                reasons = self._reasons
            else:
                hit = self._decided.decision == Decision.HIT
                undecided = self._decided.decision == Decision.UNDECIDED
                reasons = self._decided.reason
            tiles = self._tiles[known].sum(dtype=np.int64)
            whole = np.count_nonzero(known & (self._tiles == 0) & np.isfinite(scores))
            return Snapshot(
                scored=int(known.sum()),
                hits=int(hit.sum()),
                undecided=int(undecided.sum()),
                provisional=self._decided is None,
                stage=self._stage,
                seconds=self._last - self._begun,
                hit_rates=_rates(hit, known),
                undecided_rates=_rates(undecided, known),
                scores=scores[known & np.isfinite(scores)],
                threshold=threshold,
                reasons=_counts(reasons[undecided]),
                bytes_scored=int(tiles) * self._tile_bytes + int(whole) * self._frame_bytes,
                bytes_all=self.run.n_events * self._frame_bytes,
                bytes_written=written,
                latest=self._with_scores(self._order[::-1][:SHOWN]),
                nearest=self._with_scores(_nearest(scores, threshold)),
                assurance=self._assurance,
            )

    def _note(self, some: slice, rows: NDArray[np.void]) -> None:
        self._scores[some], self._reasons[some] = rows["score"], rows["reason"]
        self._tiles[some], self._is_scored[some] = rows["tiles"], True

    def _with_scores(self, events: list[int]) -> tuple[tuple[int, float], ...]:
        return tuple((event, float(self._scores[event])) for event in events)

    def _bytes_written(self) -> int:
        folders = [self._out] if self._out.exists() else hidden_folders(self._out)
        try:
            return sum(map(disk_bytes, folders))
        except OSError:
            return 0  # files take their final names meanwhile


def _rates(chosen: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of the known events of each part of the run; NaN where none is known."""
    n = known.size
    edges = np.unique(np.linspace(0, n, min(STRIPES, n) + 1).astype(int))[:-1]
    if not n:
        return np.zeros(0)
    counts = np.add.reduceat(known.astype(float), edges)
    those = np.add.reduceat((chosen & known).astype(float), edges)
    return np.where(counts > 0, those / np.maximum(counts, 1), np.nan)


def _counts(reasons: NDArray[np.uint32]) -> dict[str, int]:
    """How many events have each flag for which an event is not rejected, most first."""
    counts = {
        str(flag.name).lower(): int(np.count_nonzero(reasons & np.uint32(flag)))
        for flag in Reason
        if flag & UNSAFE
    }
    return dict(sorted(((k, n) for k, n in counts.items() if n), key=lambda one: -one[1]))


def _nearest(scores: NDArray[np.float32], threshold: float | None) -> list[int]:
    """Events on either side of the threshold, by rank: probabilities crowd at both ends."""
    known = np.flatnonzero(np.isfinite(scores))
    if threshold is None or not known.size:
        return []
    order = known[np.argsort(scores[known], kind="stable")]
    limit = int(np.searchsorted(scores[order], threshold))
    low = max(min(limit - SHOWN // 2, order.size - SHOWN), 0)
    chosen: list[int] = order[low : low + SHOWN].tolist()
    return chosen
