"""What grows with a run's length: plans, memory, cost per event; and what a second worker brings.

Frames are small and made up, so that what a run costs by its length is not hidden behind pixels.

    python benchmarks/scaling.py --json scaling.json
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import psutil
from dask.core import flatten
from machine import machine
from numpy.typing import NDArray

import sfxreduce
from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import BLOCKS_AT_ONCE
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.stages.plan import plan_reduction
from sfxreduce.pipeline.stages.score import collect_scores, score
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.peaks.finder import PeakScorer

__all__ = ["measure", "tables"]

_SIDE = 128
_SIDE_ON_WORKERS = 512
"""Large enough that an event costs about what those of full size do."""
_PER_SHARD = 32
_HIT_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUp:
    """A few small frames of photons, again and again: any number of events, no disk."""

    n_events: int
    side: int = _SIDE
    path: str = "made up"

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Dtype of a pixel."""
        return np.dtype(np.uint16)

    @property
    def detector(self) -> Detector:
        """A small camera."""
        return Detector.centred("camera", (self.side, self.side), adu_per_photon=1.0)

    @property
    def n_bytes(self) -> int:
        """Bytes of all frames."""
        return 2 * self.side**2 * self.n_events

    @property
    def inputs(self) -> tuple[Path, ...]:
        """No files."""
        return ()

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Repeat frames."""
        frames = _few_frames(self.side)
        pixels = frames[np.asarray(events) % len(frames)]
        if window is not None:
            pixels = np.stack([window.take(frame, self.detector) for frame in pixels])
        return Reading(pixels=pixels, reasons=np.zeros(len(events), np.uint32))


@lru_cache
def _few_frames(side: int) -> NDArray[np.uint16]:
    return np.random.default_rng(0).poisson(2, (64, side, side)).astype(np.uint16)


def made_up_run(n_events: int, *, side: int = _SIDE) -> Run:
    """Make a run of small frames up."""
    return Run(source=MadeUp(n_events=n_events, side=side), columns=event_columns(n_events))


def plans(n_events: int) -> dict[str, Any]:
    """Size and cost of planning a run: the tasks of its scores, and where its hits go.

    Tasks are made as a pool makes them, some blocks at a time. Memory is what this process grew by.
    """
    run = made_up_run(n_events)
    memory = [psutil.Process().memory_info().rss]
    started = time.process_time()
    scores = score(run, PeakScorer())
    keys = list(flatten(scores.__dask_keys__()))
    n_tasks, n_bytes = 0, 0
    for start in range(0, len(keys), BLOCKS_AT_ONCE):
        tasks = dict(scores.dask.cull(keys[start : start + BLOCKS_AT_ONCE]))
        n_tasks += len(tasks)
        n_bytes += len(pickle.dumps(tasks))
        memory.append(psutil.Process().memory_info().rss)
    graph_s = time.process_time() - started
    started = time.process_time()
    kept = np.arange(0, n_events, round(1 / _HIT_SHARE), dtype=np.int64)
    plan = plan_reduction(kept, n_events=n_events, events_per_shard=_PER_SHARD, copies_tiles=True)
    n_shards = sum(1 for _ in plan.shards())
    memory.append(psutil.Process().memory_info().rss)
    return {
        "events": n_events,
        "tasks": n_tasks,
        "graph_mb": n_bytes / 1e6,
        "graph_cpu_s": graph_s,
        "shards": n_shards,
        "plan_cpu_s": time.process_time() - started,
        "grown_mb": (max(memory) - memory[0]) / 1e6,
    }


def cost(n_events: int) -> dict[str, Any]:
    """CPU per event and memory of scoring and deciding on so many events in this process."""
    with sfxreduce.open_pool(serial=True) as pool:
        plan_filter(made_up_run(64), FilterSettings(scorer=PeakScorer(), drift=False), pool=pool)
        before = _peak_mb()
        started = time.process_time()
        plan_filter(
            made_up_run(n_events), FilterSettings(scorer=PeakScorer(), drift=False), pool=pool
        )
        spent = time.process_time() - started
    return {
        "events": n_events,
        "cpu_ms": 1e3 * spent / n_events,
        "peak_mb": _peak_mb(),
        "grown_mb": _peak_mb() - before,
    }


def dask_alone(pool: Pool, n_tasks: int) -> dict[str, Any]:
    """What Dask costs by itself: tasks that score nothing."""
    nothing = da.zeros(n_tasks, chunks=1)
    list(pool.map("warm", abs, range(8)))
    memory, before, started = psutil.Process().memory_info().rss, _cpu_s(), time.perf_counter()
    n_done = sum(1 for _ in pool.blocks(nothing))
    wall = time.perf_counter() - started
    spent = [after - then for after, then in zip(_cpu_s(), before, strict=True)]
    return {
        "tasks": n_done,
        "wall_s": wall,
        "scheduler_cpu_ms": 1e3 * spent[0] / n_tasks,
        "workers_cpu_ms": 1e3 * spent[1] / n_tasks,
        "grown_mb": (psutil.Process().memory_info().rss - memory) / 1e6,
    }


def on_workers(pool: Pool, n_workers: int, n_events: int) -> dict[str, Any]:
    """Events per second on a cluster of this machine, and CPU per event of all its processes."""
    collect_scores(made_up_run(64 * 4 * n_workers, side=_SIDE_ON_WORKERS), PeakScorer(), pool=pool)
    before, started = sum(_cpu_s()), time.perf_counter()
    collect_scores(made_up_run(n_events, side=_SIDE_ON_WORKERS), PeakScorer(), pool=pool)
    wall, spent = time.perf_counter() - started, sum(_cpu_s()) - before
    return {
        "workers": n_workers,
        "events": n_events,
        "wall_s": wall,
        "events_per_s": n_events / wall,
        "cpu_ms": 1e3 * spent / n_events,
    }


def _cpu_s() -> tuple[float, float]:
    """CPU seconds of this process, where client and scheduler are, and of all below it."""
    below = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return time.process_time(), sum(times.user + times.system for times in below)


def _peak_mb() -> float:
    """Most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(*, small: bool = False) -> dict[str, Any]:
    """Measure all of it; memory in a process of its own for each length."""
    planned = (100_000,) if small else (10**6, 10**7)
    scored = (1_000, 5_000) if small else (1_000, 10_000, 100_000)
    turns, empty = [], {}
    for n_workers in (1, 2) if small else (1, 2, 1, 2):
        with sfxreduce.open_pool(n_workers=n_workers) as pool:
            turns.append(on_workers(pool, n_workers, 1_000 if small else 3_000))
            if n_workers == 2 and not empty:
                empty = dask_alone(pool, 1_000 if small else 10_000)
    # Others take their share of the machine; the best turn had most of it.
    turns.sort(key=lambda turn: (turn["workers"], turn["wall_s"]))
    best = [next(turn for turn in turns if turn["workers"] == n) for n in (1, 2)]
    return {
        "plans": [_in_a_process("plans", n) for n in planned],
        "cost": [_in_a_process("cost", n) for n in scored],
        "workers": best,
        "dask": empty,
    }


