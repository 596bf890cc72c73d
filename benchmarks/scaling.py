"""What grows with a run's length: plans, memory, cost per event; and what a second worker brings.

Plans are of made-up runs. Cost and memory are those of ``sfxreduce filter --serial --report`` on
run stores, a process of its own for each length: frames of 350 x 350 pixels, so that what a run
costs by its length is not hidden behind pixels, and frames of 1750 x 1750. Workers are compared by
the wall clock on frames of 1750 x 1750; what others used of the machine meanwhile stands beside it.

    python benchmarks/scaling.py --json scaling.json
"""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from dask.core import flatten
from machine import IDLE_BELOW, Others, machine
from material import KINDS, mixed_store, repeated_run, simulated_store
from numpy.typing import NDArray
from watched import watched

import sfxreduce
from sfxreduce.cluster.pool import BLOCKS_AT_ONCE
from sfxreduce.pipeline.stages.plan import plan_reduction
from sfxreduce.pipeline.stages.score import score
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.peaks.finder import PeakScorer

__all__ = ["measure", "parts", "tables"]

_SIDE = 350
_PER_SHARD = 32
_HIT_SHARE = 0.1

MODES = {"serial": ("--serial",), "1 worker": ("--workers", "1"), "default": ()}
"""Ways to run ``sfxreduce filter``; the default is a worker for each processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How much is measured.

    Parameters
    ----------
    planned : tuple of int
        Events of the runs that are only planned.
    small, whole : tuple of int
        Events of the runs that are filtered, of small and of whole frames.
    on_workers : tuple of int
        Events of the runs that are filtered in every one of `MODES`.
    """

    planned: tuple[int, ...] = (10**6, 10**7)
    small: tuple[int, ...] = (128, 1024, 10_240, 102_400)
    whole: tuple[int, ...] = (128, 1024)
    on_workers: tuple[int, ...] = (16, 320, 1152, 4032)


SHORT = Lengths(planned=(100_000,), small=(128, 1024), whole=(64, 128), on_workers=(16, 128))
_MANY_EVENTS = 4000
"""From here on workers have to pay; below they must not cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUp:
    """A few small frames of photons, again and again: any number of events, no disk.

    Every 20th shows peaks.
    """

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
    rng = np.random.default_rng(0)
    frames = rng.poisson(2, (64, side, side)).astype(np.uint16)
    for frame in frames[10::20]:
        frame[tuple(rng.integers(side, size=(2, 30)))] += 60
    return frames


def made_up_run(n_events: int) -> Run:
    """Make a run of small frames up."""
    return Run(source=MadeUp(n_events=n_events), columns=event_columns(n_events))


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


def small_store(folder: Path, n_events: int) -> Run:
    """Store small frames of photons, every 20th of them with peaks."""
    path = folder / f"small{n_events}.zarr"
    if not path.exists():
        with sfxreduce.open_pool(serial=True) as pool:
            sfxreduce.ingest_run(made_up_run(n_events), out=path, pool=pool)
    return sfxreduce.open_run(path)


def whole_store(folder: Path, n_events: int) -> Run:
    """Store whole frames of photons, every 20th of them a hit."""
    return mixed_store(folder, KINDS[0], n_each=64, n_events=n_events)


STORES = {"small": (small_store, 512), "whole": (whole_store, 64)}
"""What stores frames, and events that fill their shards: longer runs repeat these."""


@contextmanager
def stored(name: str, folder: Path, n_events: int) -> Iterator[Path]:
    """Path of a run store of that length; a long one is gone afterwards."""
    store, n_full = STORES[name]
    if n_events <= n_full:
        yield Path(store(folder, n_events).path)
        return
    path = folder / f"{name}-{n_events}-long.zarr"
    repeated_run(store(folder, n_full), path, times=n_events // n_full)
    yield path
    shutil.rmtree(path)


def filtered(path: Path, *options: str) -> dict[str, Any]:
    """Run ``sfxreduce filter`` on a run store, with a report, in a process of its own."""
    out = path.parent / "filtered"
    command = [sys.executable, "-m", "sfxreduce_cli", "filter", "--in", str(path), "--overwrite"]
    command += ["--out", f"{out}.zarr", "--report", f"{out}.html", "--json", *options]
    others, started = Others(), time.perf_counter()
    used = watched(command)
    return {
        "wall_s": time.perf_counter() - started,
        **used,
        "others": others.share(used["cpu_s"]),
    }


def growth(name: str, folder: Path, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Cost and memory of filtering runs of growing length."""
    _warm(folder)
    rows = []
    for n_events in lengths:
        with stored(name, folder, n_events) as path:
            rows.append({"events": n_events, **filtered(path, "--serial")})
    return rows


def _warm(folder: Path) -> None:
    """Have everything compiled, and read from the disk once."""
    filtered(Path(whole_store(folder, 64).path), "--serial")


