"""Workers die, hang and run out of memory: nothing is lost but what cannot be done at all."""

from __future__ import annotations

import ctypes
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import dask.array as da
import numpy as np
import psutil
import pytest
from elsewhere import scheduler_elsewhere
from planted import BrightestPixel, planted_run

from sfxreduce.cluster import Pool, SerialPool, open_pool
from sfxreduce.cluster.dask_pool import DaskPool
from sfxreduce.cluster.in_flight import Flow
from sfxreduce.cluster.isolated import Failed
from sfxreduce.cluster.pool import Rescue, halves_of
from sfxreduce.cluster.suspects import Suspect, results_of
from sfxreduce.decisions.decide import Decision
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.errors import ClusterError, SourceError
from sfxreduce.io import process as own_process
from sfxreduce.io.process import (
    NotStarted,
    ProcessFailed,
    call_in_process,
    read_outputs,
    start_process,
)
from sfxreduce.io.readers.zarr.run import open_table
from sfxreduce.pipeline.filter import Outputs, filter_run
from sfxreduce.pipeline.stages.score import collect_scores
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window

POISON = 3
LOST = int(Reason.WORKER_LOST)
PATIENCE = 120.0
"""Of pools that must not lose it: workers take long to start on a busy machine."""


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def worker_processes() -> list[psutil.Process]:
    """Worker processes of this process, however far they have come in starting."""
    found = []
    for origin in origins():
        with suppress(psutil.Error):
            found += origin.children()
    return found


