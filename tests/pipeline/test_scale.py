"""Long runs: what is planned, held and under way is bounded, and never grows with the pixels."""

from __future__ import annotations

import pickle
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from measured import elsewhere, traced_peak
from planted import BrightestPixel, planted_run

import sfxreduce.cluster.pool
from sfxreduce.audit.sample import draw_sample
from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.cluster.dask_pool import DaskPool
from sfxreduce.cluster.in_flight import TASKS_PER_THREAD
from sfxreduce.cluster.pool import BLOCKS_AT_ONCE
from sfxreduce.decisions.decide import Decisions, decide
from sfxreduce.decisions.ledger import ledger_table
from sfxreduce.io.open import open_run
from sfxreduce.io.writers.shards import ShardJob
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.plan import FilterPlan, ReductionPlan, plan_reduction
from sfxreduce.pipeline.stages.score import EVENTS_PER_BATCH, collect_scores, score
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window

MILLION = 1_000_000
N_THREADS = 2
"""Of the cluster of these tests."""


@dataclass(frozen=True, kw_only=True)
class ClaimedFrames:
    """A source of as many events as are asked for, none of which it holds."""

    n_events: int
    side: int = 64
    path: str = "nowhere"

    @property
    def detector(self) -> Detector:
        return Detector.centred("camera", (self.side, self.side))

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return np.dtype("int16")

    @property
    def n_bytes(self) -> int:
        return 0

    @property
    def inputs(self) -> tuple[Path, ...]:
        return ()

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        shape = self.detector.frame_shape if window is None else window.shape
        pixels = np.empty((len(events), *shape), self.dtype)
        ramp = np.arange(pixels[0].size).reshape(shape) % 100
        for frame, event in zip(pixels, events, strict=True):
            frame[...] = ramp + event % 900
        return Reading(pixels=pixels, reasons=np.zeros(len(events), np.uint32))


def claimed_run(n_events: int, *, side: int = 64) -> Run:
    source = ClaimedFrames(n_events=n_events, side=side)
    return Run(source=source, columns=event_columns(n_events))


def decided(n_events: int, *, hit_rate: float = 0.1) -> Decisions:
    scores = np.random.default_rng(0).random(n_events, np.float32)
    return decide(scores, np.zeros(n_events, np.uint32), threshold=1 - hit_rate)


def planned_in_bytes() -> list[int]:
    """Tasks, blocks, most bytes pickled and most bytes allocated while a long run is planned."""
    sizes: list[int] = []

    def plan() -> None:
        scores = score(claimed_run(MILLION), BrightestPixel())
        graph = dict(scores.__dask_graph__())
        n_bytes = max(len(pickle.dumps(made)) for made in (graph, scores))
        sizes.extend((len(graph), scores.npartitions, n_bytes))

    peak = traced_peak(plan)
    return [*sizes, peak]


