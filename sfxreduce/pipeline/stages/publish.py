"""Outputs made as planned, or gone on with: reduce, export, publish, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sfxreduce.cluster import Pool
from sfxreduce.cluster.checkpoints import Notes
from sfxreduce.cluster.progress import Progress, silent
from sfxreduce.decisions.decide import Decisions
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.errors import SourceError
from sfxreduce.io.files.durable import disk_bytes, output_errors, write_file
from sfxreduce.io.files.fingerprint import source_pin
from sfxreduce.io.readers.zarr.run import open_table
from sfxreduce.io.store.schema import LEDGER_GROUP
from sfxreduce.io.writers.resume import Unfinished, unfinished
from sfxreduce.pipeline.stages.export import export_crystfel
from sfxreduce.pipeline.stages.outputs import Outputs
from sfxreduce.pipeline.stages.plan import FilterPlan
from sfxreduce.pipeline.stages.settings import Wanted
from sfxreduce.pipeline.stages.write import kept_columns, write_reduced
from sfxreduce.report.report import Report, Storage, render_html, summarize
from sfxreduce.report.thumbnails import make_thumbnails
from sfxreduce.run.columns import plain_text
from sfxreduce.run.run import Run
from sfxreduce.scorers.protocol import Scorer

__all__ = ["make_outputs", "pins_of"]


def make_outputs(
    run: Run,
    plan: Callable[[Notes], FilterPlan],
    *,
    outputs: Outputs,
    pins: Mapping[str, Any],
    pool: Pool,
    progress: Progress = silent,
) -> Report:
    """Plan outputs and make them, or go on with what is there of them.

    Parameters
    ----------
    plan : callable
        Makes the plan, with notes of what is known already.
    pins : mapping
        Everything the outputs depend on, see `pins_of`.

    Raises
    ------
    OutputExists
        If an output is already there.
    OutputError
        If an output cannot be written.
    """
    started = time.perf_counter()
    outputs.check(run)
    with unfinished(
        outputs.store, files=outputs.files, pins=pins, overwrite=outputs.overwrite
    ) as work:
        made = plan(work)
        decisions = _written(made, outputs, work, pool=pool, progress=progress)
        report = summarize(
            decisions,
            method=made.method,
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
            _write_page(work.hidden[outputs.report], report, decisions, made)
        _check_unchanged(run, work)
    return report


def pins_of(run: Run, scorer: Scorer, wanted: Wanted) -> dict[str, Any]:
    """Everything that the bytes of an output depend on, by the name people know it by."""
    return {
        "version": version("sfxreduce"),
        "source": plain_text(run.path),
        "source files": source_pin(run.source.inputs),
        "scorer": scorer.name,
        "model": scorer.model_sha256,
        "settings": scorer.settings,
        "device": "GPU" if scorer.needs_gpu else "CPU",
        "threshold": wanted.threshold,
        "max-loss": wanted.promise.max_loss,
        "confidence": wanted.promise.confidence,
        "drift": wanted.drift,
        "audit-share": wanted.audit_share,
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
