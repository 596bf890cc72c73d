"""The stages of ``sfxreduce filter`` in order: score, decide, plan, reduce, publish, report."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from sfxreduce.audit_sample import AUDIT_SHARE, check_share, draw_sample
from sfxreduce.calibrate import Promise
from sfxreduce.cluster import Pool
from sfxreduce.collect import as_seen, collect_scores, odd_events
from sfxreduce.columns import plain_text
from sfxreduce.conditions import Conditioned
from sfxreduce.decide import Decisions, Reason, decide
from sfxreduce.errors import SourceError, UsageError
from sfxreduce.export import export_crystfel
from sfxreduce.gallery import make_thumbnails
from sfxreduce.gate import check_drift, fall_back
from sfxreduce.geometry import Window
from sfxreduce.io.files import disk_bytes, output_errors, write_file
from sfxreduce.io.layout import choose_layout
from sfxreduce.io.pin import source_pin
from sfxreduce.io.readers.zarr import ZarrFrames, open_table
from sfxreduce.io.schema import LEDGER_GROUP
from sfxreduce.io.unfinished import Unfinished, unfinished
from sfxreduce.judging import closed_from, method_for
from sfxreduce.ledger import read_ledger
from sfxreduce.notes import NO_NOTES, Notes
from sfxreduce.outputs import Outputs
from sfxreduce.plan import plan_reduction
from sfxreduce.progress import Progress, silent
from sfxreduce.reduce import FilterPlan, kept_columns, write_reduced
from sfxreduce.report import Report, Storage, render_html, summarize
from sfxreduce.run import Run
from sfxreduce.scorer import Scorer

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
    check_share(audit_share)
    _check_threshold(threshold)
    seen, promise = as_seen(run, scorer), promise or Promise()
    closed = closed_from(scorer, threshold, promise)
    rows = collect_scores(
        seen, scorer, pool=pool, closed_from=closed, notes=notes, progress=progress
    )
    method = method_for(seen, scorer, threshold, promise, scores=rows["score"])
    odd = odd_events(seen, scorer)
    # Of an event without an image there is nothing that could be a hole.
    holes = np.where(odd & Reason.NO_IMAGE, np.uint32(Reason.DATA_HOLE), np.uint32(0))
    decisions = replace(
        decide(rows["score"], (rows["reason"] & ~holes) | odd, threshold=method.threshold),
        event_class=rows["class"],
        tiles=rows["tiles"],
    )
    if drift:
        found = check_drift(seen, scorer, decisions, closed_from=closed, pool=pool)
        method = replace(method, drift=found)
    if method.drift.alarms:
        decisions = fall_back(seen, decisions, pool=pool, notes=notes, progress=progress)
    judge = method.model_sha256 or f"{method.scorer}, {scorer.settings}"
    sample = draw_sample(decisions, share=audit_share, judge=judge)
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
    started = time.perf_counter()
    outputs.check(run)
    _check_threshold(threshold)
    check_share(audit_share)
    judging: Judging = {
        "threshold": threshold,
        "promise": promise or Promise(),
        "drift": drift,
        "audit_share": audit_share,
    }
    with unfinished(
        outputs.store,
        files=outputs.files,
        pins=_pins(run, scorer, judging),
        overwrite=outputs.overwrite,
    ) as work:
        plan = plan_filter(run, scorer=scorer, pool=pool, notes=work, progress=progress, **judging)
        decisions = _written(plan, outputs, work, pool=pool, progress=progress)
        report = summarize(
            decisions,
            method=plan.method,
            storage=Storage(
                bytes_in=run.source.n_bytes,
                bytes_out=disk_bytes(
                    outputs.store if work.published else work.hidden[outputs.store]
                ),
                out=outputs.store,
                cxi=outputs.cxi,
                report=outputs.report,
            ),
            wall_seconds=time.perf_counter() - started,
        )
        if outputs.report and not work.published:
            _write_page(work.hidden[outputs.report], report, decisions, plan)
        _check_unchanged(run, work)
    return report


class Judging(TypedDict):
    """What the decisions depend on besides the run and its scorer."""

    threshold: float | None
    promise: Promise
    drift: bool
    audit_share: float


def _check_threshold(threshold: float | None) -> None:
    if threshold is not None and not abs(threshold) <= float(np.finfo(np.float32).max):
        raise UsageError(f"expected --threshold to be a finite number, found {threshold}")


def _pins(run: Run, scorer: Scorer, judging: Judging) -> dict[str, Any]:
    """Everything that the bytes of an output depend on, by the name people know it by."""
    promise = judging["promise"]
    return {
        "version": version("sfxreduce"),
        "source": plain_text(run.path),
        "source files": source_pin(run.source.inputs),
        "scorer": scorer.name,
        "model": scorer.model_sha256,
        "settings": scorer.settings,
        "device": "GPU" if scorer.needs_gpu else "CPU",
        "threshold": judging["threshold"],
        "max-loss": promise.max_loss,
        "confidence": promise.confidence,
        "drift": judging["drift"],
        "audit-share": judging["audit_share"],
    }


def _check_unchanged(run: Run, work: Unfinished) -> None:
    """Refuse to publish what was read from files that somebody changed meanwhile."""
    if source_pin(run.source.inputs) != work.pins["source files"]:
        raise SourceError(
            f"{run.path}: its files changed while they were read; nothing was published, start "
            "again once the run is complete"
        )


def _written(
    plan: FilterPlan, outputs: Outputs, work: Unfinished, *, pool: Pool, progress: Progress
) -> Decisions:
    """Write all outputs but the page; those that were complete before are not touched."""
    if work.published:
        work.complete()
        return read_ledger(open_table(outputs.store, LEDGER_GROUP), where=str(outputs.store))
    decisions = write_reduced(plan, work, pool=pool, progress=progress)
    if outputs.cxi:
        export_crystfel(
            work.hidden[outputs.store],
            outputs.cxi,
            cxi_filter=outputs.cxi_filter,
            columns=kept_columns(plan),
            staged=work.hidden,
            pool=pool,
            progress=progress,
        )
    return decisions


def _write_page(path: Path, report: Report, decisions: Decisions, plan: FilterPlan) -> None:
    page = render_html(
        report,
        decisions,
        source=plan.run.path,
        method=plan.method,
        thumbnails=make_thumbnails(plan.run, decisions),
    )
    with output_errors(path):
        write_file(path, page.encode())
