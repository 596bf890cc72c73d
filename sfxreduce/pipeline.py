"""The stages of ``sfxreduce filter`` in order: score, decide, plan, reduce, publish, report."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xarray as xr

from sfxreduce.cluster import Pool
from sfxreduce.decide import Decision, Decisions, decide
from sfxreduce.export import crystfel_paths, export_crystfel
from sfxreduce.gallery import make_thumbnails
from sfxreduce.geometry import Window
from sfxreduce.io.layout import Layout, choose_layout
from sfxreduce.io.publish import (
    PublishJob,
    check_outputs,
    disk_bytes,
    publish_file,
    staged,
    sweep_partial,
    write_file,
)
from sfxreduce.io.readers.zarr import ZarrFrames
from sfxreduce.io.schema import LEDGER_GROUP
from sfxreduce.io.writers.shards import ShardJob, ShardWritten, copy_shard, encode_shard
from sfxreduce.io.writers.zarr import create_store, write_manifest, write_table
from sfxreduce.ledger import ledger_table
from sfxreduce.manifest import Manifest
from sfxreduce.plan import ReductionPlan, plan_reduction
from sfxreduce.progress import Progress, silent, tracked
from sfxreduce.report import Method, Report, Storage, render_html, summarize
from sfxreduce.run import Run, select_events
from sfxreduce.score import EVENTS_PER_BATCH, SCORE_DTYPE, Scorer, score

__all__ = ["FilterPlan", "Outputs", "plan_filter", "run_filter"]


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
    overwrite : bool
        Replace what lies there.
    """

    store: Path
    cxi: Path | None = None
    report: Path | None = None
    overwrite: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file and folder that will appear."""
        crystfel = () if self.cxi is None else crystfel_paths(self.cxi)
        return (self.store, *crystfel, *((self.report,) if self.report else ()))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FilterPlan:
    """Everything that is decided before a byte is written.

    Parameters
    ----------
    run : Run
    method : Method
        How the events were judged.
    decisions : Decisions
    layout : Layout
        Of the reduced store.
    reduction : ReductionPlan
        Which event goes where.
    """

    run: Run
    method: Method
    decisions: Decisions
    layout: Layout
    reduction: ReductionPlan

    def jobs(self, store: Path) -> list[ShardJob]:
        """One job for each shard of the reduced store."""
        return [
            ShardJob(
                source=self.run.source,
                store=str(store),
                layout=self.layout,
                shard=shard.shard,
                events=shard.source_index,
            )
            for shard in self.reduction.shards()
        ]


def plan_filter(
    run: Run,
    *,
    scorer: Scorer,
    pool: Pool,
    threshold: float | None = None,
    progress: Progress = silent,
) -> FilterPlan:
    """Score every event and decide on it; write nothing.

    The scores are computed here, on the pool, batch by batch.

    Parameters
    ----------
    run : Run
    scorer : Scorer
    pool : Pool
    threshold : float, optional
        Smallest score of a hit; the scorer's own if not given.
    progress : Progress

    Raises
    ------
    SfxReduceError
        If the model does not fit the run or the pool fails.
    """
    method = Method(
        scorer=scorer.name,
        settings=scorer.settings,
        threshold=float(scorer.threshold if threshold is None else threshold),
        model_sha256=scorer.model_sha256,
    )
    rows = np.zeros(run.n_events, SCORE_DTYPE)
    scores = score(run, scorer)
    blocks = pool.blocks(scores, needs_gpu=scorer.needs_gpu)
    for block, values in tracked(
        blocks, stage="score", total=scores.npartitions, progress=progress
    ):
        start = block * EVENTS_PER_BATCH
        rows[start : start + len(values)] = values
    decisions = decide(rows["score"], rows["reason"], threshold=method.threshold)
    own = run.source.layout if isinstance(run.source, ZarrFrames) else None
    layout = own or choose_layout(
        run.detector.frame_shape,
        dtype=np.dtype(run.source.dtype),
        boxes=Window.centre(run.detector).boxes(run.detector),
    )
    reduction = plan_reduction(
        decisions.kept,
        n_events=run.n_events,
        events_per_shard=layout.events_per_shard,
        copies_tiles=own is not None,
    )
    return FilterPlan(
        run=run, method=method, decisions=decisions, layout=layout, reduction=reduction
    )


def run_filter(
    run: Run,
    *,
    outputs: Outputs,
    scorer: Scorer,
    pool: Pool,
    threshold: float | None = None,
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
        Smallest score of a hit; the scorer's own if not given.
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
    check_outputs(outputs.paths, inputs=run.inputs, overwrite=outputs.overwrite)
    plan = plan_filter(run, scorer=scorer, pool=pool, threshold=threshold, progress=progress)
    with ExitStack() as stack:
        # Contexts close in reverse: the reduced store is renamed last, when all else is in place.
        hidden = {final: stack.enter_context(staged(final)) for final in outputs.paths}
        store = hidden[outputs.store]
        columns = _columns(plan)
        _reduce(plan, store, columns, pool=pool, progress=progress)
        if outputs.cxi:
            export_crystfel(
                store, outputs.cxi, columns=columns, staged=hidden, pool=pool, progress=progress
            )
        report = summarize(
            plan.decisions,
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
                plan.decisions,
                source=run.path,
                method=plan.method,
                thumbnails=make_thumbnails(run, plan.decisions),
            )
            write_file(hidden[outputs.report], page.encode())
    return report


def _columns(plan: FilterPlan) -> xr.Dataset:
    """Per-event columns of the kept events, with their score and where they came from."""
    kept = plan.reduction.kept
    columns = select_events(plan.run.columns, kept)
    columns["score"] = (
        "event",
        plan.decisions.score[kept],
        {"long_name": "score of the event", "units": "1"},
    )
    columns["source_index"] = (
        "event",
        kept,
        {"long_name": "position in the source run", "units": "1"},
    )
    return columns


def _reduce(
    plan: FilterPlan, store: Path, columns: xr.Dataset, *, pool: Pool, progress: Progress
) -> None:
    """Write the reduced store: hits, ledger, and the manifest last."""
    run = plan.run
    truth = None if run.truth is None else select_events(run.truth, plan.reduction.kept)
    create_store(store, run=run, layout=plan.layout, columns=columns, truth=truth)
    write_table(store, LEDGER_GROUP, ledger_table(plan.decisions))
    jobs = plan.jobs(store)
    work = pool.map("reduce", copy_shard if plan.reduction.copies_tiles else encode_shard, jobs)
    written = [
        shard for _, shard in tracked(work, stage="reduce", total=len(jobs), progress=progress)
    ]
    write_manifest(store, _manifest(plan, store, written, pool=pool, progress=progress))


def _manifest(
    plan: FilterPlan, store: Path, written: list[ShardWritten], *, pool: Pool, progress: Progress
) -> Manifest:
    """Read every staged file back and take down what the output consists of."""
    sweep_partial(store)
    expected = {shard.path: shard.sha256 for shard in written}
    files = sorted(str(p.relative_to(store)) for p in store.rglob("*") if p.is_file())
    jobs = [
        PublishJob(store=str(store), path=path, sha256=expected.get(path, "")) for path in files
    ]
    work = pool.map("publish", publish_file, jobs)
    records = [
        record for _, record in tracked(work, stage="publish", total=len(jobs), progress=progress)
    ]
    return Manifest(
        software=f"sfxreduce {version('sfxreduce')}",
        source=plan.run.path,
        source_events=plan.run.n_events,
        source_bytes=plan.run.source.n_bytes,
        scorer=plan.method.scorer,
        settings=plan.method.settings,
        threshold=plan.method.threshold,
        model_sha256=plan.method.model_sha256,
        hits=plan.decisions.count(Decision.HIT),
        undecided=plan.decisions.count(Decision.UNDECIDED),
        rejected=plan.decisions.count(Decision.REJECT),
        files=tuple(sorted(records, key=lambda record: record.path)),
    )
