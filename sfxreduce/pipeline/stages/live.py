"""Provisional scores of the events of a growing run, and its sure hits so far."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.decisions.decide import Decision, decide
from sfxreduce.decisions.method import RunThreshold, ThresholdRule, threshold_rule
from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.io.growing import Look, Piece
from sfxreduce.io.readers.concatenate import join_runs
from sfxreduce.io.writers.live import LiveHits
from sfxreduce.pipeline.ingest import write_store
from sfxreduce.pipeline.stages.conditions import (
    event_reasons,
    measured_conditions,
    with_conditions,
)
from sfxreduce.pipeline.stages.score import highest_scores, score_run
from sfxreduce.pipeline.stages.settings import FilterSettings, needs_of
from sfxreduce.quality.conditions import Conditions
from sfxreduce.report.report import counted
from sfxreduce.run.reasons import UNREAD, UNSAFE, Reason
from sfxreduce.run.run import Run, select_run
from sfxreduce.scorers.protocol import calibration_of

__all__ = ["Followed", "LiveScores", "cpu_seconds"]

AT_ONCE = (64, 256, 4096)
"""Events of one batch: at least, at first, and at most."""

BATCH_SECONDS = (2.0, 5.0)
"""Batches that take less grow, and those that take more shrink: a program that is killed has to do
no more again.
"""

MOST_TRIES = 5
"""For an event that cannot be read: it may be half written, or damaged, as the end will show."""

NOT_READ = (RunNotFound, SchemaError, SourceError)

NOT_WHOLE = np.uint32(UNREAD | Reason.UNEXPECTED_FORMAT)


def cpu_seconds() -> float:
    """Processor time of this process and of those that it started, in seconds."""
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                used = child.cpu_times()
                total += used.user + used.system
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What came of following a run.

    Parameters
    ----------
    events, batches, live_hits : int
        Events with a live score, the batches they were scored in, and the sure hits among them.
    delay_median_s, delay_max_s : float
        From when an event was written to when its live score was there; NaN without events.
    cpu_s, final_cpu_s : float
        Processor time of following, and of the final filter; NaN as long as that has not ended.
        That of workers on other machines is not in it.
    ended_by : str
        Option that ended it: "until-file", "until-events" or "quiet"; empty before.
    """

    events: int
    batches: int
    live_hits: int
    delay_median_s: float
    delay_max_s: float
    cpu_s: float
    final_cpu_s: float = math.nan
    ended_by: str = ""

    @property
    def cost(self) -> float:
        """Processor time of following over that of the final filter."""
        return self.cpu_s / self.final_cpu_s if self.final_cpu_s else math.nan

    @property
    def sentence(self) -> str:
        """The same for people."""
        batches = f"{self.batches:,} batch{'' if self.batches == 1 else 'es'}"
        text = f"followed {counted(self.events, 'event')} in {batches}, "
        text += f"{counted(self.live_hits, 'sure hit')} among them"
        if self.events:
            text += (
                f"; live scores came {self.delay_median_s:.1f} s after the events (median), "
                f"{self.delay_max_s:.1f} s at most"
            )
        if math.isfinite(self.cost):
            text += f"; following took {self.cost:.2f} times the processor time of the final filter"
        return text

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return {
            "events": self.events,
            "batches": self.batches,
            "live_hits": self.live_hits,
            "delay_s": {"median": self.delay_median_s, "max": self.delay_max_s},
            "cpu_s": {"following": self.cpu_s, "final_filter": self.final_cpu_s},
            "cost_of_following": self.cost,
            "cost_against_offline": 1 + self.cost,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Share:
    """Events of one piece that are scored together with others."""

    piece: Piece
    events: NDArray[np.int64]

    @property
    def ranges(self) -> Iterator[tuple[str, int, int]]:
        """Name of the piece, first event and the one behind the last of consecutive ones."""
        steps = np.flatnonzero(np.diff(self.events) != 1) + 1
        for some in np.split(self.events, steps):
            if some.size:
                yield self.piece.name, int(some[0]), int(some[-1]) + 1


class _Seen:
    """What became of the events of one piece."""

    def __init__(self) -> None:
        self.done = np.zeros(0, np.bool_)
        self.tries = np.zeros(0, np.uint8)
        self.tried_ns = np.zeros(0, np.int64)

    def grow(self, n_events: int) -> None:
        """Make room for more events."""
        more = max(0, n_events - self.done.size)
        self.done = np.pad(self.done, (0, more))
        self.tries = np.pad(self.tries, (0, more))
        self.tried_ns = np.pad(self.tried_ns, (0, more))

    def open_events(self, piece: Piece) -> NDArray[np.int64]:
        """Events that are there, and are to be scored."""
        self.grow(piece.changed_ns.size)
        n = piece.changed_ns.size
        again = (self.tries[:n] < MOST_TRIES) | (self.tried_ns[:n] != piece.changed_ns)
        return np.flatnonzero((piece.changed_ns > 0) & ~self.done[:n] & again)

    def failed(self, piece: Piece, events: NDArray[np.int64]) -> None:
        """Take note of events that could not be read."""
        changed = piece.changed_ns[events]
        fresh = self.tried_ns[events] != changed
        self.tries[events] = np.where(fresh, 1, self.tries[events] + 1)
        self.tried_ns[events] = changed


class LiveScores:
    """Scores batches of a growing run, and lets its sure hits appear.

    Parameters
    ----------
    live : LiveHits
        Where they appear; what it holds already is not scored again.
    settings : FilterSettings
        As for the final output.
    """

    def __init__(self, live: LiveHits, settings: FilterSettings, *, pool: Pool) -> None:
        self._live = live
        self._settings = settings
        self._pool = pool
        self._seen: dict[str, _Seen] = {}
        self._delays: list[tuple[float, int]] = []
        self._events = self._hits = 0
        self._cpu_before = 0.0
        self._cpu_begun = cpu_seconds()
        self._cpu_noted = 0.0
        self._rule: ThresholdRule | None = None
        self._conditions: tuple[int, Conditions | None] = (0, None)
        self._highest = np.zeros(0, np.float32)
        self._at_once = AT_ONCE[1]
        self._look: Look | None = None
        self._failed: dict[str, NDArray[np.int64]] = {}
        for batch in live.batches:
            self._recall(batch)
            self._cpu_before += batch["cpu_s"]

    def so_far(self, *, ended_by: str = "", final_cpu_s: float = math.nan) -> Followed:
        """What came of it so far."""
        delays = np.array([seconds for seconds, _ in self._delays])
        counts = np.array([n for _, n in self._delays], np.int64)
        known = counts.size > 0
        return Followed(
            events=self._events,
            batches=len(self._live.batches),
            live_hits=self._hits,
            delay_median_s=float(np.median(np.repeat(delays, counts))) if known else math.nan,
            delay_max_s=float(delays.max()) if known else math.nan,
            cpu_s=self._cpu_before + self._cpu_noted,
            final_cpu_s=final_cpu_s,
            ended_by=ended_by,
        )

    def waiting(self, look: Look) -> int:
        """Events that are there and have no live score yet."""
        return sum(self._open_events(piece, look).size for piece in look.pieces)

    def take(self, look: Look) -> None:
        """Score a batch of what is there, as large as some seconds allow.

        Raises
        ------
        SfxReduceError
            If the pool fails, or the model does not fit the run.
        """
        begun, shares, left = time.monotonic(), [], self._at_once
        for piece in look.pieces:
            events = self._open_events(piece, look)[:left]
            if events.size:
                shares.append(_Share(piece=piece, events=events))
                left -= events.size
        for some in _alike(shares):
            self._take(some, look)
        took = time.monotonic() - begun
        if left == 0 and took < BATCH_SECONDS[0]:
            self._at_once = min(2 * self._at_once, AT_ONCE[2])
        elif took > BATCH_SECONDS[1]:
            self._at_once = max(self._at_once // 2, AT_ONCE[0])

    def _open_events(self, piece: Piece, look: Look) -> NDArray[np.int64]:
        """Events that are to be scored; none twice in one look."""
        if look is not self._look:
            self._look = look
            self._failed.clear()
        events = self._seen.setdefault(piece.name, _Seen()).open_events(piece)
        failed = self._failed.get(piece.name)
        return events if failed is None else np.setdiff1d(events, failed)

    def _note_failed(self, share: _Share, events: NDArray[np.int64]) -> None:
        """Take note of events that could not be read at this look."""
        name = share.piece.name
        self._seen[name].failed(share.piece, events)
        self._failed[name] = np.append(self._failed.get(name, events[:0]), events)

    def _take(self, shares: Sequence[_Share], look: Look) -> None:
        try:
            run = _joined(shares)
            whole, hits = self._scored(run, shares, look)
        except NOT_READ:
            # One file that is not as it seemed must not stand in the way of others.
            for share in shares if len(shares) > 1 else ():
                self._take([share], look)
            if len(shares) == 1:
                self._note_failed(shares[0], shares[0].events)
            return
        self._live.clear_staged()
        if hits.n_events:
            write_store(hits, self._live.staged, pool=IN_PROCESS)
        self._keep(shares, whole, n_hits=hits.n_events)

    def _keep(self, shares: Sequence[_Share], whole: NDArray[np.bool_], *, n_hits: int) -> None:
        """Take a batch down, but for those of its events that could not be read."""
        now_ns, start = time.time_ns(), 0
        ranges: list[list[Any]] = []
        delays: list[list[Any]] = []
        for share in shares:
            mask = whole[start : start + share.events.size]
            start += share.events.size
            self._note_failed(share, share.events[~mask])
            read = replace(share, events=share.events[mask])
            ranges += [list(part) for part in read.ranges]
            written, counts = np.unique(share.piece.changed_ns[read.events], return_counts=True)
            late = np.round(np.maximum(now_ns - written, 0) / 1e9, 3).tolist()
            delays += [list(pair) for pair in zip(late, counts.tolist(), strict=True)]
        if not ranges:
            return
        cpu_s, self._cpu_noted = self._cpu_noted, cpu_seconds() - self._cpu_begun
        batch = {
            "events": ranges,
            "hits": n_hits,
            "delays_s": delays,
            "cpu_s": round(self._cpu_noted - cpu_s, 3),
        }
        self._live.keep(batch)
        self._recall(batch)

    def _recall(self, batch: Mapping[str, Any]) -> None:
        """Take in what was noted of a batch."""
        for name, start, stop in batch["events"]:
            seen = self._seen.setdefault(name, _Seen())
            seen.grow(stop)
            seen.done[start:stop] = True
            self._events += stop - start
        self._hits += batch["hits"]
        self._delays += [(seconds, n) for seconds, n in batch["delays_s"]]

    def _scored(
        self, run: Run, shares: Sequence[_Share], look: Look
    ) -> tuple[NDArray[np.bool_], Run]:
        """Score a batch; which of its events could be read, and the run of its sure hits."""
        scorer = self._settings.scorer
        with self._pool.needing(needs_of(run, scorer, None)):
            stored = self._conditions_of(look)
            measured = with_conditions(run, scorer, pool=self._pool, stored=stored)
            threshold_of = self._threshold_of(run)
            rows, chosen, _ = score_run(
                measured, scorer, threshold_of=threshold_of, pool=self._pool
            )
        first_look = calibration_of(scorer, run.detector).first_look
        whole = (rows["reason"] & NOT_WHOLE) == 0
        self._highest = np.append(self._highest, highest_scores(rows, first_look)[whole])
        reasons = event_reasons(measured, scorer, rows["reason"])
        made = decide(rows["score"], reasons, threshold=chosen.value)
        is_safe = (made.reason & np.uint32(UNSAFE)) == 0
        places = np.flatnonzero((made.decision == Decision.HIT) & is_safe & whole)
        position = np.concatenate([share.events for share in shares])[places]
        return whole, _with_scores(select_run(run, places), rows["score"][places], position)

    def _threshold_of(self, run: Run) -> Callable[[NDArray[np.float32]], RunThreshold]:
        """What sets the threshold by the events so far; the run's own gap is not known yet."""
        if self._rule is None:
            self._rule = threshold_rule(
                self._settings.scorer,
                threshold=self._settings.threshold,
                promise=self._settings.promise,
                detector=run.detector,
            )
        rule = self._rule
        return lambda highest: rule.for_run(np.append(self._highest, highest), max_blanks=0.0)

    def _conditions_of(self, look: Look) -> Conditions | None:
        """Conditions of the events so far, measured again when they have doubled."""
        n_measured, conditions = self._conditions
        scorer = self._settings.scorer
        if calibration_of(scorer).needs_conditions and look.n_events >= 2 * n_measured:
            there = [(piece, np.flatnonzero(piece.changed_ns)) for piece in look.pieces]
            shares = [_Share(piece=piece, events=events) for piece, events in there if events.size]
            so_far = with_conditions(_joined(_alike(shares)[0]), scorer, pool=self._pool)
            conditions = measured_conditions(so_far)
            self._conditions = look.n_events, conditions
        return conditions


def _with_scores(hits: Run, scores: NDArray[np.float32], positions: NDArray[np.int64]) -> Run:
    """Hits so far with what a reduced store says of each of its own."""
    score = {"long_name": "score by the conditions so far", "units": "1"}
    position = {"long_name": "position in the source file or store", "units": "1"}
    columns = hits.columns.assign(
        score=("event", scores, score), source_index=("event", positions, position)
    )
    return replace(hits, columns=columns)


def _alike(shares: Sequence[_Share]) -> list[list[_Share]]:
    """Shares whose frames have one shape and dtype, together."""
    groups: dict[object, list[_Share]] = {}
    for share in shares:
        source = share.piece.run.source
        kind: object = share.piece.name  # what cannot be read is like nothing else
        with suppress(*NOT_READ):
            kind = (source.detector.frame_shape, np.dtype(source.dtype))
        groups.setdefault(kind, []).append(share)
    return list(groups.values())


def _joined(shares: Sequence[_Share]) -> Run:
    """Run of the events of some shares, one share after the other."""
    runs = [share.piece.run for share in shares]
    starts = np.cumsum([0, *(run.n_events for run in runs)])
    events = [share.events + start for share, start in zip(shares, starts, strict=False)]
    return select_run(runs[0] if len(runs) == 1 else join_runs(runs), np.concatenate(events))
