"""``sfxreduce filter``: keep the hits, account for everything else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sfxreduce
from sfxreduce.errors import SfxReduceError, UsageError
from sfxreduce_cli.config import in_force
from sfxreduce_cli.follow_options import ENDS, FollowOptions, GrowthDisplay
from sfxreduce_cli.judging_options import JudgingOptions, OutputOptions, refuse_given
from sfxreduce_cli.options import (
    POOL,
    SCORER,
    AsJson,
    InRun,
    OutDir,
    OutOfOne,
    PeakOptions,
    PlacedOptions,
    PoolOptions,
    WindowName,
    spread_options,
)
from sfxreduce_cli.output import (
    print_filter,
    print_filter_plan,
    print_followed,
    print_outcomes,
    say,
    tell_outcome,
)

if TYPE_CHECKING:
    from sfxreduce.cluster import Pool
    from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
    from sfxreduce.report.report import Report
    from sfxreduce.run.run import Run
    from sfxreduce_cli.progress import ProgressDisplay

__all__ = ["filter_"]

PEAK_OPTIONS = ("min_peaks", "min_snr", "min_pixels")
OUTPUTS_OF_ONE = ("cxi", "nxmx", "report", "dry_run", "linger", "follow", *ENDS)
LONGEST_SECONDS = 366 * 86400.0
"""For which pages stay; the system cannot wait for ever."""
CNN_OPTIONS = (
    "model",
    "max_loss",
    "confidence",
    "window",
    "drift",
    "keep_from_peaks",
    "max_blanks_kept",
)


class ScorerName(StrEnum):
    """What gives an event its score."""

    CNN = "cnn"
    PEAKS = "peaks"


@spread_options
def filter_(
    *,
    ctx: typer.Context,
    in_: InRun,
    out: OutOfOne = None,
    out_dir: OutDir = None,
    beside: OutputOptions,
    scorer: Annotated[
        ScorerName, typer.Option(help="Network, or peak count.", rich_help_panel=SCORER)
    ] = ScorerName.CNN,
    judging: JudgingOptions,
    window: Annotated[
        WindowName, typer.Option(help="Pixels the network scores.", rich_help_panel=SCORER)
    ] = WindowName.AUTO,
    peaks: PeakOptions,
    inputs: PlacedOptions,
    following: FollowOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Score and decide, print the plan, write nothing.")
    ] = False,
    where: PoolOptions,
    linger: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Keep the pages in the browser for SECONDS after the end, or until Ctrl-C.",
            rich_help_panel=POOL,
        ),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Keep the hits of a run bit for bit, and account for every event that is dropped.

    Example: sfxreduce filter --in run.zarr --out hits.zarr --report report.html

    Many runs: sfxreduce filter --in 'runs/*.zarr' --out-dir reduced
    """
    where.check_linger(linger)
    by_network = _is_network(ctx, scorer, judging)
    asked = _Asked(judging=judging, window=window if by_network else None, peaks=peaks, where=where)
    place, is_of_many = _place(ctx, out, out_dir)
    if is_of_many:
        outputs = partial(beside.outputs, ctx=ctx)
        asked.many(sfxreduce.outputs_of_runs(in_, place), outputs, inputs, as_json=as_json)
    elif following.asked_for(ctx, dry_run=dry_run, source=inputs.source):
        asked.followed(in_, beside.outputs(place, ctx), inputs, following, as_json=as_json)
        _linger(linger)
    else:
        one = partial(asked.one, in_, beside.outputs(place, ctx), inputs)
        one(dry_run=dry_run, linger=linger, as_json=as_json)


def _is_network(ctx: typer.Context, scorer: ScorerName, judging: JudgingOptions) -> bool:
    """Whether a network judges; what means nothing to the scorer is refused."""
    by_network = scorer is ScorerName.CNN
    foreign = PEAK_OPTIONS if by_network else CNN_OPTIONS
    refuse_given(ctx, foreign, by=f"--scorer {scorer.value}; drop one")
    if by_network:
        judging.check_probability()
    return by_network


