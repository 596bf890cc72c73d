"""``sfxreduce redecide``: `filter` with the scores and frames of an earlier output."""

from __future__ import annotations

from pathlib import Path

from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.pipeline.filter import carry_out
from sfxreduce.pipeline.stages.plan import Reread
from sfxreduce.pipeline.stages.reduced import Reduced
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs, outputs_at
from sfxreduce.report.report import Report
from sfxreduce.run.run import Run

__all__ = ["redecide_run"]


def redecide_run(
    run: Run,
    settings: FilterSettings,
    *,
    known: Reduced,
    outputs: Outputs | Path | str,
    pool: Pool = IN_PROCESS,
    progress: Progress = silent,
) -> tuple[Report, Reread]:
    """Make the output that `sfxreduce.filter_run` would make with these settings.

    Frames that the earlier output holds are taken over as they are stored; only those of events
    that are kept now and were not before are read from the run. The stores come out the same to the
    byte. `sfxreduce.plan_filter` with the same `known` plans this and writes nothing.

    Parameters
    ----------
    run : Run
        The source of the earlier output.
    settings : FilterSettings
        With the scorer that judged it, see `Reduced.scorer`.
    known : Reduced
        The earlier output.
    outputs : Outputs, Path or str
        See `sfxreduce.filter_run`.
    pool : Pool
        Where the work runs; in this process if not given.

    Raises
    ------
    RefusedError
        If the run is not the output's source, or the scorer not the one that judged it.
    OutputExists
        If an output is already there.
    OutputError
        If an output cannot be written.
    SfxReduceError
        If the pool fails.
    """
    report, plan = carry_out(
        run, settings, known=known, outputs=outputs_at(outputs), pool=pool, progress=progress
    )
    assert plan.reread is not None  # noqa: S101 - always there where an output is known
    return report, plan.reread
