"""``sfxreduce filter --follow``: watch a run grow, show its hits so far, and filter it at the end.

The hits so far are provisional: conditions and threshold are those of the events so far, and
nothing is rejected. The output is made by `sfxreduce.filter_run` of the whole run, and by that
alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.errors import SfxReduceError, UsageError, VerificationError
from sfxreduce.io.files.safe_read import source_pin
from sfxreduce.io.growing import Growing, growing
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.hdf5.run import forget_files
from sfxreduce.io.readers.zarr.run import read_manifest
from sfxreduce.io.writers.live import LiveHits, begun_final, live_hits
from sfxreduce.io.writers.publish import finish
from sfxreduce.io.writers.resume import appearing, unfinished_folder
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.stages.live import Followed, LiveScores, cpu_seconds
from sfxreduce.pipeline.stages.score import EVENTS_PER_BATCH
from sfxreduce.pipeline.stages.settings import (
    FilterSettings,
    Outputs,
    network_on,
    outputs_at,
    pinned,
)
from sfxreduce.report.report import Report
from sfxreduce.run.columns import plain_text
from sfxreduce.run.run import Run

__all__ = ["FollowEnds", "SeesGrowth", "follow_run"]

LOOK_SECONDS = 0.5
"""Between two looks at the run."""

SHARE_LOOKING = 0.1
"""Of the time that goes into looks, as long as `WAIT_SECONDS` allow it."""

WAIT_SECONDS = 2.0
"""For which few new events wait for others: a batch has a cost of its own. No two looks are further
apart.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowEnds:
    """When a run that is followed counts as whole: by whichever of these comes first.

    Parameters
    ----------
    until_file : Path, optional
        A file or folder that appears.
    until_events : int, optional
        So many events are there.
    quiet_seconds : float, optional
        Nothing was written for so long.

    Raises
    ------
    UsageError
        If none is given, or one is not more than zero.

    Examples
    --------
    >>> FollowEnds(until_events=100).reached(n_events=100, quiet_seconds=0.0)
    'until-events'
    """

    until_file: Path | None = None
    until_events: int | None = None
    quiet_seconds: float | None = None

    def __post_init__(self) -> None:
        numbers = [n for n in (self.until_events, self.quiet_seconds) if n is not None]
        if self.until_file is None and not numbers:
            raise UsageError(
                "--follow: nothing says when the run is whole; add --until-file PATH, "
                "--until-events N or --quiet SECONDS"
            )
        if not all(number > 0 for number in numbers):
            raise UsageError(
                f"--follow: expected more than 0 events or seconds, found {min(numbers):g}"
            )

    def reached(self, *, n_events: int, quiet_seconds: float) -> str:
        """Name of the option by which it is over; empty if it is not."""
        if self.until_file is not None and self.until_file.exists():
            return "until-file"
        if self.until_events is not None and n_events >= self.until_events:
            return "until-events"
        if self.quiet_seconds is not None and quiet_seconds >= self.quiet_seconds:
            return "quiet"
        return ""


class SeesGrowth(Protocol):
    """Is told how a run grows."""

    def followed(self, so_far: Followed, *, waiting: int) -> None:
        """See what was made of it, and how many events have no live score yet."""
        ...

    def whole(self, run: Run, so_far: Followed) -> None:
        """See the run before it is filtered."""
        ...


class _Silent:
    """Tells nobody."""

    def followed(self, so_far: Followed, *, waiting: int) -> None:
        """See `SeesGrowth`."""

    def whole(self, run: Run, so_far: Followed) -> None:
        """See `SeesGrowth`."""


SILENT = _Silent()


