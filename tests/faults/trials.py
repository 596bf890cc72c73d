"""One trial: begin a filter run, disturb it, look at what is there, and let it go on.

Each run is a process of its own that was forked from this one, with everything imported and
compiled: what is killed is a program that does nothing but filter.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import xxhash
from planted import BrightestPixel, planted_run

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import SfxReduceError
from sfxreduce.io.chunks import layout
from sfxreduce.io.files.durable import hidden_folders
from sfxreduce.io.files.journal import Journal, read_journal
from sfxreduce.io.open import open_run
from sfxreduce.io.writers import publish
from sfxreduce.io.writers import resume as unfinished_module
from sfxreduce.io.writers.resume import unfinished_folder
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.pipeline.verify.output import verify_run

CALLS = {
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.truncate",
    "test.fsync",
    "test.rename_flagged",
}
FAILED, CRASHED = 3, 4
EVENTS_PER_SHARD = 16


class Counting(SerialPool):
    """Counts the tasks of each name."""

    def __init__(self) -> None:
        self.tasks: dict[str, int] = {}

    def blocks(self, array: Any, **options: Any) -> Iterator[Any]:
        for block in super().blocks(array, **options):
            self._count("score")
            yield block

    def map(
        self,
        name: str,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        **options: Any,
    ) -> Iterator[Any]:
        for done in super().map(name, function, items, **options):
            self._count(name)
            yield done

    def _count(self, name: str) -> None:
        self.tasks[name] = self.tasks.get(name, 0) + 1


@dataclass(kw_only=True)
class Bench:
    """A run, and the output that an undisturbed filter makes of it."""

    run: Path
    reference: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0
    calls: int = 0
    shards: int = 0
    blocks: int = 0

    @classmethod
    def make(cls, folder: Path, *, n_events: int = 400) -> Bench:
        """Store a run of small frames and filter it once in peace."""
        run = folder / "run.zarr"
        planted = planted_run(n_events=n_events)
        frame_bytes = planted.source.n_bytes // n_events
        small = partial(layout.choose_layout, target_shard_bytes=EVENTS_PER_SHARD * frame_bytes)
        with mock.patch("sfxreduce.pipeline.ingest.choose_layout", small):
            ingest_run(planted, out=run, pool=SerialPool())
        bench = cls(run=run)
        for name in ("warm", "peace"):
            started, pool = time.monotonic(), Counting()
            bench.filter(folder / f"{name}.zarr", pool)
            bench.seconds = time.monotonic() - started
        bench.reference = tree(folder / "peace.zarr")
        bench.shards, bench.blocks = pool.tasks["reduce"], pool.tasks["score"]
        child = Child(
            lambda: bench.filter(folder / "counted.zarr", Counting()), at_call=sys.maxsize
        )
        child.wait()
        bench.calls = child.calls
        return bench

    def begin(self, out: Path, *, at_call: int = 0, fails: int = 0) -> Child:
        """Filter the run in a process of its own: see `Child`."""
        return Child(lambda: self.filter(out, Counting()), at_call=at_call, fails=fails)

    def filter(self, out: Path, pool: SerialPool) -> None:
        """Filter the run; hits, and a sample of the rejects, some shards of each."""
        filter_run(
            open_run(self.run),
            settings=FilterSettings(scorer=BrightestPixel(), audit_share=0.3),
            outputs=Outputs(store=out, report=out.with_suffix(".html")),
            pool=pool,
        )


def tree(path: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


class Child:
    """A process that does one thing; it tells of every line that its journal acknowledged.

    Parameters
    ----------
    work : callable
    at_call : int
        Number of the call to the system, of those that change files, at which it is disturbed.
    fails : int
        Error number with which that call fails; 0 to be killed there.
    """

    def __init__(self, work: Callable[[], None], *, at_call: int = 0, fails: int = 0) -> None:
        self._read, write = os.pipe()
        self.lines = 0
        self.calls = 0
        self.pid = os.fork()
        if not self.pid:
            os.close(self._read)
            os._exit(_perform(work, write, at_call=at_call, fails=fails))
        os.close(write)

    def kill(self) -> None:
        """End it at once, as a power cut or an impatient batch system would."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Return its exit status; negative for a signal."""
        with os.fdopen(self._read, "rb") as told:
            for line in told:
                kind, value = line.split()
                if kind == b"line":
                    self.lines = int(value)
                else:
                    self.calls = int(value)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _perform(work: Callable[[], None], told: int, *, at_call: int, fails: int) -> int:
    """Do the work in the child."""
    calls = _Calls(at_call, fails)
    _tell_lines(told)
    # Every part is acknowledged at once, so that there is something to lose.
    unfinished_module.NOTE_SECONDS = 0.0
    if at_call:
        calls.watch()
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    try:
        work()
    except SfxReduceError:
        return FAILED
    except BaseException:  # noqa: BLE001 - whatever it is, the parent counts it
        return CRASHED
    finally:
        with suppress(OSError):
            os.write(told, f"calls {calls.seen}\n".encode())
    return 0


def _tell_lines(told: int) -> None:
    """Tell of every line that a journal acknowledges, as soon as it does."""
    append = Journal.append

    def telling(journal: Journal, body: Any) -> Any:
        entry = append(journal, body)
        os.write(told, f"line {entry.number + 1}\n".encode())
        return entry

    Journal.append = telling  # type: ignore[method-assign]