def on_workers(folder: Path, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Every one of `MODES` on runs of growing length, turn by turn.

    No frame is there twice: among thousands of copies the checks of a run would find that its
    scores are too much alike, and everything would be looked at by the peak finder as well.
    """
    _warm(folder)
    rows = []
    for n_events in lengths:
        path = folder / f"drawn{n_events}.zarr"
        simulated_store(path, n_events=n_events, hit_rate=1 / 20)
        rows += [
            {"events": n_events, "mode": mode, **filtered(path, *options)}
            for mode, options in MODES.items()
        ]
        shutil.rmtree(path)
    return rows


def measure(folder: Path, lengths: Lengths = Lengths()) -> dict[str, Any]:
    """Measure all of it.

    Parameters
    ----------
    folder : Path
        For runs and outputs.
    """
    return {name: measured() for name, measured in parts(folder, lengths).items()}


def parts(folder: Path, lengths: Lengths) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """What measures each of the tables."""
    return {
        "plans": lambda: [_in_a_process(n) for n in lengths.planned],
        "small": lambda: growth("small", folder, lengths.small),
        "whole": lambda: growth("whole", folder, lengths.whole),
        "workers": lambda: on_workers(folder, lengths.on_workers),
    }


def _in_a_process(n_events: int) -> dict[str, Any]:
    """Plan in a process of its own: memory is that of one length."""
    command = [sys.executable, __file__, "--only-plan", str(n_events)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(ran.stdout)
    return figures


def tables(figures: dict[str, Any]) -> list[str]:
    """Tables in Markdown."""
    lines = [
        "## Plans of long runs",
        "",
        "| events | tasks | all, MB | CPU-s | shards of hits | CPU-s | memory grew by, MB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {p['events']:,} | {p['tasks']:,} | {p['graph_mb']:.3g} | {p['graph_cpu_s']:.2f} | "
            f"{p['shards']:,} | {p['plan_cpu_s']:.2f} | {p['grown_mb']:.0f} |"
            for p in figures["plans"]
        ),
    ]
    for name, side in (("small", _SIDE), ("whole", 1750)):
        lines += ["", f"## Cost and memory with a run's length, frames of {side} x {side}", ""]
        lines += ["`sfxreduce filter --serial --report`, in a process of its own.", ""]
        lines += ["| events | CPU-s | CPU-ms of each further event | peak memory, MB |"]
        lines += ["|---:|---:|---:|---:|", *_growing(figures[name])]
    lines += ["", "## Workers, by the wall clock, frames of 1750 x 1750", "", *_busy(figures)]
    lines += [
        "| events | way | wall, s | CPU-s | of it system | wall over serial | CPU over serial |"
    ]
    lines += ["|---:|---|---:|---:|---:|---:|---:|"]
    serial = {row["events"]: row for row in figures["workers"] if row["mode"] == "serial"}
    for row in figures["workers"]:
        base = serial[row["events"]]
        lines.append(
            f"| {row['events']:,} | {row['mode']} | {row['wall_s']:.1f} | {row['cpu_s']:.1f} | "
            f"{row['system_s']:.1f} | {row['wall_s'] / base['wall_s']:.2f} | "
            f"{row['cpu_s'] / base['cpu_s']:.2f} |"
        )
    return [*lines, "", *_targets(figures)]


def _growing(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of one table: what each further event costs is the difference to the line above."""
    for before, row in zip([None, *rows], rows, strict=False):
        each = "-"
        if before is not None:
            more = row["events"] - before["events"]
            each = f"{1e3 * (row['cpu_s'] - before['cpu_s']) / more:.3g}"
        yield f"| {row['events']:,} | {row['cpu_s']:.1f} | {each} | {row['peak_mb']:.0f} |"


def _busy(figures: dict[str, Any]) -> list[str]:
    """Whether the machine was idle but for this."""
    shares = [row["others"] for row in figures["workers"]]
    said = f"Others used {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the machine."
    if max(shares) < IDLE_BELOW:
        return [said, ""]
    return [
        f"**The machine was not idle**: {said[0].lower()}{said[1:]} Wall times are too long.",
        "",
    ]


def _targets(figures: dict[str, Any]) -> Iterator[str]:
    """What is wanted of the default, run by run."""
    rows = {(row["events"], row["mode"]): row for row in figures["workers"]}
    for events in sorted({row["events"] for row in figures["workers"]}):
        serial, default = rows[events, "serial"], rows[events, "default"]
        ratio, cpu = (default[key] / serial[key] for key in ("wall_s", "cpu_s"))
        if events >= _MANY_EVENTS:
            wall, holds = f"{1 / ratio:.2f} times as fast (at least 1.6", ratio <= 1 / 1.6
        else:
            wall, holds = f"{ratio:.2f} times the wall time (at most 1.1", ratio <= 1.1
        yield (
            f"- {events:,} events, the default: {wall}: {_verdict(holds)}), "
            f"{cpu:.2f} times the CPU time of serial (at most 1.3: {_verdict(cpu <= 1.3)})"
        )


def _verdict(holds: bool) -> str:
    return "holds" if holds else "**missed**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="short runs only")
    parser.add_argument("--work", type=Path, help="for runs and outputs; a temporary folder else")
    parser.add_argument("--json", type=Path, help="write all figures, and what machine gave them")
    parser.add_argument("--only-plan", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_plan:
        print(json.dumps(plans(options.only_plan)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(options.work or Path(temporary), SHORT if options.small else Lengths())
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
    print("\n".join(tables(figures)))


if __name__ == "__main__":
    main()
