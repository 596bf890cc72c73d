"""Report what was saved over many runs, as numbers and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sfxreduce.archive.evidence.folder import Clock
from sfxreduce.archive.evidence.subject import wall_clock
from sfxreduce.archive.savings.alternatives import MOST_RUNS, SAMPLE_EVENTS, measure_alternatives
from sfxreduce.archive.savings.on_disk import weigh_savings
from sfxreduce.archive.savings.page import render_savings
from sfxreduce.archive.savings.rates import read_rates, shipped_rates
from sfxreduce.archive.savings.sums import Savings
from sfxreduce.archive.savings.targets import named_targets, targets_below
from sfxreduce.io.writers.publish import check_outputs
from sfxreduce.pipeline.audit import write_text
from sfxreduce.run.columns import plain_text

__all__ = ["report_savings", "write_page"]


def report_savings(
    runs: Sequence[Path] = (),
    *,
    root: Path | None = None,
    hits: Sequence[Path] = (),
    evidence: Path | None = None,
    rates: Path | None = None,
    sample: int | None = None,
    clock: Clock = wall_clock,
) -> Savings:
    """Weigh runs that are named, or all below a folder.

    Parameters
    ----------
    root : Path, optional
        In place of runs.
    hits, evidence
        See `sfxreduce.archive.savings.targets.named_targets`.
    rates : Path, optional
        TOML with prices; by default those of the package.
    sample : int, optional
        Events of each run on which alternatives are measured, for which frames are read. By default
        100, but none if runs are many or not named.

    Raises
    ------
    UsageError, RunNotFound
        If runs cannot be told from what was given.
    SchemaError
        If the prices cannot be understood.
    """
    prices = read_rates(rates) if rates else shipped_rates()
    if root is not None:
        targets = targets_below(root.absolute())
    else:
        targets = named_targets(runs, hits=hits, evidence=evidence)
    if sample is None:
        sample = SAMPLE_EVENTS if root is None and len(targets) <= MOST_RUNS else 0
    return weigh_savings(
        targets,
        rates=prices,
        clock=clock,
        root=root.absolute() if root else None,
        measure=partial(measure_alternatives, sample=sample) if sample else None,
    )


def write_page(savings: Savings, out: Path, *, overwrite: bool = False) -> None:
    """Write the page of a report, whole or not at all.

    Raises
    ------
    UsageError
        If it would lie inside a run or an output.
    OutputExists
        If something lies there already, and is not to be replaced.
    OutputError
        If it cannot be written.
    """
    weighed = [path for run in savings.runs for path in (run.run, run.output) if path]
    check_outputs(files=[out], inputs=[Path(path) for path in weighed], overwrite=overwrite)
    write_text(out, plain_text(render_savings(savings)), overwrite=overwrite)
