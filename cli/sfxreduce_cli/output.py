"""What commands print: one JSON object or a few lines on stdout, all else on stderr."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.filesize import decimal

import sfxreduce

if TYPE_CHECKING:
    from sfxreduce.archive.savings.sums import Savings
    from sfxreduce.pipeline.clean import Leftover
    from sfxreduce.pipeline.convert import ConvertSummary
    from sfxreduce.pipeline.many import Outcome, Outcomes
    from sfxreduce.pipeline.stages.live import Followed
    from sfxreduce.pipeline.stages.plan import FilterPlan, Reread
    from sfxreduce.pipeline.verify.output import Verification
    from sfxreduce.report.report import Report
    from sfxreduce.train.evaluate import Evaluation
    from sfxreduce.train.metrics import Confusion
    from sfxreduce.train.model import TrainedModel
    from sfxreduce.train.patches.cross_validate import Across

__all__ = [
    "as_typed",
    "end_if_changed",
    "print_converted",
    "print_crossval",
    "print_evaluation",
    "print_facts",
    "print_filter",
    "print_filter_plan",
    "print_followed",
    "print_json",
    "print_leftovers",
    "print_lines",
    "print_outcomes",
    "print_redecided",
    "print_runs",
    "print_savings",
    "print_sentences",
    "print_summary",
    "print_table",
    "print_trained",
    "print_verification",
    "printable",
    "say",
    "say_next",
    "tell_outcome",
    "typed",
]


def print_json(facts: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout; numbers that JSON cannot hold become null."""
    sys.stdout.write(json.dumps(_plain(facts), indent=2) + "\n")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout."""
    for line in lines:
        sys.stdout.write(f"{line}\n")


def print_facts(title: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what was done or found: an object, or a title and its facts."""
    if as_json:
        print_json(facts)
    else:
        print_table(title, facts)


def print_converted(summary: ConvertSummary, *, as_json: bool) -> None:
    """Print what was written, and what of the source it does not have."""
    facts = asdict(summary)
    plugins = facts["plugin_path"]
    if plugins:
        say(f"to read {summary.out} with other programs: export HDF5_PLUGIN_PATH={plugins}")
    if not as_json:
        facts |= {"not_carried": ", ".join(summary.not_carried) or "nothing"}
        facts.pop("plugin_path")
    print_facts(f"{summary.out}: converted", facts, as_json=as_json)


def print_sentences(sentences: Sequence[str], *, of: Mapping[str, Any], as_json: bool) -> None:
    """Print sentences, one a line; as JSON with what they are about."""
    if as_json:
        print_json({**of, "sentences": sentences})
    else:
        print_lines(sentences)


