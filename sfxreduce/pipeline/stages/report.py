"""The report of a filter run: its numbers, and the page where one was asked for."""

from __future__ import annotations

import time

from sfxreduce.decisions.decide import Decisions
from sfxreduce.io.files.durable import disk_bytes, output_errors, write_file
from sfxreduce.io.writers.resume import Unfinished
from sfxreduce.pipeline.stages.outputs import Outputs
from sfxreduce.pipeline.stages.plan import FilterPlan
from sfxreduce.report.page import make_thumbnails, render_html
from sfxreduce.report.report import Report, Storage, summarize

__all__ = ["report_on"]


def report_on(
    plan: FilterPlan, decisions: Decisions, outputs: Outputs, work: Unfinished, *, started: float
) -> Report:
    """Count events and bytes; write the page, unless it was complete before a cut-off.

    Parameters
    ----------
    decisions : Decisions
        As the ledger has them.
    started : float
        When the run began, by `time.perf_counter`.
    """
    store = outputs.store if work.published else work.hidden[outputs.store]
    report = summarize(
        decisions,
        method=plan.method,
        storage=Storage(
            bytes_in=plan.run.source.n_bytes,
            bytes_out=disk_bytes(store),
            out=outputs.store,
            cxi=outputs.cxi,
            report=outputs.report,
        ),
        wall_seconds=time.perf_counter() - started,
    )
    if outputs.report and not work.published:
        page = render_html(
            report,
            decisions,
            source=plan.run.path,
            method=plan.method,
            thumbnails=make_thumbnails(plan.run, decisions),
        )
        path = work.hidden[outputs.report]
        with output_errors(path):
            write_file(path, page.encode())
    return report