_ALONE = {"plans": plans, "cost": cost}


def _in_a_process(name: str, n_events: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--only", name, "--events", str(n_events)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def tables(found: dict[str, Any]) -> list[str]:
    """Tables in Markdown."""
    empty = found["dask"]
    one, two = found["workers"]
    return [
        "## Plans of long runs",
        "",
        "| events | tasks | all, MB | CPU-s | shards of hits | CPU-s | memory grew by, MB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {p['events']:,} | {p['tasks']:,} | {p['graph_mb']:.3g} | {p['graph_cpu_s']:.2f} | "
            f"{p['shards']:,} | {p['plan_cpu_s']:.2f} | {p['grown_mb']:.0f} |"
            for p in found["plans"]
        ),
        "",
        f"{empty['tasks']:,} tasks that do nothing on two workers: {empty['scheduler_cpu_ms']:.2f} "
        f"CPU-ms each for client and scheduler, {empty['workers_cpu_ms']:.2f} for the workers; "
        f"memory of client and scheduler grew by {empty['grown_mb']:.0f} MB.",
        "",
        f"## Cost and memory with a run's length, {_SIDE} x {_SIDE} pixels, peaks counted",
        "",
        "| events | CPU-ms per event | memory of the process, MB | grew by, MB |",
        "|---:|---:|---:|---:|",
        *(
            f"| {c['events']:,} | {c['cpu_ms']:.3f} | {c['peak_mb']:.0f} | {c['grown_mb']:.0f} |"
            for c in found["cost"]
        ),
        "",
        f"## A second worker, {_SIDE_ON_WORKERS} x {_SIDE_ON_WORKERS} pixels",
        "",
        "| workers | events per second, wall clock | CPU-ms per event, all processes |",
        "|---:|---:|---:|",
        *(f"| {w['workers']} | {w['events_per_s']:.0f} | {w['cpu_ms']:.3f} |" for w in (one, two)),
        "",
        f"{two['events_per_s'] / one['events_per_s']:.2f} times as many, on a machine of "
        f"{len(os.sched_getaffinity(0))} cores that are shared with others.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="shorter runs: some seconds")
    parser.add_argument("--json", type=Path, help="write all figures, and what machine gave them")
    parser.add_argument("--only", choices=sorted(_ALONE), help=argparse.SUPPRESS)
    parser.add_argument("--events", type=int, default=1_000, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.only:
        print(json.dumps(_ALONE[options.only](options.events)))
        return
    found = measure(small=options.small)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    print("\n".join(tables(found)))


if __name__ == "__main__":
    # By its name: what belongs to the main program is sent to workers as code, task by task.
    from scaling import main as measure_all

    measure_all()