def print_runs(name: str, rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print one block for each run; as JSON a list, and the facts themselves if it is one run."""
    if as_json:
        print_json({**(rows[0] if len(rows) == 1 else {}), name: list(rows)})
        return
    for row in rows:
        print_table(str(row["run"]), {key: _in_words(v) for key, v in row.items() if key != "run"})


def _in_words(value: object) -> object:
    if isinstance(value, list | tuple):
        return "; ".join(map(_refusal_or_package, value))
    return value


def _refusal_or_package(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    if "code" in value:
        return f"{value['code']} {value['message']}: {value['remedy']}"
    return (
        f"{value['name']}: {sfxreduce.counted(value['files'], 'file')}, {decimal(value['bytes'])}"
    )


def print_summary(summary: Mapping[str, Any], *, as_json: bool) -> None:
    """Print where many runs are on their way to the archive."""
    if as_json:
        print_json(summary)
        return
    states = ", ".join(f"{count} {state}" for state, count in summary["states"].items())
    standings = "; ".join(f"{n} {words}" for words, n in summary["standings"].items())
    facts = {
        "runs": len(summary["runs"]),
        "states": states or "none",
        **({"of them": standings} if standings else {}),
        "held": summary["held"],
        "ready": f"{len(summary['ready'])}, {decimal(summary['bytes_ready'])}",
        "ticketed": decimal(summary["bytes_ticketed"]),
        "released": decimal(summary["bytes_released"]),
    }
    for move in summary.get("moved", ()):
        facts[f"moved: {move['run']}"] = f"{move['from']} -> {move['to']}"
    for failure in summary.get("failed", ()):
        facts[f"failed: {failure['run']}"] = failure["problem"]
    for row in summary["runs"]:
        if row["run"] in summary["attention"]:
            facts[f"look at: {row['run']}"] = f"{row['state']} {' '.join(row['codes'])}"
        elif row["standing"]:
            facts[str(row["run"])] = f"{row['state']}, {row['standing']}"
    print_table(summary["root"], facts)


def print_savings(savings: Savings, page: Path | None, *, as_json: bool) -> None:
    """Print where the bytes are, and what was saved."""
    if as_json:
        print_json(savings.to_json())
        return
    site = savings.site
    freed, cost = site.freed, site.realised_cost
    net, currency = cost.net, savings.rates.currency
    facts = {str(kind): f"{w.bytes:,} bytes" for kind, w in site.parts.items() if w.bytes}
    facts |= {
        "released, realised": f"{freed.realised:,} bytes",
        "a ticket could free": f"{freed.potential:,} bytes, {freed.ready:,} of them now",
        "disk saved, net": f"{site.realised.disk_bytes:,} bytes",
        "money saved": f"{net.low:z,.2f} to {net.high:z,.2f} {currency}, about {net.mid:z,.2f}"
        + ("" if cost.compute else "; computing cost unknown, not included"),
        "hits that may be lost": site.missed_told,
    }
    facts |= {f"damaged: {run.run}": run.problem for run in savings.runs if run.problem}
    facts |= {f"not seen: {n}": problem for n, problem in enumerate(savings.unseen, 1)}
    facts |= {"page": str(page)} if page else {}
    print_table(
        f"{sfxreduce.counted(len(savings.runs), 'run')}: {site.total.bytes:,} bytes in "
        f"{sfxreduce.counted(site.total.files, 'file')}",
        facts,
    )


def print_table(title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values on stdout, one a line."""
    # Paths may hold brackets, which are not markup.
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(printable(title), style="bold")
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        console.print(f"  {printable(name):<{width}}  {printable(str(value))}")


def print_leftovers(left: Sequence[Leftover], *, dry_run: bool, as_json: bool) -> None:
    """Print what killed commands left behind, and what became of it."""
    if as_json:
        print_json({"dry_run": dry_run, "leftovers": [each.to_json() for each in left]})
        return
    gone = "would be removed" if dry_run else "removed"
    for each in left:
        became = f"left alone: {each.kept_because}" if each.kept_because else gone
        print_lines([f"{each.path} ({decimal(each.bytes)}): {became}"])
    if not left:
        say("nothing was left behind")


def print_filter_plan(plan: FilterPlan, *, as_json: bool) -> None:
    """Print what a filter run would keep and write."""
    facts = _planned(plan)
    if as_json:
        print_json(facts)
    else:
        gap = facts["gap"] or facts.pop("gap_reason")
        facts |= {"assurance": plan.method.assurance.sentence, "gap": gap}
        print_table("Nothing was written; this is the plan", facts)


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
        "geometry": plan.run.detector.geometry,
        **plan.method.claims,
        **(plan.reread.to_json() if plan.reread else {}),
    }


def print_redecided(
    report: Report, reread: Reread, *, workers: Mapping[str, Any], as_json: bool
) -> None:
    """Print the numbers of an output with another threshold, and what had to be read for it.

    Parameters
    ----------
    workers : mapping
        As for `print_filter`.
    """
    if as_json:
        print_json({**report.to_json(), **reread.to_json(), **workers})
        end_if_changed(report)
        return
    _print_kept(report)
    print_table(
        "Read from the source",
        {
            "frames": f"{reread.frames_read:,}; {reread.frames_taken_over:,} were copied over",
            "tiles": f"{reread.tiles_read:,}, of {reread.reread:,} events on which the first tiles "
            "did not decide",
        },
    )
    end_if_changed(report)


