"""What grows with a run's length: plans, memory, cost per event; and what a second worker brings.

python benchmarks/scaling.py
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import subprocess
import sys
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sfxreduce
from sfxreduce.collect import collect_scores
from sfxreduce.columns import event_columns
from sfxreduce.geometry import Detector, Window
from sfxreduce.plan import plan_reduction
from sfxreduce.run import Reading, Run
from sfxreduce.score import score
from sfxreduce.scorers.peaks import PeakScorer

__all__ = ["measure", "tables"]

_SIDE = 128
_PER_SHARD = 32
_HIT_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUp:
    """Small frames of photons, made when they are asked for: any number of events, no disk."""

    n_events: int
    path: str = "made up"

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Dtype of a pixel."""
        return np.dtype(np.uint16)

    @property
    def detector(self) -> Detector:
        """A small camera."""
        return Detector.centred("camera", (_SIDE, _SIDE), adu_per_photon=1.0)

    @property
    def n_bytes(self) -> int:
        """Bytes of all frames."""
        return 2 * _SIDE * _SIDE * self.n_events

    @property
    def inputs(self) -> tuple[Path, ...]:
        """No files."""
        return ()

    def read(self, events: range, window: Window | None = None) -> Reading:
        """Make frames."""
        rng = np.random.default_rng(events[0])
        frames = rng.poisson(2, (len(events), _SIDE, _SIDE)).astype(np.uint16)
        pixels = (
            frames if window is None else np.stack([window.take(f, self.detector) for f in frames])
        )
        return Reading(pixels=pixels, reasons=np.zeros(len(events), np.uint32))


def made_up_run(n_events: int) -> Run:
    """Make a run of small frames up."""
    return Run(source=MadeUp(n_events=n_events), columns=event_columns(n_events))


def plans(n_events: int) -> dict[str, Any]:
    """Size and cost of planning a run: the graph of its scores, and where its hits go."""
    run = made_up_run(n_events)
    tracemalloc.start()
    started = time.process_time()
    scores = score(run, PeakScorer())
    graph = dict(scores.__dask_graph__())
    graph_s = time.process_time() - started
    n_bytes = len(pickle.dumps(scores.__dask_graph__()))
    started = time.process_time()
    kept = np.arange(0, n_events, round(1 / _HIT_SHARE), dtype=np.int64)
    plan = plan_reduction(kept, n_events=n_events, events_per_shard=_PER_SHARD, copies_tiles=True)
    n_shards = sum(1 for _ in plan.shards())
    plan_s = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "events": n_events,
        "tasks": len(graph),
        "graph_mb": n_bytes / 1e6,
        "graph_cpu_s": graph_s,
        "shards": n_shards,
        "plan_cpu_s": plan_s,
        "peak_mb": peak / 1e6,
    }


def cost(n_events: int) -> dict[str, Any]:
    """CPU per event and peak memory of scoring so many events in this process."""
    with sfxreduce.open_pool(serial=True) as pool:
        collect_scores(made_up_run(64), PeakScorer(), pool=pool)
        started = time.process_time()
        collect_scores(made_up_run(n_events), PeakScorer(), pool=pool)
    return {
        "events": n_events,
        "cpu_ms": 1e3 * (time.process_time() - started) / n_events,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def workers(n_workers: int, n_events: int) -> dict[str, Any]:
    """Events per second on a cluster of this machine."""
    with sfxreduce.open_pool(n_workers=n_workers) as pool:
        collect_scores(made_up_run(64 * n_workers), PeakScorer(), pool=pool)
        started = time.perf_counter()
        collect_scores(made_up_run(n_events), PeakScorer(), pool=pool)
        spent = time.perf_counter() - started
    return {"workers": n_workers, "events": n_events, "events_per_s": n_events / spent}


def measure(*, small: bool = False) -> dict[str, Any]:
    """Measure all of it; memory in a process of its own for each length."""
    lengths = (1_000, 5_000) if small else (1_000, 10_000, 100_000)
    n_events = 4_000 if small else 20_000
    return {
        "plans": [plans(n) for n in ((100_000,) if small else (1_000_000, 10_000_000))],
        "cost": [_in_a_process("cost", n) for n in lengths],
        "workers": [workers(n, n_events) for n in (1, 2)],
    }


def _in_a_process(name: str, n_events: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--only", name, "--events", str(n_events)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def tables(found: dict[str, Any]) -> list[str]:
    """Tables in Markdown."""
    lines = [
        "## Plans of long runs",
        "",
        "| events | tasks | graph, MB | graph, CPU-s | shards of hits | plan, CPU-s | peak, MB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {p['events']:,} | {p['tasks']:,} | {p['graph_mb']:.3g} | {p['graph_cpu_s']:.2f} | "
        f"{p['shards']:,} | {p['plan_cpu_s']:.2f} | {p['peak_mb']:.0f} |"
        for p in found["plans"]
    ]
    lines += [
        "",
        f"## Cost and memory with a run's length, {_SIDE} x {_SIDE} pixels, peaks counted",
        "",
        "| events | CPU-ms per event | peak of the process, MB |",
        "|---:|---:|---:|",
    ]
    lines += [
        f"| {c['events']:,} | {c['cpu_ms']:.3f} | {c['peak_mb']:.0f} |" for c in found["cost"]
    ]
    one, two = found["workers"]
    gain = two["events_per_s"] / one["events_per_s"]
    lines += [
        "",
        "## A second worker",
        "",
        "| workers | events per second, wall clock |",
        "|---:|---:|",
    ]
    lines += [f"| {w['workers']} | {w['events_per_s']:.0f} |" for w in (one, two)]
    return [*lines, "", f"{gain:.2f} times as many, on a shared machine of two cores."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", choices=["cost"])
    parser.add_argument("--events", type=int, default=1_000)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(cost(options.events)))
        return
    print("\n".join(tables(measure(small=options.small))))


if __name__ == "__main__":
    main()
