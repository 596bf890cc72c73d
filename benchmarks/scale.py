"""What a filter run leaves in scheduler, client, journal and manifest, and how that grows.

Runs of tiny frames are filtered on two workers of this machine: what is counted does not hang on
pixels. Scheduler and client are one process here, so that their memory and CPU time count together.
Straight lines through the shorter runs are compared with the longest one, and then drawn out to the
length of a whole beam time. A second table has what a task of nothing costs, by events a task.

    python benchmarks/scale.py --out docs/results/scale
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from distributed.client import Client
from distributed.utils import nbytes
from machine import machine
from numpy.typing import NDArray
from scaling import MadeUp

import sfxreduce
from sfxreduce.io.files import journal
from sfxreduce.io.store.names import MANIFEST_GROUP
from sfxreduce.pipeline.stages.score import score
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Run

__all__ = ["LENGTHS", "measure", "page"]

LENGTHS = (8_192, 32_768, 65_536, 262_144)
"""Events of the runs that are filtered; the last one tries what the others foretell."""

BEAM_TIME = 10**7
"""Events that figures are drawn out to."""

PER_TASK = (16, 64, 256, 1024)
"""Events a task, with tasks of nothing."""

SIDE = 64
N_WORKERS = 2

GROWING = {
    "tasks": "tasks",
    "graph_mb": "graphs sent to the scheduler, MB",
    "journal_mb": "journal, MB",
    "manifest_mb": "manifest, MB",
    "peak_mb": "peak memory of client and scheduler, MB",
    "cpu_s": "CPU time of client and scheduler, s",
}


class Counter:
    """Counts what is sent to a scheduler and written to journals, while it is entered."""

    def __init__(self) -> None:
        self.tasks = self.graph_bytes = self.journal_bytes = 0
        send, write = Client._send_to_scheduler, journal._write_all  # noqa: SLF001 - nobody else counts

        def counted_send(client: Client, message: dict[str, Any]) -> None:
            if message["op"] == "update-graph":
                self.tasks += len(message["keys"])
                graph = message["expr_ser"]
                self.graph_bytes += sum(map(nbytes, [graph.header, *graph.frames]))
            send(client, message)

        def counted_write(descriptor: int, line: bytes) -> None:
            self.journal_bytes += len(line)
            write(descriptor, line)

        self._patches = (
            patch.object(Client, "_send_to_scheduler", counted_send),
            patch.object(journal, "_write_all", counted_write),
        )

    def __enter__(self) -> Counter:
        for one in self._patches:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._patches:
            one.stop()


def tiny_run(n_events: int) -> Run:
    """Make a run of tiny frames up, every 20th of which shows peaks."""
    source = MadeUp(n_events=n_events, side=SIDE)
    return Run(source=source, columns=event_columns(n_events))


@dataclass(frozen=True, slots=True)
class Nothing:
    """A scorer that looks at nothing: its tasks cost what tasks cost."""

    name: str = "nothing"
    settings: str = ""
    calibration: None = None

    def window(self, detector: Detector) -> None:
        """Whole frames, which are tiny."""

    def __call__(self, pixels: NDArray[np.generic], _: Detector) -> NDArray[np.float32]:
        """Score events."""
        return np.zeros(len(pixels), np.float32)


def filtered(n_events: int, folder: Path) -> dict[str, float]:
    """Filter a run on workers, and count."""
    out = folder / f"hits{n_events}.zarr"
    settings = sfxreduce.FilterSettings(scorer=sfxreduce.PeakScorer())
    with Counter() as counter, sfxreduce.open_pool(n_workers=N_WORKERS) as pool:
        started = time.process_time()
        report = sfxreduce.filter_run(tiny_run(n_events), out, settings, pool=pool)
        cpu_s = time.process_time() - started
    manifest = sum(p.stat().st_size for p in (out / MANIFEST_GROUP).rglob("*") if p.is_file())
    return {
        "events": n_events,
        "kept": report.kept,
        "tasks": counter.tasks,
        "graph_mb": counter.graph_bytes / 1e6,
        "journal_mb": counter.journal_bytes / 1e6,
        "manifest_mb": manifest / 1e6,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "cpu_s": cpu_s,
    }


def tasks_of_nothing(per_task: int, n_tasks: int) -> dict[str, float]:
    """What scheduler and client spend on a task, whatever it does."""
    scores = score(tiny_run(per_task * n_tasks), Nothing(), batch=per_task)
    with sfxreduce.open_pool(n_workers=N_WORKERS) as pool:
        for _ in pool.blocks(score(tiny_run(64), Nothing(), batch=1)):
            pass  # workers are warm after this
        started = time.process_time()
        n_done = sum(1 for _ in pool.blocks(scores))
        cpu_ms = 1e3 * (time.process_time() - started) / n_done
    return {
        "per_task": per_task,
        "tasks": n_done,
        "cpu_ms": cpu_ms,
        "most": 1e3 * per_task / cpu_ms,
    }


def measure(lengths: Sequence[int], *, n_tasks: int) -> dict[str, Any]:
    """Measure all, each length in a process of its own: memory is that of one length."""
    return {
        "machine": machine(),
        "filtered": [_in_a_process("--filter", n) for n in lengths],
        "nothing": [_in_a_process("--nothing", per_task, n_tasks) for per_task in PER_TASK],
    }


def _in_a_process(*words: object) -> dict[str, float]:
    command = [sys.executable, __file__, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def lines_of(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """A straight line for each figure through all runs but the longest, and its error there.

    Returns
    -------
    dict
        For each of `GROWING`: ``fixed``, ``each`` (by event), ``error`` (share of what was measured
        of the longest run) and ``beam_time``.
    """
    *shorter, longest = rows
    events = np.array([row["events"] for row in shorter], np.float64)
    found = {}
    for name in GROWING:
        each, fixed = np.polyfit(events, [row[name] for row in shorter], 1)
        foretold = fixed + each * longest["events"]
        found[name] = {
            "fixed": float(fixed),
            "each": float(each),
            "error": float(foretold / longest[name] - 1),
            "beam_time": float(fixed + each * BEAM_TIME),
        }
    return found


def page(found: Mapping[str, Any]) -> str:
    """Make the tables of the docs page from the figures."""
    rows, facts = found["filtered"], found["machine"]
    heads = ["", *(f"{row['events']:,.0f} events" for row in rows), "foretold of the last"]
    lines = [
        "<!-- made by benchmarks/scale.py; do not edit -->",
        f"{N_WORKERS} workers, {facts['cpu']}, Python {facts['python']}, "
        + ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        + ".",
        "",
        f"| {' | '.join([*heads, f'{BEAM_TIME:,} events'])} |",
        "|---|" + "---:|" * (len(rows) + 2),
    ]
    for name, line in lines_of(rows).items():
        cells = [*(_short(row[name]) for row in rows), f"{100 * line['error']:+.0f} %"]
        lines.append(f"| {' | '.join([GROWING[name], *cells, _short(line['beam_time'])])} |")
    lines += ["", "| events a task | CPU-ms of scheduler and client | events/s at most |"]
    lines += ["|---:|---:|---:|"]
    lines += [
        f"| {row['per_task']:,.0f} | {row['cpu_ms']:.2f} | {row['most']:,.0f} |"
        for row in found["nothing"]
    ]
    return "\n".join(lines) + "\n"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="short runs, no figure to quote")
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    parser.add_argument("--filter", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--nothing", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.filter:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(filtered(options.filter, Path(folder))))
    elif options.nothing:
        print(json.dumps(tasks_of_nothing(*options.nothing)))
    else:
        lengths = (256, 512, 1_024) if options.small else LENGTHS
        found = measure(lengths, n_tasks=100 if options.small else 1_500)
        if options.out:
            options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
            options.out.with_suffix(".md").write_text(page(found))
        print(page(found))


if __name__ == "__main__":
    main()
