"""What commands print: one JSON object or a few lines on stdout, all else on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import sfxreduce
from sfxreduce.report.report import human_bytes, rounded

if TYPE_CHECKING:
    from sfxreduce.archive.savings.sums import Savings
    from sfxreduce.pipeline.stages.plan import FilterPlan, Reread
    from sfxreduce.report.report import Report
    from sfxreduce.train.evaluate import Evaluation
    from sfxreduce.train.metrics import Confusion

__all__ = [
    "ProgressDisplay",
    "print_evaluation",
    "print_filter",
    "print_filter_plan",
    "print_json",
    "print_lines",
    "print_redecided",
    "print_savings",
    "print_summary",
    "print_table",
    "printable",
    "say",
]


def print_json(facts: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout; numbers that JSON cannot hold become null."""
    sys.stdout.write(json.dumps(_plain(facts), indent=2) + "\n")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout."""
    for line in lines:
        sys.stdout.write(f"{line}\n")


def print_summary(found: Mapping[str, Any]) -> None:
    """Print where many runs are on their way to the archive."""
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items())
    facts = {
        "states": states or "none",
        "held": found["held"],
        "ready": f"{len(found['ready'])} runs, {human_bytes(found['bytes_ready'])}",
        "ticketed": human_bytes(found["bytes_ticketed"]),
        "released": human_bytes(found["bytes_released"]),
    }
    for move in found.get("moved", ()):
        facts[f"moved: {move['run']}"] = f"{move['from']} -> {move['to']}"
    for failure in found.get("failed", ()):
        facts[f"failed: {failure['run']}"] = failure["problem"]
    for row in found["runs"]:
        if row["run"] in found["attention"]:
            facts[f"look at: {row['run']}"] = f"{row['state']} {' '.join(row['codes'])}"
    print_table(f"{found['root']}: {len(found['runs'])} runs", facts)


def print_savings(found: Savings, page: Path | None) -> None:
    """Print where the bytes are, and what was saved."""
    site = found.site
    freed, cost = site.freed, site.realised_cost
    money = found.rates.currency
    total = site.total
    facts = {str(part): f"{w.bytes:,} bytes" for part, w in site.parts.items() if w.bytes}
    facts |= {
        "released, realised": f"{freed.realised:,} bytes",
        "a ticket could free": f"{freed.potential:,} bytes, {freed.ready:,} of them now",
        "disk saved, net": f"{site.realised.disk_bytes:,} bytes",
        "money saved": f"{rounded(cost.net.low, 2)} to {rounded(cost.net.high, 2)} {money}, about "
        f"{rounded(cost.net.mid, 2)}"
        + ("" if cost.compute else "; computing not known, not in it"),
        "hits that may be lost": site.missed_told,
    }
    facts |= {f"damaged: {run.run}": run.problem for run in found.runs if run.problem}
    facts |= {f"not seen: {n}": told for n, told in enumerate(found.unseen, 1)}
    facts |= {"page": str(page)} if page else {}
    runs = f"{len(found.runs):,} run{'' if len(found.runs) == 1 else 's'}"
    print_table(f"{runs}: {total.bytes:,} bytes in {total.files:,} files", facts)


def print_table(title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values on stdout, one a line."""
    # Paths may hold brackets, which are not markup.
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(printable(title), style="bold")
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        console.print(f"  {printable(name):<{width}}  {printable(str(value))}")


def print_filter_plan(plan: FilterPlan, *, as_json: bool) -> None:
    """Print what a filter run would keep and write."""
    facts = _planned(plan)
    if as_json:
        print_json(facts)
    else:
        told = facts | {"drift": _drifted(plan.method.claims["drift"])}
        print_table("Nothing was written; this is the plan", told)


def _planned(plan: FilterPlan) -> dict[str, Any]:
    counts = {d.name.lower(): plan.decisions.count(d) for d in sfxreduce.Decision}
    return {
        "dry_run": True,
        "events": plan.run.n_events,
        "hits": counts["hit"],
        "undecided": counts["undecided"],
        "rejected": counts["reject"],
        "kept": int(plan.reduction.kept.size),
        "threshold": plan.method.threshold,
        "scorer": plan.method.scorer,
        "model_sha256": plan.method.model_sha256,
        "audit_sample": int(plan.audit.kept.size),
        "shards": plan.reduction.n_shards,
        "copies_tiles": plan.reduction.copies_tiles,
        **plan.method.claims,
        **(plan.reread.to_json() if plan.reread else {}),
    }