class _Calls:
    """Counts the calls to the system that change files, and disturbs one of them."""

    def __init__(self, at_call: int, fails: int) -> None:
        self.seen = 0
        self._at_call, self._fails = at_call, fails

    def watch(self) -> None:
        """Watch from now on, for as long as the process lives."""
        fsync = os.fsync

        def audited(descriptor: int) -> None:
            sys.audit("test.fsync", descriptor)
            fsync(descriptor)

        os.fsync = audited
        rename = publish.rename_flagged

        def audited_rename(one: Path, other: Path, flags: int) -> bool:
            sys.audit("test.rename_flagged", one, other)
            return rename(one, other, flags)

        publish.rename_flagged = audited_rename
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes and event not in CALLS:
            return
        self.seen += 1
        if self.seen == self._at_call and self._fails:
            raise OSError(self._fails, os.strerror(self._fails))
        if self.seen == self._at_call:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(kw_only=True)
class Outcome:
    """What was wrong in some trials, in words."""

    name: str
    trials: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def upper95(self) -> float:
        """Upper 95 % bound of the share of trials that go wrong."""
        from scipy.stats import binomtest

        found = binomtest(len(self.violations), max(self.trials, 1), alternative="less")
        return float(found.proportion_ci(0.95, method="exact").high)

    def expect(self, holds: bool, what: str) -> None:
        """Take down what does not hold."""
        if not holds:
            self.violations.append(f"trial {self.trials}: {what}")

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return {
            "fault": self.name,
            "trials": self.trials,
            "violations": len(self.violations),
            "upper95": self.upper95,
            "first": self.violations[:3],
        }


def look(bench: Bench, out: Path, child: Child, outcome: Outcome) -> int:
    """Check what a disturbed run left behind; return the number of acknowledged shards."""
    if out.exists():
        found = verify_run(out, against=open_run(bench.run), pool=SerialPool())
        outcome.expect(found.ok, f"{out.name} is visible and wrong: {found.problems}")
        outcome.expect(tree(out) == bench.reference, "what is visible differs")
        return bench.shards
    folder = unfinished_folder(out)
    if folder is None:
        # A run that fails before anything is done takes its folder with it.
        outcome.expect(child.lines <= 1, f"{child.lines} lines acknowledged, no journal is there")
        return 0
    entries = read_journal(folder / unfinished_module.JOURNAL)
    outcome.expect(
        len(entries) >= child.lines, f"{child.lines} lines acknowledged, {len(entries)} are there"
    )
    shards = [
        done["shard"] for entry in entries for done in entry.body.get("done", ()) if "shard" in done
    ]
    for shard in shards:
        places = (folder / "shards" / shard["written"], folder / "output" / shard["path"])
        digests = [xxhash.xxh3_128(p.read_bytes()).hexdigest() for p in places if p.exists()]
        outcome.expect(
            digests == [shard["digest"]], f"acknowledged shard {shard['path']} is lost: {digests}"
        )
    return len(shards)


def go_on(bench: Bench, out: Path, acknowledged: int, outcome: Outcome) -> None:
    """Give the same command again, and check that it completes without doing anything twice."""
    was_there, left = out.exists(), hidden_folders(out)
    if was_there and not left:
        return
    # One that had no more to do than remove a folder without a journal is told that its output is
    # there.
    finished = was_there and unfinished_folder(out) is None
    told = out.with_name("tasks")

    def again() -> None:
        pool = Counting()
        bench.filter(out, pool)
        told.write_text(str(pool.tasks.get("reduce", 0)))

    status = Child(again).wait()
    outcome.expect(status == (FAILED if finished else 0), f"going on ended with {status}")
    outcome.expect(out.exists() and tree(out) == bench.reference, "the result differs")
    left = sorted(p.name for p in out.parent.iterdir() if p.name.startswith("."))
    outcome.expect(not left, f"left behind: {left}")
    written = int(told.read_text()) if told.exists() else 0 if finished else -1
    outcome.expect(
        written == (0 if was_there else bench.shards - acknowledged),
        f"{written} shards were written again, {acknowledged} of {bench.shards} were there",
    )


def fresh(folder: Path) -> Path:
    """An empty folder, and the name of an output in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder / "hits.zarr"


def kills_at_random(bench: Bench, folder: Path, n_trials: int, rng: random.Random) -> Outcome:
    """``kill -9`` at random times; a third of the runs is killed twice."""
    outcome = Outcome(name="kill -9 at a random time")
    for _ in range(n_trials):
        outcome.trials += 1
        out = fresh(folder / "trial")
        for _ in range(rng.choice((1, 1, 2))):
            child = bench.begin(out)
            time.sleep(rng.uniform(0, bench.seconds * 1.1))
            child.kill()
            child.wait()
            acknowledged = look(bench, out, child, outcome)
            if out.exists():
                break
        go_on(bench, out, acknowledged, outcome)
    return outcome


def kills_at_calls(bench: Bench, folder: Path, calls: Iterable[int]) -> Outcome:
    """``kill -9`` right before the n-th call that changes a file."""
    outcome = Outcome(name="kill -9 before the n-th call that changes a file")
    for call in calls:
        outcome.trials += 1
        out = fresh(folder / "trial")
        child = bench.begin(out, at_call=call)
        outcome.expect(child.wait() == -signal.SIGKILL, f"call {call}: not killed")
        go_on(bench, out, look(bench, out, child, outcome), outcome)
    return outcome


def errors_at_calls(bench: Bench, folder: Path, calls: Iterable[int], number: int) -> Outcome:
    """The n-th call that changes a file fails with an error of the system."""
    outcome = Outcome(name=f"{errno.errorcode[number]} in the n-th call that changes a file")
    for call in calls:
        outcome.trials += 1
        out = fresh(folder / "trial")
        child = bench.begin(out, at_call=call, fails=number)
        status = child.wait()
        outcome.expect(status in (0, FAILED), f"call {call}: ended with {status}")
        outcome.expect(status == 0 or not out.exists(), f"call {call}: failed, yet published")
        go_on(bench, out, look(bench, out, child, outcome), outcome)
    return outcome
