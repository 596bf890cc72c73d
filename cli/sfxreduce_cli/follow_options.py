"""Options by which `filter` follows a run that is still being written, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.judging_options import given
from sfxreduce_cli.output import say

if TYPE_CHECKING:
    from sfxreduce.pipeline.follow import FollowEnds
    from sfxreduce.pipeline.stages.live import Followed
    from sfxreduce.run.run import Run

__all__ = ["ENDS", "FollowOptions", "GrowthDisplay"]

FOLLOWING = "Runs that are still being written"
ENDS = ("until_file", "until_events", "quiet")

SECONDS_A_LINE = 5.0
"""Between two lines about a run that grows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowOptions:
    """Whether a run is followed while it is written, and when it is whole."""

    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Follow a run that is being written (a folder in which HDF5 files appear, a run "
            "store, an HDF5 file in SWMR mode), and filter it when it is whole.",
            rich_help_panel=FOLLOWING,
        ),
    ] = False
    until_file: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The run that is followed is whole when PATH exists.",
            rich_help_panel=FOLLOWING,
        ),
    ] = None
    until_events: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="It is whole when N events are there.",
            rich_help_panel=FOLLOWING,
        ),
    ] = None
    quiet: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="It is whole when nothing was written for SECONDS.",
            rich_help_panel=FOLLOWING,
        ),
    ] = None

    def asked_for(self, ctx: typer.Context, *, dry_run: bool, source: str) -> bool:
        """Whether a run is to be followed; what does not go with that is refused."""
        for name in ENDS:
            if not self.follow and given(ctx, name):
                option = f"--{name.replace('_', '-')}"
                raise UsageError(
                    f"{option} means nothing without --follow; add it or drop {option}"
                )
        clash = {"--dry-run": dry_run, "--source": bool(source)}
        for option, is_given in clash.items():
            if self.follow and is_given:
                raise UsageError(f"{option} means nothing to --follow; drop one of them")
        return self.follow

    @property
    def ends(self) -> FollowEnds:
        """When the run is whole."""
        return sfxreduce.FollowEnds(
            until_file=self.until_file,
            until_events=self.until_events,
            quiet_seconds=self.quiet,
        )


class GrowthDisplay:
    """Says how a run grows; see `sfxreduce.pipeline.follow.SeesGrowth`.

    Parameters
    ----------
    whole : callable
        Given the run before it is filtered.
    """

    def __init__(self, whole: Callable[[Run], None]) -> None:
        self._whole = whole
        self._said = 0.0
        self._last = ""

    def followed(self, so_far: Followed, *, waiting: int) -> None:
        """Say how far it is, every few seconds and only what is new."""
        now = time.monotonic()
        if now - self._said < SECONDS_A_LINE:
            return
        self._said = now
        words = f"{so_far.events:,} events scored, {waiting:,} waiting"
        if so_far.events:
            share = 100 * so_far.live_hits / so_far.events
            words += (
                f" · {so_far.live_hits:,} sure hits ({share:.1f} %)"
                f" · {so_far.delay_median_s:.1f} s behind"
            )
        line = f"  follow {words}" if so_far.events or waiting else "  follow nothing is there yet"
        if line != self._last:
            self._last = line
            say(line)

    def whole(self, run: Run, so_far: Followed) -> None:
        """Say that the rest is an ordinary filter run."""
        events = sfxreduce.counted(run.n_events, "event")
        say(f"the run is whole (--{so_far.ended_by}), {events}: now it is filtered")
        self._whole(run)