def print_redecided(report: Report, reread: Reread, *, as_json: bool) -> None:
    """Print the numbers of an output with another threshold, and what had to be read for it."""
    if as_json:
        print_json(report.to_json() | reread.to_json())
        return
    print_filter(report, as_json=False)
    print_table(
        "Of the source were read",
        {
            "frames": f"{reread.frames_read:,}; {reread.frames_taken_over:,} were taken over",
            "tiles": f"{reread.tiles_read:,}, of {reread.events_reopened:,} events that were "
            f"reopened and {reread.events_rechecked:,} that were checked again",
        },
    )


def print_filter(report: Report, *, as_json: bool) -> None:
    """Print the numbers of a filter run, and what deserves a second look."""
    if report.events and not report.kept:
        say("sfxreduce: warning: every event was rejected; look at some before you trust this")
    if as_json:
        print_json(report.to_json())
        return
    in_, out = human_bytes(report.bytes_in), human_bytes(report.bytes_out)
    print_table(
        f"Kept {report.kept:,} of {report.events:,} events: {in_} became {out}",
        {
            "hits": f"{report.hits:,}",
            "undecided, kept": f"{report.undecided:,}",
            "rejected": f"{report.rejected:,}, {report.audit_sample:,} of them kept to audit",
            "scorer": f"{report.scorer}, threshold {report.threshold:.4g}",
            "hit loss": _promised(report),
            "drift": _drifted(report.drift),
            "saved": f"{human_bytes(report.bytes_saved)}, {report.reduction_factor:.3g} x smaller",
            "time": f"{report.wall_seconds:.1f} s",
            "hits are in": report.out,
        }
        | ({"for CrystFEL": report.cxi} if report.cxi else {})
        | ({"report": report.report} if report.report else {}),
    )


def _promised(report: Report) -> str:
    """What the threshold promises, in a few words."""
    if report.loss_upper95 is None:
        return "not known: no labelled hits stand behind the threshold"
    bound = (
        f"below {report.loss_upper95:.2%} with 95 % confidence, for hits like the simulated ones"
    )
    return bound if report.certified else f"{bound}; not certified"


def _drifted(drift: Mapping[str, Any]) -> str:
    """What the drift gate found, in a few words."""
    if not drift["checked"]:
        return "not checked"
    if drift["alarms"]:
        return f"alarm, rejects seen by the peak finder are kept: {'; '.join(drift['alarms'])}"
    return f"none seen on {drift['frames']} frames"


def print_evaluation(found: Evaluation) -> None:
    """Print how a model did, rows being the truth."""
    counts = found.labelled.counts
    left_open = f"{found.n_unlabelled:,} of {found.n_events:,} events have no label"
    if found.all_events is not None:
        print_table("On all events, by their truth", _ratios(found.all_events.counts))
        for kind, (kept, lost) in found.by_kind.items():
            sys.stdout.write(f"  {kind:<10} {kept:>8,} kept {lost:>8,} rejected\n")
        sys.stdout.write("\n")
    print_table(
        f"On the labelled events ({left_open})",
        _ratios(counts)
        | {"ROC AUC": f"{found.labelled.roc_auc:.4f}", "threshold": f"{found.threshold:.4g}"},
    )
    sys.stdout.write(f"\n{counts.table()}\n\n{found.labels}\n")


def _ratios(counts: Confusion) -> dict[str, str]:
    return {
        "hit loss": f"{counts.hit_loss:.2%} ({counts.fn:,} of {counts.fn + counts.tp:,} hits), "
        f"at most {counts.hit_loss_upper95:.2%} with 95 % confidence",
        "recall": f"{counts.recall:.4f}",
        "specificity": f"{counts.specificity:.4f}",
        "precision": f"{counts.precision:.4f}",
        "NPV": f"{counts.npv:.4f}",
        "accuracy": f"{counts.accuracy:.4f}",
    }


def printable(text: str) -> str:
    r"""Text for a terminal: names out of a file could hold sequences that a terminal obeys.

    Examples
    --------
    >>> printable("run \x1b[2J7")
    'run \\x1b[2J7'
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def say(line: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(printable(line) + "\n")
    sys.stderr.flush()


class ProgressDisplay:
    """Shows how far the stages are, on stderr: bars on a terminal, a few lines elsewhere."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}
        self._tenths: dict[str, int] = {}

    def __enter__(self) -> ProgressDisplay:
        if self._bars.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars.console.is_terminal:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of progress. See `sfxreduce.cluster.progress.Progress`."""
        if self._bars.console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done)
            return
        tenth = 10 * done // total if total else 10
        if tenth > self._tenths.get(stage, 0) and tenth in (5, 10):
            say(f"{stage:>8}: {done} of {total}")
        self._tenths[stage] = tenth


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
