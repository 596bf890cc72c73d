"""Jobs of a real SLURM do the work of one process, whatever becomes of them, and none is left."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from batch_system import BatchSystem, batch_system, why_not
from commands import HEARS_HANGUPS
from cryptography import x509
from planted import planted_run

from sfxreduce.cluster import SerialPool
from sfxreduce.io.chunks.layout import choose_layout
from sfxreduce.pipeline.ingest import ingest_run

N_EVENTS = 384

SLOW = """
import time
from distributed import get_worker
from sfxreduce.scorers.peaks.finder import PeakScorer

# Dask may load this twice.
PeakScorer.quickly = getattr(PeakScorer, "quickly", PeakScorer.__call__)
PeakScorer.batches = 0

def slowly(self, pixels, detector):
    time.sleep({seconds} * len(pixels))
    scores = self.quickly(pixels, detector)
    PeakScorer.batches += 1
    if PeakScorer.batches == {batches}:
        worker = get_worker()
        worker.loop.add_callback(worker.close_gracefully)
    return scores

PeakScorer.__call__ = slowly
"""
"""Loaded by workers of tests that have to meet a run before it is over. After so many batches a
worker leaves as it does when its lifetime is over."""


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@dataclass(frozen=True)
class Site:
    """A SLURM, a run, and what one process makes of it."""

    slurm: BatchSystem
    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run.zarr"

    def words(self, out: Path, *more: object) -> list[str]:
        words = ["filter", "--in", self.run, "--out", out, "--scorer", "peaks", *more]
        return [str(word) for word in words]

    def profile(
        self, folder: Path, *, seconds: float = 0.0, batches: int = 0, **keys: object
    ) -> Path:
        """Profile of jobs on this machine, whose workers take so long for an event."""
        given: dict[str, object] = {
            "interface": "lo",
            "memory": "2 GB",
            "walltime": "00:10:00",
            "log_directory": str(folder / "jobs"),
        }
        if seconds:
            slow = folder / "slow.py"
            slow.write_text(SLOW.format(seconds=seconds, batches=batches))
            given["prologue"] = [f"export DASK_DISTRIBUTED__WORKER__PRELOAD={slow}"]
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in (given | keys).items()]
        (folder / "site.toml").write_text("".join(lines))
        return folder / "site.toml"

    @contextmanager
    def filtering(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A command under way, for which nobody waits if the test fails."""
        with subprocess.Popen(
            [*HEARS_HANGUPS, sys.executable, "-m", "sfxreduce_cli", *words],
            env=self.slurm.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as command:
            try:
                yield command
            finally:
                command.kill()

    def filtered(self, *words: str) -> str:
        """What a command says that has to succeed."""
        with self.filtering(*words) as command:
            out, err = command.communicate(timeout=400)
        assert command.returncode == 0, err
        return out

    def wait_until_at_work(self, out: Path) -> str:
        """Wait until something was noted of an output since jobs run; the first of these."""
        jobs = eventually(60, self.slurm.running)
        noted = scored(out)
        eventually(90, lambda: scored(out) > noted)
        return jobs[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if why := why_not():
        pytest.skip(why)
    root = tmp_path_factory.mktemp("site")
    planted = planted_run(n_events=N_EVENTS)
    with pytest.MonkeyPatch.context() as patched:
        small = partial(choose_layout, target_shard_bytes=planted.source.n_bytes // 8)
        patched.setattr("sfxreduce.pipeline.ingest.choose_layout", small)
        ingest_run(planted, out=root / "run.zarr", pool=SerialPool())
    with batch_system() as slurm:
        yield Site(slurm, root)


@pytest.fixture(scope="module")
def expected(site: Site) -> dict[str, bytes]:
    """What one process writes."""
    site.filtered(*site.words(site.root / "serial.zarr", "--serial"))
    return tree(site.root / "serial.zarr")


Seen = TypeVar("Seen")


def eventually(seconds: float, happened: Callable[[], Seen]) -> Seen:
    deadline = time.monotonic() + seconds
    while not (seen := happened()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)
    return seen


def scored(out: Path) -> int:
    """Bytes in the journal of an output that is being made."""
    journals = out.parent.glob(f".{out.name}*/**/journal*")
    return sum(journal.stat().st_size for journal in journals)


def test_jobs_give_the_bytes_of_one_process_and_talk_tls_only(
    site: Site, expected: dict[str, bytes], tmp_path: Path
) -> None:
    profile, out = site.profile(tmp_path, seconds=0.02), tmp_path / "hits.zarr"
    with site.filtering(*site.words(out, "--cluster", profile, "--json")) as command:
        jobs = tmp_path / "jobs"
        folder = eventually(60, lambda: list(jobs.glob("sfxreduce-*/tls-cert.pem")))[0].parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.glob("*.pem")} == {0o600}
        certificate = x509.load_pem_x509_certificate((folder / "tls-cert.pem").read_bytes())
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        # Ten minutes, of which two are in hand and one is the stagger, and an hour.
        assert timedelta(minutes=66) < left <= timedelta(minutes=67)
        eventually(60, site.slurm.running)
        said, err = command.communicate(timeout=200)
        assert command.returncode == 0, err
    told = json.loads(said)["cluster"]
    assert told["scheduler"].startswith("tls://127.0.0.1:")
    assert {worker["address"][:6] for worker in told["workers"]} == {"tls://"}
    assert len(told["jobs"]) >= 2
    assert tree(out) == expected
    assert not site.slurm.jobs()
    assert not list(jobs.iterdir())


def test_a_job_that_is_cancelled_is_replaced_and_changes_nothing(
    site: Site, expected: dict[str, bytes], tmp_path: Path
) -> None:
    profile, out = site.profile(tmp_path, seconds=0.1), tmp_path / "hits.zarr"
    with site.filtering(*site.words(out, "--cluster", profile, "--json")) as command:
        victim = site.wait_until_at_work(out)
        site.slurm.told("scancel", victim)
        said, err = command.communicate(timeout=300)
    assert command.returncode == 0, err
    jobs = json.loads(said)["cluster"]["jobs"]
    assert victim in jobs
    assert len(jobs) >= 3
    assert tree(out) == expected
    assert not site.slurm.jobs()


def test_workers_that_leave_are_replaced_and_nothing_is_lost(
    site: Site, expected: dict[str, bytes], tmp_path: Path
) -> None:
    profile, out = site.profile(tmp_path, seconds=0.01, batches=2), tmp_path / "hits.zarr"
    told = json.loads(site.filtered(*site.words(out, "--cluster", profile, "--json")))
    assert len(told["cluster"]["jobs"]) >= 3
    # They were asked to leave: none of them was lost.
    assert told["restarts"] == []
    assert tree(out) == expected
    assert not site.slurm.jobs()
    states = [line.partition("JobState=")[2].split()[0] for line in site.slurm.history()]
    assert "COMPLETED" in states


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_whoever_interrupts_a_command_leaves_no_job(
    number: int, site: Site, expected: dict[str, bytes], tmp_path: Path
) -> None:
    profile, out = site.profile(tmp_path, seconds=0.2), tmp_path / "hits.zarr"
    with site.filtering(*site.words(out, "--cluster", profile)) as command:
        site.wait_until_at_work(out)
        command.send_signal(number)
        _, err = command.communicate(timeout=60)
    assert command.returncode == 130, err
    eventually(60, lambda: not site.slurm.jobs())
    assert not list((tmp_path / "jobs").rglob("*.pem"))
    assert not out.exists()
    site.filtered(*site.words(out, "--serial"))
    assert tree(out) == expected


def test_jobs_of_a_command_that_was_killed_end_by_themselves(site: Site, tmp_path: Path) -> None:
    profile, out = site.profile(tmp_path, seconds=0.2), tmp_path / "hits.zarr"
    with site.filtering(*site.words(out, "--cluster", profile)) as command:
        site.wait_until_at_work(out)
        command.kill()
    eventually(60, lambda: not site.slurm.jobs())


def test_jobs_that_end_before_their_workers_come_end_the_command(
    site: Site, tmp_path: Path
) -> None:
    profile = site.profile(tmp_path, prologue=["echo no such module >&2", "exit 7"], jobs=1)
    out = tmp_path / "hits.zarr"
    with site.filtering(*site.words(out, "--cluster", profile)) as command:
        _, err = command.communicate(timeout=120)
    assert command.returncode == 1
    assert "3 jobs of SLURM in a row ended before a worker had come" in err.splitlines()[-1]
    assert "no such module" in err.splitlines()[-1]
    assert not site.slurm.jobs()


def test_a_partition_that_is_none_is_one_line(site: Site, tmp_path: Path) -> None:
    profile = site.profile(tmp_path, partition="nowhere")
    with site.filtering(*site.words(tmp_path / "hits.zarr", "--cluster", profile)) as command:
        _, err = command.communicate(timeout=60)
    assert command.returncode == 1
    assert "Invalid partition" in err.splitlines()[-1]
    assert not site.slurm.jobs()
    assert not list((tmp_path / "jobs").rglob("*.pem"))


def test_a_check_tells_each_worker_and_leaves_no_job(site: Site, tmp_path: Path) -> None:
    profile = site.profile(tmp_path)
    words = ["cluster", "check", "--cluster", str(profile), "--in", str(site.run), "--json"]
    told = json.loads(site.filtered(*words, "--out-dir", str(tmp_path)))
    assert told["ok"]
    assert [worker["state"] for worker in told["workers"]] == ["admitted", "admitted"]
    assert {worker["host"] for worker in told["workers"]}
    assert len(told["jobs"]) == told["expected"] == 2
    assert not site.slurm.jobs()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs", "site.toml"]


@pytest.mark.slow
def test_a_check_names_workers_that_would_be_refused(site: Site, tmp_path: Path) -> None:
    profile = site.profile(tmp_path, memory="300 MB", jobs=1)
    words = ["cluster", "check", "--cluster", str(profile), "--in", str(site.run)]
    with site.filtering(*words) as command:
        said, _ = command.communicate(timeout=100)
    assert command.returncode == 3
    assert "0 of 1 worker may have tasks" in said
    assert "REFUSED: expected a memory limit of at least" in said
    assert not site.slurm.jobs()


@pytest.mark.slow
def test_a_whole_run_outlives_its_walltime_and_a_cancelled_job(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run.zarr"
    ingest_run(planted_run(n_events=4096), out=run, pool=SerialPool())
    profile = site.profile(tmp_path, seconds=0.15, walltime="00:02:00", jobs=3)
    words = ["filter", "--in", str(run), "--scorer", "peaks", "--out"]
    site.filtered(*words, str(tmp_path / "serial.zarr"), "--serial")
    out = tmp_path / "hits.zarr"
    with site.filtering(*words, str(out), "--cluster", str(profile), "--json") as command:
        site.slurm.told("scancel", site.wait_until_at_work(out))
        said, err = command.communicate(timeout=900)
    assert command.returncode == 0, err
    assert len(json.loads(said)["cluster"]["jobs"]) > 4
    assert tree(out) == tree(tmp_path / "serial.zarr")
    assert not site.slurm.jobs()
    assert "JobState=TIMEOUT" not in "".join(site.slurm.history())


def test_processes_of_the_batch_system_end_with_it() -> None:
    if why := why_not():
        pytest.skip(why)
    with batch_system() as slurm:
        ports = slurm.folder
        assert slurm.told("sinfo", "--noheader", "--format=%T").strip() == "idle"
    assert not ports.exists()
    assert not os.environ.get("SLURM_CONF")