def origins() -> list[psutil.Process]:
    """The process of which workers are forks; there may be none."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "forkserver" in " ".join(child.cmdline()):
                found.append(child)
    return found


class Storm(threading.Thread):
    """Kills workers, one after the other: first only those at work, then in whatever state."""

    def __init__(self, n_kills: int, n_at_work: int, folder: Path) -> None:
        super().__init__()
        self._left, self._at_work, self._folder = n_kills, n_at_work, folder
        self._spared = {worker.pid for worker in worker_processes()}

    def run(self) -> None:
        calls = self._folder / "calls"
        while self._left:
            # Many of them while they start, which takes about as long.
            time.sleep(0.2 * random.random())
            working = {int(pid) for pid in calls.read_text().split()} if calls.exists() else set()
            for worker in worker_processes():
                at_work = worker.pid in working
                if worker.pid not in self._spared and (at_work or self._at_work <= 0):
                    worker.kill()
                    self._left = max(self._left - 1, 0)
                    self._at_work -= at_work
        (self._folder / "storm").unlink()


@dataclass(frozen=True)
class Watched(BrightestPixel):
    """A scorer that notes who calls it in a file, and takes its time while there is a storm."""

    folder: str = ""

    def __call__(self, pixels: np.ndarray, detector: Detector) -> np.ndarray:
        with Path(self.folder, "calls").open("a") as calls:
            calls.write(f"{os.getpid()}\n")
        if Path(self.folder, "storm").exists():
            time.sleep(0.5)
        return super().__call__(pixels, detector)


@pytest.mark.parametrize(
    ("n_kills", "n_at_work"), [(50, 4), pytest.param(200, 30, marks=pytest.mark.slow)]
)
def test_results_are_the_same_bytes_however_many_workers_are_killed(
    n_kills: int, n_at_work: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfxreduce.pipeline.stages.score.EVENTS_PER_BATCH", 1)
    n_events = 2 * n_kills
    run = planted_run(n_events=n_events)
    # Small when pickled, as all sources are that lie in files.
    np.save(tmp_path / "frames.npy", run.source.frames)  # type: ignore[attr-defined]
    run = replace(run, source=SavedFrames.of(run, tmp_path / "frames.npy"))
    scorer = Watched(folder=str(tmp_path))
    filtered = partial(filter_run, run, settings=FilterSettings(scorer=scorer))
    filtered(outputs=Outputs(store=tmp_path / "serial"), pool=SerialPool())
    (tmp_path / "calls").unlink()
    (tmp_path / "storm").touch()
    storm = Storm(n_kills, n_at_work, tmp_path)
    with open_pool(n_workers=2, patience_seconds=PATIENCE) as pool:
        storm.start()
        filtered(outputs=Outputs(store=tmp_path / "cluster"), pool=pool)
        storm.join()
    assert tree(tmp_path / "cluster") == tree(tmp_path / "serial")
    # Some were killed at work, and not between two tasks: what they were at ran again.
    assert len((tmp_path / "calls").read_text().split()) > n_events


def test_workers_outlive_the_process_of_which_they_are_forks() -> None:
    with open_pool(n_workers=2, patience_seconds=PATIENCE) as pool:
        assert dict(pool.map("abs", abs, [-1, 2])) == {0: 1, 1: 2}
        for origin in origins():
            origin.kill()
        assert dict(pool.map("abs", abs, range(-40, 0))) == dict(enumerate(range(40, 0, -1)))


def test_workers_know_variables_that_were_set_after_the_first_of_them_were_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_pool(n_workers=1, patience_seconds=PATIENCE) as pool:
        assert dict(pool.map("get", os.getenv, ["SFXREDUCE_LATE"])) == {0: None}
    monkeypatch.setenv("SFXREDUCE_LATE", "set")
    with open_pool(n_workers=1, patience_seconds=PATIENCE) as pool:
        assert dict(pool.map("get", os.getenv, ["SFXREDUCE_LATE"])) == {0: "set"}


def test_who_waits_for_a_dead_worker_lets_no_other_wait() -> None:
    """Both die while they are told that they may work; Dask would call each for half a minute."""
    with open_pool(n_workers=2, patience_seconds=PATIENCE / 3) as pool:
        assert isinstance(pool, DaskPool)
        assert dict(pool.map("abs", abs, [-1])) == {0: 1}
        for _ in range(40):
            for worker in worker_processes():
                with suppress(psutil.Error):
                    worker.kill()
            time.sleep(0.3 * random.random())
        assert dict(pool.map("abs", abs, [-1, 2])) == {0: 1, 1: 2}
        causes = {restart["cause"] for restart in pool.facts["restarts"]}
    assert causes
    assert not [cause for cause in causes if cause.startswith("nothing was done")]


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedFrames:
    """A source of frames in a file; one event may kill whatever process reads it."""

    file: str
    detector: Detector
    n_events: int
    dtype: np.dtype
    poison: int = -1
    reason: int = 0
    path: str = "saved"
    n_bytes: int = 0
    inputs: tuple[Path, ...] = ()

    @classmethod
    def of(cls, run: Run, file: Path, *, poison: int = -1, reason: int = 0) -> SavedFrames:
        dtype, n_events = np.dtype(run.source.dtype), run.n_events
        return cls(
            file=str(file), detector=run.detector, n_events=n_events, dtype=dtype,
            poison=poison, reason=reason,
        )  # fmt: skip

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        reasons = np.zeros(len(events), np.uint32)
        if self.poison in events:
            if not self.reason:
                os.kill(os.getpid(), signal.SIGKILL)
            reasons[list(events).index(self.poison)] = self.reason
        chosen = np.load(self.file, mmap_mode="r")[list(events)]
        return Reading(pixels=np.asarray(chosen), reasons=reasons)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """Two workers whose tasks are doubted after the first death, for the sake of time."""
    monkeypatch.setitem(sfx_scheduler(), "allowed_failures", 1)
    with open_pool(n_workers=2, patience_seconds=PATIENCE) as pool:
        yield pool


def sfx_scheduler() -> dict[str, object]:
    from sfxreduce.cluster.local import SCHEDULER

    return SCHEDULER


def test_an_event_that_kills_every_process_that_reads_it_costs_itself_only(
    tmp_path: Path, faulty: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfxreduce.pipeline.stages.score.EVENTS_PER_BATCH", 2)
    run = planted_run(n_events=6)
    np.save(tmp_path / "frames.npy", run.source.frames)  # type: ignore[attr-defined]
    stores = {}
    for name, reason, pool in (
        ("cluster", 0, faulty),
        ("serial", Reason.WORKER_LOST, SerialPool()),
    ):
        source = SavedFrames.of(run, tmp_path / "frames.npy", poison=POISON, reason=int(reason))
        stores[name] = tmp_path / name
        filter_run(
            replace(run, source=source),
            settings=FilterSettings(scorer=BrightestPixel(needs_conditions=True)),
            outputs=Outputs(store=stores[name]),
            pool=pool,
        )
    # The same as if the source itself had said that this event cannot be read.
    assert tree(stores["cluster"]) == tree(stores["serial"])
    ledger = read_ledger(open_table(stores["cluster"], "ledger"), where="")
    assert np.flatnonzero(ledger.reason & LOST).tolist() == [POISON]
    assert ledger.decision[POISON] == Decision.UNDECIDED
    assert POISON in ledger.kept


@dataclass(frozen=True)
class Hanging(BrightestPixel):
    """Never comes back from one event."""

    def __call__(self, pixels: np.ndarray, detector: Detector) -> np.ndarray:
        scores = super().__call__(pixels, detector)
        while (scores == 1000 + POISON).any():
            time.sleep(1)
        return scores


def stuck_block(*, block_id: tuple[int]) -> np.ndarray:
    time.sleep(600 if block_id[0] == 3 else 0)
    return np.array([block_id[0]])


def quick_block(number: int) -> np.ndarray:
    return np.array([-number])


def test_what_holds_up_its_worker_is_set_aside_and_done_alone(faulty: Pool) -> None:
    assert isinstance(faulty, DaskPool)
    array = da.map_blocks(
        stuck_block, chunks=((1,) * 6,), dtype=int, meta=np.empty(0, int), name="score-stuck"
    )
    rescue: Rescue[int, np.ndarray] = Rescue(
        item=lambda place: 2 * place + 1, attempt=quick_block, halves=list, lost=abs, joined=max
    )
    impatient = DaskPool(faulty._client, patience_seconds=8)
    # Some of its blocks, as after an interruption.
    found = list(impatient.blocks(array.blocks[[1, 3, 5]], rescue=rescue))
    # Others that were at work, or would have been next, may have been set aside with it.
    assert sorted((number, abs(int(values[0]))) for number, values in found) == [
        (0, 1), (1, 3), (2, 5),
    ]  # fmt: skip
    assert dict(found)[1] == -3


@pytest.mark.slow
def test_an_event_that_is_never_done_does_not_hold_up_the_others(
    faulty: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(faulty, DaskPool)
    monkeypatch.setattr("sfxreduce.pipeline.stages.score.EVENTS_PER_BATCH", 2)
    monkeypatch.setattr(Flow, "most_seconds", 2.0)
    run = planted_run(n_events=6)
    impatient = DaskPool(faulty._client, patience_seconds=10)
    rows = collect_scores(run, Hanging(), pool=impatient)
    expected = collect_scores(run, BrightestPixel(), pool=SerialPool())
    lost = np.flatnonzero(rows["reason"])
    assert lost.tolist() == [POISON]
    assert rows["reason"][POISON] == Reason.WORKER_LOST
    assert np.isnan(rows["score"][POISON])
    others = np.delete(np.arange(6), POISON)
    # By their bytes: what nobody measured of an event is no number, and equals nothing.
    assert rows[others].tobytes() == expected[others].tobytes()


def slow(item: int) -> int:
    time.sleep(0.2)
    return item


def test_tasks_of_a_worker_that_stopped_are_done_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sfx_scheduler(), "worker_ttl", "5 s")
    lines: list[str] = []
    with open_pool(n_workers=2, patience_seconds=PATIENCE, tell=lines.append) as pool:
        assert isinstance(pool, DaskPool)
        results = pool.map("slow", slow, range(30))
        found = [next(results)]
        chosen = pool.facts["cluster"]["workers"][0]
        stopped = psutil.Process(chosen["pid"])
        stopped.send_signal(signal.SIGSTOP)
        found += results
        assert sorted(found) == [(n, n) for n in range(30)]
        with suppress(psutil.Error):
            assert stopped.status() != psutil.STATUS_STOPPED
        # Told in one line, with its cause.
        [told] = [r for r in pool.facts["restarts"] if r["address"] == chosen["address"]]
        assert told["cause"] == "no sign of life for 5 seconds"
        assert [line for line in lines if chosen["address"] in line and told["cause"] in line]


def hold_the_interpreter(seconds: int) -> None:
    """Keep every thread of this process from running, as a library that never lets go."""
    ctypes.PyDLL(None).sleep(seconds)


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("15 s", 8), pytest.param(None, 100, marks=pytest.mark.slow)]
)
def test_a_worker_that_is_silent_for_a_while_is_not_restarted(
    ttl: str | None, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ttl is not None:
        monkeypatch.setitem(sfx_scheduler(), "worker_ttl", ttl)
    with open_pool(n_workers=2, patience_seconds=PATIENCE + seconds) as pool:
        assert isinstance(pool, DaskPool)
        assert list(pool.map("hold", hold_the_interpreter, [seconds])) == [(0, None)]
        assert pool.facts["restarts"] == []


@pytest.mark.slow
def test_a_worker_that_is_stopped_for_two_hundred_seconds_is_restarted_and_told() -> None:
    with open_pool(n_workers=2) as pool:
        assert isinstance(pool, DaskPool)
        results = pool.map("slow", slow, range(1200))
        found = [next(results)]
        chosen = pool.facts["cluster"]["workers"][0]
        psutil.Process(chosen["pid"]).send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        found += results
        while time.monotonic() < begun + 250 and not pool.facts["restarts"]:
            time.sleep(1)
        assert sorted(found) == [(n, n) for n in range(1200)]
        assert [r["cause"] for r in pool.facts["restarts"]] == ["no sign of life for 120 seconds"]


def killed(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_cannot_be_done_and_not_be_done_without_is_one_line(faulty: Pool) -> None:
    with pytest.raises(ClusterError, match=r"task 0 of 'fatal' .* SIGKILL") as told:
        list(faulty.map("fatal", killed, [1]))
    assert "\n" not in str(told.value)


def hoard(_: object) -> int:
    kept = np.ones(400_000_000, np.uint8)
    time.sleep(60)
    return int(kept[0])


def overdrawn(_: object) -> None:
    raise MemoryError


def unread(_: object) -> None:
    print("this is no answer")
    raise SourceError("it cannot be read")


def leave(_: object) -> None:
    os._exit(0)


def wait(_: object) -> None:
    time.sleep(600)


def test_a_call_in_a_process_of_its_own_tells_how_it_ended() -> None:
    with ThreadPoolExecutor(3) as threads:

        def begin(function: Callable[[object], object], seconds: float = 60) -> Future[object]:
            call = pickle.dumps((function, 7))
            return threads.submit(call_in_process, call, seconds=seconds, memory_bytes=500e6)

        calls = {
            "was ended by SIGKILL": begin(killed),
            r"took more than 0\.5 GB of memory": begin(hoard),
            "ran out of memory": begin(overdrawn),
            "ended with status 0": begin(leave),
            r"did not end within 0\.5 seconds": begin(wait, 0.5),
        }
        done, raised = begin(slow), begin(unread)  # type: ignore[arg-type]
        for why, call in calls.items():
            with pytest.raises(ProcessFailed, match=f"^{why}$"):
                call.result()
        assert done.result() == 7
        with pytest.raises(SourceError, match="it cannot be read"):
            raised.result()


def test_a_call_that_does_not_even_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotStarted, match=r"ended with status 1 \(.*UnpicklingError: .*\)"):
        call_in_process(b"no call")
    monkeypatch.setattr(own_process, "START_SECONDS", 0)
    with pytest.raises(NotStarted, match="was not ready within 0 seconds"):
        call_in_process(pickle.dumps((wait, 7)))


def test_what_a_process_left_behind_is_not_waited_for_and_ends_with_it() -> None:
    """A shell ended, but its child held its outputs open and was waited for."""
    shell = start_process(["sh", "-c", "sleep 60 & echo $!"], stderr=subprocess.PIPE)
    statuses = set()

    def check(stdout: bytearray) -> None:
        if stdout.endswith(b"\n"):
            statuses.add(psutil.Process(int(stdout)).status())

    stdout, _ = read_outputs(shell, check)
    assert shell.returncode == 0
    assert statuses
    assert psutil.STATUS_ZOMBIE not in statuses
    deadline = time.monotonic() + 30
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(int(stdout)).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_process_of_its_own_ends_with_the_one_that_waits_for_it() -> None:
    code = (
        "import pickle; from sfxreduce.io.process import call_in_process; from time import sleep;"
        "call_in_process(pickle.dumps((sleep, 600)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    waiting = psutil.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 60
    while not (children := waiting.children()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children
    time.sleep(0.5)  # in which it asks to be ended; before that, it looks for its parent itself
    waiting.kill()
    waiting.wait()
    assert psutil.wait_procs(children, timeout=30)[1] == []


def without_processes(calls: list[int], poison: set[int]) -> Callable[..., Iterator[object]]:
    """Stands for a pool that makes calls in processes of their own, some of which die."""

    def each(function: Callable[..., object], items: Sequence[object]) -> Iterator[object]:
        for place, item in enumerate(items):
            calls.append(1)
            dies = isinstance(item, range) and poison.intersection(item)
            yield place, Failed(why="was ended by SIGKILL") if dies else (function(item),)

    return each


@pytest.mark.parametrize("poison", [{3}, {0, 63}, {31, 32, 33}, set(), set(range(64))])
def test_exactly_the_poison_is_found_in_few_calls(poison: set[int]) -> None:
    rescue: Rescue[range, list[int]] = Rescue(
        attempt=list,
        halves=halves_of,
        lost=lambda events: [-event for event in events],
        joined=lambda _, parts: [event for part in parts for event in part],
    )
    calls: list[int] = []
    each = without_processes(calls, poison)
    suspects = [Suspect(number=5, item=range(64), why="")]
    found = dict(results_of(suspects, list, each, name="test", rescue=rescue))  # type: ignore[arg-type]
    assert found == {5: [-e if e in poison else e for e in range(64)]}
    # Each poison event is looked for on its own way down at most.
    assert len(calls) <= 2 + 2 * 6 * len(poison)


def test_a_scheduler_that_dies_is_one_line_that_says_how_to_go_on(tmp_path: Path) -> None:
    with scheduler_elsewhere(tmp_path) as (process, address):
        with (
            pytest.raises(ClusterError, match="the same command continues") as told,
            open_pool(scheduler=address) as pool,
        ):
            results = pool.map("slow", slow, range(1000))
            next(results)
            process.kill()
            list(results)
    assert "\n" not in str(told.value)
