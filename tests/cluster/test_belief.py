"""One worker that cannot read what others read is not believed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from planted import BrightestPixel, planted_run

from sfxreduce.cluster import Pool, SerialPool, open_pool
from sfxreduce.cluster.dask_pool import DaskPool
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.errors import RefusedError
from sfxreduce.io.chunks.layout import choose_layout
from sfxreduce.io.readers.zarr.run import open_table
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window

N_EVENTS = 24
DAMAGED = 5


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Mounted:
    """Frames in a file that some processes do not see; one event is damaged for everybody."""

    folder: str
    detector: Detector
    dtype: np.dtype
    n_events: int = N_EVENTS
    path: str = "mounted"
    n_bytes: int = 0
    inputs: tuple[Path, ...] = ()

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        time.sleep(0.02)
        chosen = np.asarray(np.load(f"{self.folder}/frames.npy", mmap_mode="r")[list(events)])
        reasons = np.zeros(len(events), np.uint32)
        blind = Path(self.folder, "blind")
        if blind.exists() and str(os.getpid()) in blind.read_text().split():
            reasons[:] = Reason.FILE_UNREADABLE
        reasons[np.array(events) == DAMAGED] = Reason.DATA_HOLE
        return Reading(pixels=chosen, reasons=reasons)


@pytest.fixture
def mounted(tmp_path: Path) -> Run:
    run = planted_run(n_events=N_EVENTS)
    np.save(tmp_path / "frames.npy", run.source.frames)  # type: ignore[attr-defined]
    source = Mounted(folder=str(tmp_path), detector=run.detector, dtype=np.dtype(run.source.dtype))
    return replace(run, source=source)


small_shards = partial(choose_layout, target_shard_bytes=2 * 130 * 150 * 2)
"""Two events in each."""


def keep(run: Run, out: Path, pool: Pool, blind: Path | None = None, *, from_: str = "") -> None:
    """Filter a run; from a stage on, the first worker that answers does not see it."""
    pids: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if blind and isinstance(pool, DaskPool) and stage == from_ and not pids:
            pids.extend(w["pid"] for w in pool.facts["cluster"]["workers"])
            blind.write_text(str(pids[0]))

    settings = FilterSettings(scorer=BrightestPixel(needs_conditions=True))
    filter_run(run, out, settings, pool=pool, progress=progress)


@pytest.mark.parametrize("stage", ["score", "reduce"])
def test_a_worker_that_alone_cannot_read_is_retired_and_costs_nothing(
    stage: str, mounted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfxreduce.pipeline.stages.score.EVENTS_PER_BATCH", 2)
    monkeypatch.setattr("sfxreduce.pipeline.stages.plan.choose_layout", small_shards)
    keep(mounted, tmp_path / "serial", SerialPool())
    lines: list[str] = []
    with open_pool(n_workers=2, tell=lines.append) as pool:
        assert isinstance(pool, DaskPool)
        keep(mounted, tmp_path / "cluster", pool, tmp_path / "blind", from_=stage)
        states = [worker["state"] for worker in pool.facts["cluster"]["workers"]]
        assert not pool.facts["restarts"]
    assert states.count("retired") >= 1
    assert [
        line for line in lines if "it gets no more tasks" in line and "expected to read" in line
    ]
    ledger = read_ledger(open_table(tmp_path / "cluster", "ledger"), where="")
    unread = ledger.reason & np.uint32(Reason.FILE_UNREADABLE | Reason.DATA_HOLE)
    assert np.flatnonzero(unread).tolist() == [DAMAGED]
    assert tree(tmp_path / "cluster") == tree(tmp_path / "serial")


def test_the_last_worker_is_not_believed_either(mounted: Run, tmp_path: Path) -> None:
    with open_pool(n_workers=1) as pool, pytest.raises(RefusedError, match="no other worker"):
        keep(mounted, tmp_path / "out", pool, tmp_path / "blind", from_="score")
    assert not (tmp_path / "out").exists()
    # What it said was not taken down: the same command goes on.
    (tmp_path / "blind").unlink()
    keep(mounted, tmp_path / "out", SerialPool())
    keep(mounted, tmp_path / "fresh", SerialPool())
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_damage_that_everybody_finds_is_believed(
    mounted: Run, tmp_path: Path, cluster: Pool
) -> None:
    assert isinstance(cluster, DaskPool)
    keep(mounted, tmp_path / "cluster", cluster)
    keep(mounted, tmp_path / "serial", SerialPool())
    assert tree(tmp_path / "cluster") == tree(tmp_path / "serial")
    assert {w["state"] for w in cluster.facts["cluster"]["workers"]} == {"admitted"}
