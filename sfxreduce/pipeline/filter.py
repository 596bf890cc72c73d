"""The stages of ``sfxreduce filter`` in order: score, decide, plan, reduce, publish, report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sfxreduce.audit.sample import AUDIT_SHARE, draw_sample
from sfxreduce.cluster import Pool
from sfxreduce.cluster.checkpoints import NO_NOTES, Notes
from sfxreduce.cluster.progress import Progress, silent
from sfxreduce.decisions.decide import decide
from sfxreduce.decisions.method import closed_from, method_for
from sfxreduce.decisions.threshold import Promise
from sfxreduce.io.chunks.layout import choose_layout
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.pipeline.stages.conditions import as_seen, odd_events
from sfxreduce.pipeline.stages.drift import check_drift, fall_back
from sfxreduce.pipeline.stages.outputs import Outputs
from sfxreduce.pipeline.stages.plan import FilterPlan, plan_reduction
from sfxreduce.pipeline.stages.publish import make_outputs, pins_of
from sfxreduce.pipeline.stages.score import collect_scores
from sfxreduce.pipeline.stages.settings import Wanted
from sfxreduce.quality.conditions import Conditioned
from sfxreduce.report.report import Report
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.protocol import Scorer

__all__ = ["filter_run", "plan_filter", "plan_scored"]


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


def filter_run(
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
    threshold : float, optional
        Smallest score of a hit; the scorer's own if not given. It voids the promise.
    promise : Promise, optional
        What share of hits may be lost, with what confidence: 1 % and 95 % if not given.
    drift : bool
        Whether to compare the run with what the scorer was calibrated on; the promise needs it.
    audit_share : float
        Share of the rejected events that is kept beside the hits, drawn at random.

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


def plan_scored(
    run: Run,
    rows: NDArray[np.void],
    *,
    seen: Run,
    scorer: Scorer,
    wanted: Wanted,
    pool: Pool,
    notes: Notes = NO_NOTES,
    progress: Progress = silent,
) -> FilterPlan:
    """Decide on events that are scored, and plan the output.

    Parameters
    ----------
    rows : ndarray
        Shape (event,), dtype `sfxreduce.pipeline.stages.batch.SCORE_DTYPE`.
    seen : Run
        The run as the scorer sees it.
    pool : Pool
        Looks for drift.
    notes : Notes
        What was seen already, and where to note more.
    """
    closed = closed_from(scorer, wanted.threshold, wanted.promise)
    method = method_for(seen, scorer, wanted.threshold, wanted.promise, scores=rows["score"])
    odd = odd_events(seen, scorer)
    # Of an event without an image there is nothing that could be a hole.
    holes = np.where(odd & Reason.NO_IMAGE, np.uint32(Reason.DATA_HOLE), np.uint32(0))
    decisions = replace(
        decide(rows["score"], (rows["reason"] & ~holes) | odd, threshold=method.threshold),
        event_class=rows["class"],
        tiles=rows["tiles"],
    )
    if wanted.drift:
        found = check_drift(seen, scorer, decisions, closed_from=closed, pool=pool)
        method = replace(method, drift=found)
    if method.drift.alarms:
        decisions = fall_back(seen, decisions, pool=pool, notes=notes, progress=progress)
    judge = method.model_sha256 or f"{method.scorer}, {scorer.settings}"
    sample = draw_sample(decisions, share=wanted.audit_share, judge=judge)
    own = run.source.layout if isinstance(run.source, ZarrFrames) else None
    layout = own or choose_layout(
        run.detector.frame_shape,
        dtype=np.dtype(run.source.dtype),
        boxes=Window.centre(run.detector).boxes(run.detector),
    )
    reduction, audit = (
        plan_reduction(
            events,
            n_events=run.n_events,
            events_per_shard=layout.events_per_shard,
            copies_tiles=own is not None,
        )
        for events in (decisions.kept, sample)
    )
    return FilterPlan(
        run=run,
        method=method,
        decisions=decisions.with_sample(sample),
        layout=layout,
        reduction=reduction,
        audit=audit,
        conditions=seen.source.found if isinstance(seen.source, Conditioned) else None,
    )