def end_if_changed(report: Report) -> None:
    """End with exit status 1 where the source changed under the program's hands."""
    if report.changed:
        say(
            f"sfxreduce: {report.out}: the pixels of "
            f"{sfxreduce.counted(report.changed, 'event')} are not those that were scored; kept as "
            "undecided (reason 'changed'): find out what writes to the source, and filter it again"
        )
        raise typer.Exit(1)


def print_filter(report: Report, *, workers: Mapping[str, Any], as_json: bool) -> None:
    """Print the numbers of a filter run, and warn where every event was rejected.

    Parameters
    ----------
    workers : mapping
        Who did the work; told in JSON only.
    """
    if as_json:
        _warn_of(report)
        print_json({**report.to_json(), **workers})
    else:
        _print_kept(report)
    end_if_changed(report)


def print_followed(
    report: Report | None,
    followed: Followed,
    store: Path,
    *,
    workers: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Print the numbers of a run that was followed and filtered.

    Parameters
    ----------
    report : Report or None
        None if the output was complete before.
    workers : mapping
        As for `print_filter`.
    """
    facts = {**workers, "follow": followed.to_json(), "ended_by": followed.ended_by}
    if report is not None:
        if not as_json:
            say(followed.sentence)
        print_filter(report, workers=facts, as_json=as_json)
        return
    words = "was complete when this command was cut off; the hits so far are removed"
    if as_json:
        print_json({"out": str(store), "complete": words, **facts})
    else:
        print_lines([f"{store}: {words}"])


def tell_outcome(outcome: Outcome) -> None:
    """Say at once what became of one run of many."""
    if outcome.report is not None:
        _warn_of(outcome.report)
    say(f"{outcome.word}: {outcome.in_}: {outcome.sentence}")


def print_outcomes(outcomes: Outcomes, *, workers: Mapping[str, Any], as_json: bool) -> None:
    """Print what became of many runs; end with exit status 1 if any of them failed.

    Parameters
    ----------
    workers : mapping
        Who did the work; told in JSON only.
    """
    if as_json:
        print_json({**outcomes.to_json(), **workers})
    else:
        counts = ", ".join(f"{outcomes.count(word)} {word}" for word in ("ok", "failed", "skipped"))
        runs = {f"{run.word:<7}  {run.in_}": run.sentence for run in outcomes.runs}
        print_table(f"{sfxreduce.counted(len(outcomes.runs), 'run')}: {counts}", runs)
    if outcomes.count("failed"):
        raise typer.Exit(1)


def _warn_of(report: Report) -> None:
    """Say what readers of an output have to know at once."""
    if report.incomplete:
        signs = "; ".join(report.incomplete)
        say(f"sfxreduce: warning: {report.source}: looks unfinished, taken as it is ({signs})")
    if report.events and not report.kept:
        say("sfxreduce: warning: every event was rejected; inspect some before you trust this")
    if report.plugin_path:
        say(
            f"to read {report.cxi or report.nxmx} with other programs: export "
            f"HDF5_PLUGIN_PATH={report.plugin_path}"
        )


def _print_kept(report: Report) -> None:
    """Print the numbers of an output as a table, and before them what withholds the promise."""
    _warn_of(report)
    assurance = report.assurance
    if report.next_command:
        print_table(
            report.warning.upper(),
            {f"reason {n}": reason for n, reason in enumerate(assurance["reasons"], start=1)}
            | {"next": report.next_command},
        )
    print_table(
        report.verdict,
        {
            "hits": f"{report.hits:,}",
            "undecided, kept": f"{report.undecided:,}, {report.kept_for_peaks:,} of them for "
            "their number of peaks",
            "rejected": f"{report.rejected:,}, {report.audit_sample:,} of them kept to audit",
            "scorer": report.judged_by,
            "promise": assurance["sentence"],
            "saved": report.saving,
            "time": f"{report.wall_seconds:.1f} s",
            "output": report.out,
        }
        | ({"CXI file": report.cxi} if report.cxi else {})
        | ({"for CrystFEL": report.crystfel_command} if report.crystfel_command else {})
        | (
            {
                "NXmx file": report.nxmx,
                "for DIALS": f"dials.find_spots gain={report.dials_gain:.6g} min_spot_size=1",
            }
            if report.nxmx
            else {}
        )
        | ({"report": report.report} if report.report else {}),
    )
    if not report.next_command:
        say(f"next: {report.check_command}")


def print_evaluation(evaluation: Evaluation, *, as_json: bool) -> None:
    """Print how a model did, rows being the truth."""
    if as_json:
        print_json(evaluation.to_json())
        return
    counts = evaluation.labelled.counts
    unlabelled = f"without a label: {evaluation.n_unlabelled:,} of {evaluation.n_events:,}"
    if evaluation.all_events is not None:
        print_table("On all events, by their truth", _ratios(evaluation.all_events.counts))
        for kind, (kept, lost) in evaluation.by_kind.items():
            print_lines([f"  {kind:<10} {kept:>8,} kept {lost:>8,} rejected"])
        print_lines([""])
    print_table(
        f"On the labelled events ({unlabelled})",
        _ratios(counts)
        | {
            "ROC AUC": f"{evaluation.labelled.roc_auc:.4f}",
            "threshold": f"{evaluation.threshold:.4g}",
        },
    )
    promises = [method.assurance.sentence for method in evaluation.methods]
    print_lines(["", counts.table(), "", evaluation.labels, *promises])


def print_trained(trained: TrainedModel, out: Path, *, as_json: bool) -> None:
    """Print what a model learned from; before and after in a few words each."""
    facts = {"out": str(out), **trained.to_json()}
    if as_json:
        print_json(facts)
        return

    def in_words(judged: Mapping[str, Any]) -> str:
        return (
            f"{judged['lost']} of {judged['hits']} hits lost, {judged['rejected']} of "
            f"{judged['blanks']} misses rejected, threshold {judged['threshold']:.4g}"
        )

    print_table(
        f"{out}: trained",
        {
            name: in_words(value) if isinstance(value, dict) else value
            for name, value in facts.items()
            if name != "windows"
        },
    )


def print_crossval(across: Across, out: Path, *, as_json: bool) -> None:
    """Print how models did on the experiments they have not seen."""
    if as_json:
        print_json(across.to_json() | {"out": str(out)})
        return
    print_lines([across.tables, ""])
    print_table(
        f"{out}: {len(across.judged)} experiments left out in turn",
        {
            "hits": sum(one.hits for one in across.judged),
            "hits lost": sum(one.lost for one in across.judged),
            "model": str(out / "model"),
        },
    )


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


def as_typed(path: Path) -> str:
    """Path or address as it was typed: of an address, a path has one slash less.

    Examples
    --------
    >>> as_typed(Path("s3://bucket/run.zarr"))
    's3://bucket/run.zarr'
    """
    text = str(path)
    return f"s3://{text[4:]}" if text.startswith("s3:/") else text


def print_verification(verified: Verification, path: Path, *, quick: bool, as_json: bool) -> None:
    """Print whether an output can be trusted; its problems go to stderr."""
    for problem in verified.problems:
        say(f"sfxreduce: {problem}")
    if as_json:
        print_json(verified.to_json())
        return
    trusted = "every byte is as it was written" if quick else "every kept event equals its source"
    if verified.kept_with_holes:
        where = "" if quick else " where read"
        trusted += f"{where}; kept with missing panels: {verified.kept_with_holes:,}"
    if verified.kept_without_pixels:
        trusted += f"; kept without pixels: {verified.kept_without_pixels:,}"
    print_table(
        f"{path}: {trusted if verified.ok else 'NOT to be trusted'}",
        {
            "checked": verified.checked,
            "mismatched": verified.mismatched,
            "audit sample checked": verified.audit_checked,
            "audit sample mismatched": verified.audit_mismatched,
        }
        | {f"damaged file {n}": name for n, name in enumerate(verified.damaged_files, start=1)},
    )


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


def typed(*more: str) -> str:
    """The command that was typed, and more words."""
    return shlex.join(["sfxreduce", *sys.argv[1:], *more])


def say_next(*words: object, as_json: bool) -> None:
    """Say what to type next, on stderr; what is in capitals is for the reader to fill in."""
    if not as_json:
        say(f"next: {shlex.join(['sfxreduce', *map(str, words)])}")


def say(line: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(printable(line) + "\n")
    sys.stderr.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