def _place(ctx: typer.Context, out: Path | None, out_dir: Path | None) -> tuple[Path, bool]:
    """Where results go, and whether those are many; what only fits one is refused then."""
    place = out or out_dir
    if place is None or (out and out_dir):
        found = "both" if place else "neither"
        raise UsageError(
            f"expected --out PATH for one run, or --out-dir DIR for many, found {found}"
        )
    if out_dir:
        for name, one in in_force(ctx, OUTPUTS_OF_ONE).items():
            if one["value"]:
                where = "" if one["origin"] == "option" else f" ({one['origin']})"
                raise UsageError(
                    f"--{name.replace('_', '-')}{where} means nothing to --out-dir; drop it, or "
                    "filter runs one by one"
                )
    return place, out_dir is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """How runs are filtered, whichever they are.

    Parameters
    ----------
    window : WindowName or None
        Pixels the network scores; None where peaks are counted.
    """

    judging: JudgingOptions
    window: WindowName | None
    peaks: PeakOptions
    where: PoolOptions

    @property
    def gpu(self) -> bool:
        """Whether workers have to offer a graphics card."""
        return self.window is not None and self.judging.wants_gpu(self.where)

    def settings(self, pool: Pool) -> FilterSettings:
        """What decides on events, by what the pool's workers have."""
        window, judging = self.window, self.judging
        return judging.settings(
            self.peaks.scorer if window is None else judging.network(pool, window)
        )

    def one(
        self,
        in_: Path,
        outputs: Outputs,
        inputs: PlacedOptions,
        *,
        dry_run: bool,
        linger: float,
        as_json: bool,
    ) -> None:
        """Filter a run, or plan it, and print the outcome."""
        run = inputs.opened(in_)
        small_here = run.is_checked and not linger
        with self.where.opened(gpu=self.gpu, small_here=small_here) as work:
            settings = self.settings(work["pool"])
            show = _carried_out(run, settings, outputs, work, dry_run=dry_run)
            work["progress"].close()
            show(as_json=as_json)
            _linger(linger)

    def followed(
        self,
        in_: Path,
        outputs: Outputs,
        inputs: PlacedOptions,
        following: FollowOptions,
        *,
        as_json: bool,
    ) -> None:
        """Follow a run while it is written, filter it at the end, and print the outcome."""
        ends = following.ends
        with self.where.opened(gpu=self.gpu) as work:
            settings, progress = self.settings(work["pool"]), work["progress"]

            def whole(run: Run) -> None:
                inputs.warn_of(run)
                _expect(progress, run, settings, outputs)

            report, followed = sfxreduce.follow_run(
                in_,
                outputs,
                settings,
                ends=ends,
                opened=inputs.read,
                watcher=GrowthDisplay(whole),
                **work,
            )
            progress.ended()
            progress.close()
            workers = work["pool"].facts
            print_followed(report, followed, outputs.store, workers=workers, as_json=as_json)

    def many(
        self,
        runs: Mapping[Path, Path],
        outputs: Callable[[Path], Outputs],
        inputs: PlacedOptions,
        *,
        as_json: bool,
    ) -> None:
        """Filter run after run on the same workers, and print the outcomes."""
        with self.where.opened(gpu=self.gpu) as work:
            progress = work["progress"]

            def filter_one(path: Path, store: Path) -> Report:
                progress.begin(f"{path} -> {store}")
                run, own = inputs.opened(path), outputs(store)
                settings = self.settings(work["pool"])
                _expect(progress, run, settings, own)
                report = sfxreduce.filter_run(run, settings=settings, outputs=own, **work)
                progress.ended()
                return report

            outcomes = sfxreduce.filter_runs(runs, filter_one, tell=tell_outcome)
            progress.close()
            print_outcomes(outcomes, workers=work["pool"].facts, as_json=as_json)


def _expect(
    progress: ProgressDisplay, run: Run, settings: FilterSettings, outputs: Outputs
) -> None:
    """Let the display tell hits from misses as soon as there are scores."""
    hit_from = None
    with suppress(SfxReduceError):  # planning says it better
        hit_from = settings.hit_from(run.detector)
    progress.expect(run, settings.scorer, hit_from=hit_from, out=outputs.store)


def _carried_out(
    run: Run, settings: FilterSettings, outputs: Outputs, work: Mapping[str, Any], *, dry_run: bool
) -> Callable[..., None]:
    """Do it, or plan it; returns what prints the outcome."""
    progress = work["progress"]
    _expect(progress, run, settings, outputs)
    if dry_run:
        plan = sfxreduce.plan_filter(run, settings, outputs=outputs, **work)
        progress.ended()
        return partial(print_filter_plan, plan)
    report = sfxreduce.filter_run(run, settings=settings, outputs=outputs, **work)
    progress.ended()
    return partial(print_filter, report, workers=work["pool"].facts)


def _linger(seconds: float) -> None:
    """Wait, so that pages can be looked at, until Ctrl-C."""
    if seconds:
        say(f"the pages stay up for {seconds:g} s; Ctrl-C ends them")
        with suppress(KeyboardInterrupt):
            time.sleep(min(seconds, LONGEST_SECONDS))
