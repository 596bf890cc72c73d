"""The stages of ``sfxreduce filter`` in order: score, decide, plan, reduce, publish, report."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sfxreduce.audit_sample import AUDIT_SHARE, check_share, draw_sample
from sfxreduce.calibrate import Promise
from sfxreduce.cluster import Pool
from sfxreduce.collect import as_seen, collect_scores
from sfxreduce.conditions import Conditioned
from sfxreduce.decide import decide
from sfxreduce.errors import UsageError
from sfxreduce.export import crystfel_paths, export_crystfel
from sfxreduce.gallery import make_thumbnails
from sfxreduce.gate import check_drift, fall_back
from sfxreduce.geometry import Window
from sfxreduce.io.files import disk_bytes, output_errors, write_file
from sfxreduce.io.layout import choose_layout
from sfxreduce.io.publish import check_outputs, staged
from sfxreduce.io.readers.zarr import ZarrFrames
from sfxreduce.io.writers.cxi_content import check_cxi_filter
from sfxreduce.judging import closed_from, method_for
from sfxreduce.plan import plan_reduction
from sfxreduce.progress import Progress, silent
from sfxreduce.reduce import FilterPlan, kept_columns, write_reduced
from sfxreduce.report import Report, Storage, render_html, summarize
from sfxreduce.run import Run
from sfxreduce.scorer import Scorer

__all__ = ["Outputs", "plan_filter", "run_filter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where the results of a filter run go.

    Parameters
    ----------
    store : Path
        Reduced run store.
    cxi : Path, optional
        The same hits for CrystFEL; a geometry and an event list are written beside it.
    report : Path, optional
        One HTML page.
    cxi_filter : str
        How the frames of `cxi` are packed: ``gzip``, which every HDF5 library unpacks, or
        ``blosc``, for which stored tiles are copied.
    overwrite : bool
        Replace what lies there.

    Raises
    ------
    UsageError
        If there is no such filter.
    """

    store: Path
    cxi: Path | None = None
    report: Path | None = None
    cxi_filter: str = "gzip"
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_cxi_filter(self.cxi_filter)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every single file that will appear beside the store."""
        crystfel = () if self.cxi is None else crystfel_paths(self.cxi)
        return (*crystfel, *((self.report,) if self.report else ()))

    def check(self, run: Run) -> None:
        """Refuse outputs that would touch the run, each other, or what is not ours to replace.

        Raises
        ------
        UsageError
            If outputs and inputs overlap.
        OutputExists
            If something lies there that may not be replaced.
        OutputError
            If a folder does not exist.
        """
        check_outputs(
            stores=[self.store], files=self.files, inputs=run.inputs, overwrite=self.overwrite
        )


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
    if threshold is not None and not abs(threshold) <= float(np.finfo(np.float32).max):
        raise UsageError(f"expected --threshold to be a finite number, found {threshold}")
    seen, promise = as_seen(run, scorer), promise or Promise()
    closed = closed_from(scorer, threshold, promise)
    rows = collect_scores(seen, scorer, pool=pool, closed_from=closed, progress=progress)
    method = method_for(seen, scorer, threshold, promise, scores=rows["score"])
    decisions = replace(
        decide(rows["score"], rows["reason"], threshold=method.threshold),
        event_class=rows["class"],
        tiles=rows["tiles"],
    )
    if drift:
        found = check_drift(seen, scorer, decisions, closed_from=closed, pool=pool)
        method = replace(method, drift=found)
    if method.drift.alarms:
        decisions = fall_back(seen, decisions, pool=pool, progress=progress)
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
    plan = plan_filter(
        run,
        scorer=scorer,
        pool=pool,
        threshold=threshold,
        promise=promise,
        drift=drift,
        audit_share=audit_share,
        outputs=outputs,
        progress=progress,
    )
    with staged(stores=[outputs.store], files=outputs.files, overwrite=outputs.overwrite) as hidden:
        store = hidden[outputs.store]
        decisions = write_reduced(plan, store, pool=pool, progress=progress)
        if outputs.cxi:
            export_crystfel(
                store,
                outputs.cxi,
                cxi_filter=outputs.cxi_filter,
                columns=kept_columns(plan),
                staged=hidden,
                pool=pool,
                progress=progress,
            )
        report = summarize(
            decisions,
            method=plan.method,
            storage=Storage(
                bytes_in=run.source.n_bytes,
                bytes_out=disk_bytes(store),
                out=outputs.store,
                cxi=outputs.cxi,
                report=outputs.report,
            ),
            wall_seconds=time.perf_counter() - started,
        )
        if outputs.report:
            page = render_html(
                report,
                decisions,
                source=run.path,
                method=plan.method,
                thumbnails=make_thumbnails(run, decisions),
            )
            with output_errors(outputs.report):
                write_file(hidden[outputs.report], page.encode())
    return report
