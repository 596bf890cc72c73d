"""The stages of ``sfxreduce filter`` in order: score, decide, plan, reduce, publish, report."""

from __future__ import annotations

from sfxreduce.audit_sample import AUDIT_SHARE
from sfxreduce.calibrate import Promise
from sfxreduce.cluster import Pool
from sfxreduce.collect import collect_scores
from sfxreduce.judging import closed_from
from sfxreduce.making import make_outputs, pins_of
from sfxreduce.notes import NO_NOTES, Notes
from sfxreduce.outputs import Outputs
from sfxreduce.planning import Wanted, plan_scored
from sfxreduce.progress import Progress, silent
from sfxreduce.reduce import FilterPlan
from sfxreduce.report import Report
from sfxreduce.run import Run
from sfxreduce.scorer import Scorer
from sfxreduce.seen import as_seen

__all__ = ["plan_filter", "run_filter"]


def plan_filter(
    run: Run,
    *,
    scorer: Scorer,
    pool: Pool,
    threshold: float | None = None,
    promise: Promise | None = None,
    drift: bool = True,
    audit_share: float = AUDIT_SHARE,
    outputs: Outputs | None = None,
    notes: Notes = NO_NOTES,
    progress: Progress = silent,
) -> FilterPlan:
    """Score every event and decide on it; write nothing.

    The scores are computed here, on the pool, batch by batch. Outputs are refused before that.

    Parameters
    ----------
    run : Run
    scorer : Scorer
    pool : Pool
    threshold : float, optional
        Smallest score of a hit; the scorer's own if not given. It voids the promise.
    promise : Promise, optional
        What share of hits may be lost, with what confidence: 1 % and 95 % if not given.
    drift : bool
        Whether to compare the run with what the scorer was calibrated on; the promise needs it.
    audit_share : float
        Share of the rejected events that is kept beside the hits, drawn at random.
    outputs : Outputs, optional
        Where the results will go.
    notes : Notes
        Scores that are known already, and where to note new ones.
    progress : Progress

    Raises
    ------
    UsageError
        If the threshold or the share is no such number, or outputs and inputs overlap.
    OutputExists
        If an output is already there.
    SfxReduceError
        If the model does not fit the run or the pool fails.
    """
    if outputs is not None:
        outputs.check(run)
    wanted = Wanted(
        threshold=threshold, promise=promise or Promise(), drift=drift, audit_share=audit_share
    )
    seen = as_seen(run, scorer, pool=pool)
    closed = closed_from(scorer, threshold, wanted.promise)
    rows = collect_scores(
        seen, scorer, pool=pool, closed_from=closed, notes=notes, progress=progress
    )
    return plan_scored(
        run,
        rows,
        seen=seen,
        scorer=scorer,
        wanted=wanted,
        pool=pool,
        notes=notes,
        progress=progress,
    )


def run_filter(
    run: Run,
    *,
    outputs: Outputs,
    scorer: Scorer,
    pool: Pool,
    threshold: float | None = None,
    promise: Promise | None = None,
    drift: bool = True,
    audit_share: float = AUDIT_SHARE,
    progress: Progress = silent,
) -> Report:
    """Keep the hits of a run, bit for bit, and account for every event.

    Nothing appears under the outputs' names before all of it is complete.

    Parameters
    ----------
    run : Run
    outputs : Outputs
    scorer : Scorer
    pool : Pool
    threshold : float, optional
        Smallest score of a hit; the scorer's own if not given. It voids the promise.
    promise : Promise, optional
        What share of hits may be lost, with what confidence: 1 % and 95 % if not given.
    drift : bool
        Whether to compare the run with what the scorer was calibrated on; the promise needs it.
    audit_share : float
        Share of the rejected events that is kept beside the hits, drawn at random.
    progress : Progress

    Returns
    -------
    Report

    Raises
    ------
    OutputExists
        If an output is already there.
    OutputError
        If an output cannot be written.
    SfxReduceError
        If the model does not fit the run or the pool fails.
    """
    wanted = Wanted(
        threshold=threshold, promise=promise or Promise(), drift=drift, audit_share=audit_share
    )

    def plan(notes: Notes) -> FilterPlan:
        return plan_filter(
            run,
            scorer=scorer,
            pool=pool,
            threshold=threshold,
            promise=promise,
            drift=drift,
            audit_share=audit_share,
            notes=notes,
            progress=progress,
        )

    pins = pins_of(run, scorer, wanted)
    return make_outputs(run, plan, outputs=outputs, pins=pins, pool=pool, progress=progress)