def follow_run(
    path: Path | str,
    outputs: Outputs | Path | str,
    settings: FilterSettings | None = None,
    *,
    ends: FollowEnds,
    opened: Callable[[Path], Run] = open_run,
    pool: Pool = IN_PROCESS,
    watcher: SeesGrowth = SILENT,
    progress: Progress = silent,
) -> tuple[Report | None, Followed]:
    """Follow a run that is still being written, and filter it when it is whole.

    Killed at any moment, the same call goes on. The hits so far: `sfxreduce.io.writers.live`.

    Parameters
    ----------
    path : Path or str
        See `sfxreduce.io.growing.growing`.
    outputs, settings, pool, progress
        As for `sfxreduce.filter_run`.
    ends : FollowEnds
        When the run is whole.
    opened : callable
        Opens the run, or one file of it.
    watcher : SeesGrowth
        Is told how it grows.

    Returns
    -------
    tuple of Report and Followed
        No report where the output was complete before, and only the hits so far had to be removed.

    Raises
    ------
    OutputExists
        If an output is already there.
    UnfinishedRun
        If at the end the run looks as if it were still being written; nothing is lost.
    RefusedError
        If other settings were used to follow it before.
    """
    path, outputs = Path(path), outputs_at(outputs)
    settings = settings or FilterSettings(scorer=network_on(pool))
    source = growing(path, opened)
    if not (published := _was_published(outputs)):
        outputs.check_places(path)  # now, not when the run is whole
    with _begun(path, outputs, settings) as live:
        scores = LiveScores(live, settings, pool=pool)
        if published:
            live.remove()
            return None, scores.so_far()
        so_far = partial(scores.so_far, ended_by=_until_whole(source, scores, ends, watcher))
        watcher.whole(run := opened(path), so_far())
        _begin_final(run, outputs, live)
        before = cpu_seconds()
        report = filter_run(run, outputs, settings, pool=pool, progress=progress)
        final_cpu_s = cpu_seconds() - before
        live.remove()
    return report, so_far(final_cpu_s=final_cpu_s)


def _begun(
    path: Path, outputs: Outputs, settings: FilterSettings
) -> AbstractContextManager[LiveHits]:
    """Begin to follow a run, or go on with it."""
    pins = {"source": str(path.absolute()), **pinned(settings, by_content=True)}
    return live_hits(outputs.store, pins=pins, overwrite=outputs.overwrite)


def _until_whole(source: Growing, scores: LiveScores, ends: FollowEnds, watcher: SeesGrowth) -> str:
    """Score what is there of a run until it is whole; what it was that ended it."""
    signs, changed = None, time.monotonic()
    waiting_since = math.inf
    while True:
        begun = time.monotonic()
        look = source.look()
        now = time.monotonic()
        due = now if look.has_more else now + _rest(now - begun)
        if look.signs != signs:
            signs, changed = look.signs, now
        ended_by = ends.reached(n_events=look.n_events, quiet_seconds=now - changed)
        waiting = scores.waiting(look)
        waiting_since = min(waiting_since, now) if waiting else math.inf
        is_late = now - waiting_since >= WAIT_SECONDS
        while waiting and (ended_by or is_late or waiting >= EVENTS_PER_BATCH):
            scores.take(look)
            waiting, waiting_since = scores.waiting(look), math.inf
            is_late = False
            if ended_by or time.monotonic() >= due:
                break
        watcher.followed(scores.so_far(), waiting=waiting)
        if ended_by:
            forget_files()
            return ended_by
        time.sleep(max(0.0, due - time.monotonic()))


def _rest(look_seconds: float) -> float:
    """Seconds to the next look, so that looks at a long run take a small part of the time."""
    return min(max(LOOK_SECONDS, look_seconds / SHARE_LOOKING), WAIT_SECONDS)


def _was_published(outputs: Outputs) -> bool:
    """Whether the output is there, and only what was for the way to it was not removed."""
    # What is appearing still is for the filter to complete.
    if outputs.overwrite or appearing(outputs.store):
        return False
    if not (noted := begun_final(outputs.store)):
        return False
    try:
        manifest = read_manifest(outputs.store)
    except VerificationError:
        return False
    return (manifest.source, manifest.source_events) == (noted["source"], noted["events"])


def _begin_final(run: Run, outputs: Outputs, live: LiveHits) -> None:
    """Note what the final output is made of; remove one that was begun of less."""
    facts = {
        "source": plain_text(run.path),
        "events": run.n_events,
        "files": source_pin(run.source.inputs),
    }
    before = live.finishing
    if before and before["files"] != facts["files"]:
        # The run has grown since, and nothing of that output was published.
        with suppress(SfxReduceError):
            if (folder := unfinished_folder(outputs.store)) is not None:
                finish(folder)
    live.finish(facts)
