"""Tasks run where they must, under the names people look for, and failures are one line."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster, SpecCluster, Worker, get_worker
from distributed.scheduler import Scheduler
from planted import BrightestPixel

import sfxreduce.cluster.pool
from sfxreduce.cluster import Pool, SerialPool, open_pool
from sfxreduce.cluster.dask_pool import DaskPool
from sfxreduce.errors import ClusterError, SfxReduceError, SourceError, UsageError
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import Outputs, filter_run
from sfxreduce.pipeline.stages.settings import FilterSettings


def where(*, block_id: tuple[int]) -> np.ndarray:
    """Whether the worker that runs this has a GPU."""
    return np.array([bool(get_worker().state.total_resources.get("GPU"))])


@pytest.fixture(scope="module")
def mixed() -> Iterator[DaskPool]:
    """Two workers on 127.0.0.1, one of which offers a GPU."""
    local = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    workers = {
        0: {"cls": Worker, "options": {"nthreads": 1, "host": "127.0.0.1"}},
        1: {
            "cls": Worker,
            "options": {"nthreads": 1, "host": "127.0.0.1", "resources": {"GPU": 1}},
        },
    }
    scheduler = {"cls": Scheduler, "options": {**local, "port": 0}}
    with SpecCluster(workers=workers, scheduler=scheduler) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=30)
        yield DaskPool(client)


def test_gpu_tasks_run_on_gpu_workers_only(mixed: DaskPool) -> None:
    array = da.map_blocks(
        where, chunks=((1,) * 40,), dtype=bool, meta=np.empty(0, bool), name="score-gpu"
    )
    assert mixed.has_gpu
    assert all(values.all() for _, values in mixed.blocks(array, needs_gpu=True))


def test_other_tasks_run_on_any_worker(mixed: DaskPool) -> None:
    array = da.map_blocks(
        where, chunks=((1,) * 40,), dtype=bool, meta=np.empty(0, bool), name="score-cpu"
    )
    assert len({bool(values[0]) for _, values in mixed.blocks(array)}) == 2


def test_the_dashboard_shows_score_reduce_and_publish(
    stored: Path, tmp_path: Path, cluster: Pool
) -> None:
    assert cluster.dashboard.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(cluster.dashboard) as answer:
        assert answer.status == 200
    filter_run(
        open_run(stored),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(store=tmp_path / "hits.zarr"),
        pool=cluster,
    )
    assert isinstance(cluster, DaskPool)
    names = cluster._client.run_on_scheduler(
        lambda dask_scheduler: list(dask_scheduler.task_prefixes)
    )
    assert {"score", "reduce", "publish"} <= set(names)


def test_a_scheduler_elsewhere_is_used_with_relative_paths(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its workers were started in another folder, where relative paths lead nowhere.
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as elsewhere,
        open_pool(scheduler=elsewhere.scheduler_address) as pool,
    ):
        monkeypatch.chdir(tmp_path)
        report = filter_run(
            open_run(Path(stored.name)),
            settings=FilterSettings(scorer=BrightestPixel()),
            outputs=Outputs(
                store=Path("hits.zarr"), cxi=Path("hits.cxi"), cxi_without_geometry=True
            ),
            pool=pool,
        )
    assert report.hits == 24
    assert (tmp_path / "hits.lst").read_text().startswith("hits.cxi //0")


def failing(item: int) -> int:
    raise SourceError(f"item {item} cannot be read")


@pytest.mark.parametrize("kind", ["serial", "cluster"])
def test_errors_of_a_task_arrive_as_themselves(kind: str, cluster: Pool) -> None:
    pool = SerialPool() if kind == "serial" else cluster
    with pytest.raises(SourceError, match="item 5 cannot be read"):
        list(pool.map("fail", failing, [5]))


def test_a_scheduler_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfxreduce.cluster.connection.CONNECT_SECONDS", 1)
    with pytest.raises(ClusterError, match="no Dask scheduler answers") as told:
        with open_pool(scheduler="tcp://127.0.0.1:9"):
            pass
    assert "\n" not in str(told.value)


def test_contradicting_pools_are_refused() -> None:
    with (
        pytest.raises(UsageError, match="exclude each other"),
        open_pool(serial=True, scheduler="x"),
    ):
        pass
    with pytest.raises(UsageError, match="no GPU workers"):
        list(SerialPool().blocks(da.zeros(1), needs_gpu=True))


def test_importing_the_package_loads_neither_torch_nor_distributed() -> None:
    code = (
        "import sys, sfxreduce, sfxreduce_cli.main; "
        "sys.exit(bool({'torch', 'distributed', 'zarr', 'h5py', 'numba'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_every_error_has_the_exit_status_of_its_documentation() -> None:
    statuses = {error.__name__: error.exit_status for error in SfxReduceError.__subclasses__()}
    assert statuses["UsageError"] == 2
    assert statuses["VerificationError"] == 4
    assert {s for n, s in statuses.items() if n not in ("UsageError", "VerificationError")} <= {
        1,
        3,
    }


def test_working_in_this_process_costs_the_same_for_every_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Handing the whole graph to each block once made long runs cost the square of their length.
    sizes = []
    get = sfxreduce.cluster.pool.get_sync

    def noting(graph: dict[object, object], key: object) -> object:
        sizes.append(len(graph))
        return get(graph, key)

    monkeypatch.setattr("sfxreduce.cluster.pool.get_sync", noting)
    array = da.map_blocks(
        zero, chunks=((1,) * 50,), dtype=float, meta=np.empty(0), name="score-serial"
    )
    assert [number for number, _ in SerialPool().blocks(array)] == list(range(50))
    assert sizes == [1] * 50


def zero(*, block_id: tuple[int]) -> np.ndarray:
    return np.zeros(1)


def test_a_scheduler_without_workers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # It once waited for ever, without a word.
    monkeypatch.setattr("sfxreduce.cluster.connection.CONNECT_SECONDS", 2)
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as empty,
        pytest.raises(ClusterError, match="has no workers"),
        open_pool(scheduler=empty.scheduler_address),
    ):
        pass


def test_gpu_work_without_a_gpu_is_one_line(cluster: Pool) -> None:
    with pytest.raises(ClusterError, match="offers the resource GPU"):
        list(cluster.blocks(da.zeros(3), needs_gpu=True))
