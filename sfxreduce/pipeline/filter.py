"""``sfxreduce filter``: its stages, in the order in which the architecture page lists them."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sfxreduce.audit.sample import draw_sample
from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import NO_NOTES, Notes, Progress, silent
from sfxreduce.decisions.assurance import Assurance, Check, assure
from sfxreduce.decisions.decide import Decisions, decide, keep_by_peaks
from sfxreduce.decisions.method import (
    Method,
    RunThreshold,
    ThresholdRule,
    method_for,
    threshold_rule,
)
from sfxreduce.pipeline.stages.conditions import event_reasons, measured_conditions, with_conditions
from sfxreduce.pipeline.stages.drift import check_run
from sfxreduce.pipeline.stages.export import export_hits
from sfxreduce.pipeline.stages.overlay import take_over
from sfxreduce.pipeline.stages.plan import FilterPlan, plan_output
from sfxreduce.pipeline.stages.reduced import Reduced
from sfxreduce.pipeline.stages.score import score_run, scored_pixels
from sfxreduce.pipeline.stages.settings import (
    FilterSettings,
    Outputs,
    as_it_is,
    needs_of,
    network_on,
    outputs_at,
    storage_of,
)
from sfxreduce.pipeline.stages.write import kept_columns, published_at_once, write_reduced
from sfxreduce.report.report import Report, summarize, write_page
from sfxreduce.run.run import Run

__all__ = ["SeesPlan", "carry_out", "decide_run", "filter_run", "plan_filter"]

ASSUMED = ("the places of the panels are assumed: pass '--geometry FILE'",)
"""Why nothing is promised of a detector without a geometry."""


@runtime_checkable
class SeesPlan(Protocol):
    """Progress that is also shown the decisions before they are carried out."""

    def planned(self, decisions: Decisions, assurance: Assurance) -> None:
        """See what is decided, and what is promised."""
        ...


def filter_run(
    run: Run,
    outputs: Outputs | Path | str,
    settings: FilterSettings | None = None,
    *,
    pool: Pool = IN_PROCESS,
    progress: Progress = silent,
) -> Report:
    """Keep the hits of a run, bit for bit, and account for every event.

    Nothing appears under the outputs' names before all of it is complete. After a cut-off the same
    call resumes.

    Parameters
    ----------
    outputs : Outputs, Path or str
        Where the results go; a path is that of the reduced store, and nothing is written beside it.
    settings : FilterSettings, optional
        How events are judged; by default as ``sfxreduce filter`` does without options: by the
        network that comes with the package, on what the pool has.
    pool : Pool
        Where the work runs; in this process if not given.

    Raises
    ------
    OutputExists
        If an output is already there.
    OutputError
        If an output cannot be written.
    UnfinishedRun
        If the run looks as if it were still being written; see `FilterSettings.incomplete`.
    SfxReduceError
        If the model does not fit the run or the pool fails.
    """
    settings = settings or FilterSettings(scorer=network_on(pool))
    report, _ = carry_out(run, settings, outputs=outputs_at(outputs), pool=pool, progress=progress)
    return report


def plan_filter(
    run: Run,
    settings: FilterSettings | None = None,
    *,
    known: Reduced | None = None,
    outputs: Outputs | None = None,
    pool: Pool = IN_PROCESS,
    notes: Notes = NO_NOTES,
    progress: Progress = silent,
) -> FilterPlan:
    """Score every event and decide on it; write nothing.

    The scores are computed here, on the pool, batch by batch. Outputs are refused before that.

    Parameters
    ----------
    settings : FilterSettings, optional
        See `filter_run`.
    known : Reduced, optional
        An earlier output of this run, judged by the same scorer. Scores come from its ledger, and
        pixels are read only where these settings rest on more, or fewer, tiles of an event.
    outputs : Outputs, optional
        Where the results will go.
    notes : Notes
        Scores that are known already, and where to note new ones.

    Raises
    ------
    UsageError
        If outputs and inputs overlap, or nothing says from which score an event is a hit.
    RefusedError
        If the run is not the source of the known output, or another scorer judged it.
    OutputExists
        If an output is already there.
    SfxReduceError
        If the model does not fit the run or the pool fails.
    """
    settings = settings or FilterSettings(scorer=network_on(pool))
    run = _accepted(run, settings, outputs=outputs, known=known)
    with pool.needing(needs_of(run, settings.scorer, None)):
        return _plan(run, settings, known=known, pool=pool, notes=notes, progress=progress)


def carry_out(
    run: Run,
    settings: FilterSettings,
    *,
    known: Reduced | None = None,
    outputs: Outputs,
    pool: Pool,
    progress: Progress = silent,
) -> tuple[Report, FilterPlan]:
    """Plan as `plan_filter` does, write what is planned, and let it appear all at once."""
    started = time.perf_counter()
    run = _accepted(run, settings, outputs=outputs, known=known)
    with (
        published_at_once(run, settings, outputs, known=known) as work,
        pool.needing(needs_of(run, settings.scorer, work.folder)),
    ):
        plan = _plan(run, settings, known=known, pool=pool, notes=work, progress=progress)
        if isinstance(progress, SeesPlan):
            progress.planned(plan.decisions, plan.method.assurance)
        decisions = write_reduced(plan, work, options=outputs.options, pool=pool, progress=progress)
        if (outputs.cxi or outputs.nxmx) and not work.published:
            reasons = decisions.reason[plan.reduction.kept]
            export_hits(
                work.hidden[outputs.store],
                outputs,
                columns=kept_columns(plan).assign(reason=("event", reasons)),
                staged=work.hidden,
                pool=pool,
                progress=progress,
            )
        report = summarize(
            decisions,
            method=plan.method,
            storage=storage_of(run, outputs, work),
            wall_seconds=time.perf_counter() - started,
            geometry=run.detector.geometry,
            options=outputs.options,
        )
        if outputs.report is not None and not work.published:
            write_page(
                work.hidden[outputs.report],
                report,
                decisions,
                run=run,
                method=plan.method,
                command=outputs.command,
            )
    return report, plan


def _accepted(
    run: Run, settings: FilterSettings, *, outputs: Outputs | None, known: Reduced | None
) -> Run:
    """Refuse outputs in the way of anything, an earlier output of something else, half a run."""
    if outputs is not None:
        outputs.check(run, *(() if known is None else (known.path,)))
    if known is not None:
        known.check(run, settings.scorer)
    return as_it_is(run, incomplete=settings.incomplete, settle_seconds=settings.settle_seconds)


def _plan(
    run: Run,
    settings: FilterSettings,
    *,
    known: Reduced | None,
    pool: Pool,
    notes: Notes,
    progress: Progress,
) -> FilterPlan:
    scorer = settings.scorer
    rule = threshold_rule(
        scorer, threshold=settings.threshold, promise=settings.promise, detector=run.detector
    )
    measured = with_conditions(
        run, scorer, pool=pool, stored=None if known is None else known.conditions()
    )
    rows, chosen, rescored = score_run(
        measured,
        scorer,
        known=None if known is None else known.rows(),
        threshold_of=partial(rule.for_run, max_blanks=settings.max_blanks_kept),
        pool=pool,
        notes=notes,
        progress=progress,
    )
    method, decisions = decide_run(
        measured,
        settings,
        rule,
        chosen,
        rows,
        pool=pool,
        notes=notes,
        progress=progress,
    )
    sample = draw_sample(decisions, share=settings.audit_share, judge=method.judge)
    plan = plan_output(
        run,
        decisions,
        sample,
        method=method,
        conditions=measured_conditions(measured),
        scored=scored_pixels(rows, scorer.window(measured.detector)),
    )
    return plan if known is None else take_over(known, plan, rescored)


def decide_run(
    run: Run,
    settings: FilterSettings,
    rule: ThresholdRule,
    chosen: RunThreshold,
    rows: NDArray[np.void],
    *,
    pool: Pool,
    notes: Notes = NO_NOTES,
    progress: Progress = silent,
) -> tuple[Method, Decisions]:
    """Decide on every event, let the frames of the run veto, and say what is promised.

    Parameters
    ----------
    run : Run
        With its conditions, if the scorer needs them.
    rule : ThresholdRule
        Of these settings, for this run's detector.
    chosen : RunThreshold
        That the rule set for this run.
    rows : ndarray
        Shape (event,), as `sfxreduce.pipeline.stages.score.score_run` gives them.
    """
    scorer = settings.scorer
    method = method_for(run, scorer, rule, chosen, scores=rows["score"])
    decisions = decide(
        rows["score"],
        event_reasons(run, scorer, rows["reason"]),
        threshold=method.threshold,
        event_class=rows["class"],
        tiles=rows["tiles"],
    )
    decisions = replace(decisions, **_seen_at_first(rows, method))
    fewest = settings.keep_from_peaks
    if method.first_look is not None:
        # Fewer tiles show fewer peaks.
        fewest = min(fewest, method.first_look.most_peaks + 1)
    decisions = keep_by_peaks(decisions, rows["peaks"], fewest=fewest)
    checks: dict[str, Check] = {}
    if settings.drift:
        checks, decisions = check_run(
            run,
            scorer,
            decisions,
            method,
            fewest_peaks=settings.keep_from_peaks,
            max_loss=settings.promise.max_loss,
            pool=pool,
            notes=notes,
            progress=progress,
        )
    against = (*settings.against_promise, *(ASSUMED if run.detector.is_assumed else ()))
    assurance = assure(method.claim, checks, promise=settings.promise, against=against)
    return replace(method, assurance=assurance), decisions


def _seen_at_first(rows: NDArray[np.void], method: Method) -> dict[str, NDArray[Any]]:
    """Columns of the first tiles, by the names of `Decisions`."""
    look, counted = method.first_look, rows["tiles"]
    if look is not None:
        counted = np.minimum(counted, np.uint16(look.tiles))
    return {
        "bound": rows["bound"],
        "first": rows["first"],
        "peaks": rows["peaks"],
        "peak_tiles": counted,
        "peak_width_px": rows["width_px"],
    }