def test_a_million_events_are_planned_in_few_tasks_and_few_bytes() -> None:
    n_tasks, n_blocks, n_bytes, peak = elsewhere(__file__, "planned_in_bytes")
    assert n_tasks == n_blocks == -(-MILLION // EVENTS_PER_BATCH) < 40_000
    assert n_bytes < 10e6
    assert peak < 500e6


def test_the_graph_of_a_run_grows_with_its_events_and_not_with_their_pixels() -> None:
    def n_bytes(n_events: int, side: int) -> int:
        return len(
            pickle.dumps(dict(score(claimed_run(n_events, side=side), BrightestPixel()).dask))
        )

    assert n_bytes(MILLION // 10, 16) < 1.1 * n_bytes(MILLION // 100, 16) * 10
    assert n_bytes(1000, 64) == pytest.approx(n_bytes(1000, 4096), abs=16)


def test_a_task_of_a_stored_run_is_small_whatever_its_frames_are(tmp_path: Path) -> None:
    def largest(side: int) -> tuple[int, int]:
        run = planted_run(n_events=20)
        frames = np.zeros((20, side, side), np.int16)
        detector = Detector.centred("camera", (side, side))
        source = type(run.source)(frames=frames, detector=detector)  # type: ignore[call-arg]
        path = tmp_path / f"{side:04}.zarr"
        ingest_run(Run(source=source, columns=run.columns), out=path, pool=SerialPool())
        plan = plan_filter(
            open_run(path), FilterSettings(scorer=BrightestPixel(tile=10)), pool=SerialPool()
        )
        tasks = dict(score(plan.run, BrightestPixel(tile=10)).dask).values()
        jobs = plan.jobs(tmp_path / "hits.zarr")
        return max(len(pickle.dumps(t)) for t in tasks), max(len(pickle.dumps(j)) for j in jobs)

    small, large = largest(40), largest(400)
    # Larger numbers take some bytes more.
    assert small == pytest.approx(large, abs=16)
    assert max(large) < 10_000


def test_the_job_of_the_largest_shard_takes_few_bytes_an_event() -> None:
    source = claimed_run(MILLION).source
    job = partial(ShardJob, source=source, store="hits.zarr", layout=None, shard=7)  # type: ignore[arg-type]
    events = tuple(range(MILLION - 512, MILLION))
    # Fewer than an array of 64-bit integers would take.
    assert len(pickle.dumps(job(events=events))) - len(pickle.dumps(job(events=()))) < 8 * 512


def decided_in_bytes() -> int:
    """Most bytes allocated while a million events are decided and placed, all of them once."""
    scores = np.random.default_rng(0).random(MILLION, np.float32)

    def place() -> None:
        decisions = decide(scores, np.zeros(MILLION, np.uint32), threshold=0.9)
        sample = draw_sample(decisions, share=0.01, judge="model")
        table = ledger_table(decisions.with_sample(sample))
        kept = decisions.kept
        plan = plan_reduction(kept, n_events=MILLION, events_per_shard=32, copies_tiles=True)
        assert sum(1 for _ in plan.shards()) == plan.n_shards == -(-kept.size // 32)
        assert np.count_nonzero(table.reason == Reason.AUDIT_SAMPLE) == sample.size

    return traced_peak(place)


def test_a_million_events_are_decided_and_placed_in_little_memory() -> None:
    assert elsewhere(__file__, "decided_in_bytes") < 500e6


def shards_in_bytes(n_events: int) -> int:
    """Most bytes allocated while the shards of a run are planned."""
    whole = decided(n_events)
    parts = [
        ReductionPlan(n_events=n_events, kept=kept, events_per_shard=32, copies_tiles=True)
        for kept in (whole.kept, np.zeros(0, np.int64))
    ]
    plan = FilterPlan(
        run=claimed_run(n_events),
        method=None,  # type: ignore[arg-type]
        decisions=whole,
        layout=None,  # type: ignore[arg-type]
        reduction=parts[0],
        audit=parts[1],
    )

    def count() -> None:
        assert sum(1 for _ in plan.jobs(Path("hits.zarr"))) == plan.n_shards

    return traced_peak(count)


def test_shards_are_planned_one_after_the_other() -> None:
    few, many = (elsewhere(__file__, "shards_in_bytes", n) for n in (10_000, 100_000))
    assert many < 1.1 * few + 10_000


def block_number(*, block_id: tuple[int]) -> np.ndarray:
    return np.array([block_id[0]])


def numbered_blocks(n_blocks: int, *, name: str) -> da.Array:
    return da.map_blocks(
        block_number, chunks=((1,) * n_blocks,), dtype=int, meta=np.empty(0, int), name=name
    )


def same(item: int) -> int:
    return item


def test_a_few_jobs_for_each_thread_are_under_way_and_every_one_is_done(cluster: Pool) -> None:
    n_taken, most = 0, 0

    def items() -> Iterator[int]:
        nonlocal n_taken
        for n_taken in range(1, 101):
            yield -n_taken

    found = {}
    for n_seen, (number, result) in enumerate(cluster.map("few", same, items())):
        most = max(most, n_taken - n_seen)
        found[number] = result
    assert found == {number: -number - 1 for number in range(100)}
    # What is done and waits to be given out counts as well.
    assert N_THREADS * TASKS_PER_THREAD <= most <= 2 * N_THREADS * TASKS_PER_THREAD


def test_few_blocks_are_under_way_and_every_one_is_computed(
    cluster: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(cluster, DaskPool)
    monkeypatch.setattr("sfxreduce.cluster.dask_pool.BLOCKS_AT_ONCE", 16)
    get, n_submitted = cluster._client.get, 0

    def counting(graph: Any, keys: list[Any], **options: Any) -> Any:
        nonlocal n_submitted
        assert set(graph) == set(keys)
        n_submitted += len(keys)
        return get(graph, keys, **options)

    monkeypatch.setattr(cluster._client, "get", counting)
    found, most = {}, 0
    blocks = cluster.blocks(numbered_blocks(200, name="score-window"))
    for n_seen, (number, values) in enumerate(blocks):
        most = max(most, n_submitted - n_seen)
        found[number] = int(values[0])
    assert found == {number: number for number in range(200)}
    assert most <= 2 * 16


def test_work_that_nobody_waits_for_is_cancelled(cluster: Pool) -> None:
    assert isinstance(cluster, DaskPool)
    n_taken = 0

    def items() -> Iterator[float]:
        nonlocal n_taken
        for _ in range(1000):
            n_taken += 1
            yield 0.05

    results = cluster.map("wait", time.sleep, items())
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert n_taken <= 2 * N_THREADS * TASKS_PER_THREAD
    deadline = time.monotonic() + 30
    while cluster._client.run_on_scheduler(known_tasks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not cluster._client.run_on_scheduler(known_tasks)


def known_tasks(dask_scheduler: Any) -> list[str]:
    return [str(key) for key in dask_scheduler.tasks if str(key).startswith("('wait")]


def test_in_this_process_each_task_is_made_once_and_few_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes, make = [], sfxreduce.cluster.pool.part_of

    def noting(array: da.Array, keys: list[Any]) -> Any:
        made = make(array, keys)
        sizes.append(len(made))
        return made

    monkeypatch.setattr("sfxreduce.cluster.pool.part_of", noting)
    n_blocks = 3 * BLOCKS_AT_ONCE + 5
    blocks = list(SerialPool().blocks(numbered_blocks(n_blocks, name="score-serial")))
    assert [(number, int(values[0])) for number, values in blocks] == [
        (number, number) for number in range(n_blocks)
    ]
    assert sizes == [BLOCKS_AT_ONCE] * 3 + [5]


def grown_memory(n_events: int) -> int:
    """Bytes by which the memory of this process grows while events are scored."""
    collect_scores(claimed_run(1000), BrightestPixel(), pool=SerialPool())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = collect_scores(claimed_run(n_events), BrightestPixel(), pool=SerialPool())
    assert np.isfinite(rows["score"]).all()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


@pytest.mark.parametrize("n_events", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_frames_that_were_scored(n_events: int) -> None:
    # Columns, scores and tasks; the frames would take 8 kB an event.
    assert elsewhere(__file__, "grown_memory", n_events) < 200 * n_events + 4e6
