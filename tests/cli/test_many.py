"""``filter --out-dir``: many runs, one pool, one summary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from planted import planted_run

from sfxreduce.cluster import SerialPool
from sfxreduce.cluster.pool import Needs
from sfxreduce.errors import RefusedError, UsageError
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.many import Outcome, filter_runs, outputs_of_runs
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.report.report import Report
from sfxreduce.scorers.peaks.finder import PeakScorer
from sfxreduce_cli.pool_on_demand import PoolOnDemand

PEAKS = ["--scorer", "peaks", "--min-peaks", "3"]
N_RUNS, DAMAGED = 20, 7


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of twenty runs, one of which is damaged."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(N_RUNS):
        ingest_run(planted_run(n_events=30), out=folder / f"run{number}.zarr")
    (folder / f"run{DAMAGED}.zarr" / "frames" / "zarr.json").write_text("{")
    return folder


def called(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """What a command did, and CPU seconds it took with all of its processes."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "sfxreduce_cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    after = os.times()
    spent = after.children_user - before.children_user
    return done, spent + after.children_system - before.children_system


def test_twenty_runs_one_damaged(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "reduced"
    many = ["filter", "--in", str(runs / "*.zarr"), "--out-dir", str(out), *PEAKS]
    done, seconds = called(*many, "--workers", "1", "--json")
    assert done.returncode == 1
    assert done.stderr.count("starting 1 worker") == 1
    told = json.loads(done.stdout)
    assert (told["ok"], told["failed"], told["skipped"]) == (N_RUNS - 1, 1, 0)
    assert [Path(run["in"]).stem for run in told["runs"]] == [f"run{n}" for n in range(N_RUNS)]
    failed = told["runs"][DAMAGED]
    assert failed["exit_status"] == 1
    assert f"run{DAMAGED}.zarr" in failed["error"]
    assert "Traceback" not in done.stderr
    assert len(list(out.glob("*.zarr"))) == N_RUNS - 1

    # A shell that filters them one by one starts workers for each.
    alone, one = called(
        "filter", "--in", str(runs / "run0.zarr"), "--out", str(tmp_path / "one.zarr"), *PEAKS,
        "--workers", "1",
    )  # fmt: skip
    assert alone.returncode == 0
    assert seconds < 0.5 * N_RUNS * one

    again, _ = called(*many, "--serial", "--json")
    told = json.loads(again.stdout)
    assert (again.returncode, told["ok"], told["failed"], told["skipped"]) == (1, 0, 1, N_RUNS - 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "found neither"),
        (["--out", "a.zarr", "--out-dir", "b"], "found both"),
        (["--out-dir", "b", "--report", "r.html"], "--report"),
        (["--out-dir", "b", "--dry-run"], "--dry-run"),
    ],
)
def test_what_fits_one_run_is_refused_for_many(runs: Path, options: list[str], words: str) -> None:
    done, _ = called("filter", "--in", str(runs / "*.zarr"), *options, *PEAKS)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_fits_one_run_is_refused_from_a_file_too(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("filter.dry_run = true")
    out = tmp_path / "reduced"
    words = ["--out-dir", str(out), "--config", str(tmp_path / "site.toml"), *PEAKS, "--serial"]
    done, _ = called("filter", "--in", str(runs / "run1.zarr"), *words)
    assert done.returncode == 2
    assert "--dry-run (config) means nothing to --out-dir" in done.stderr
    assert not out.exists()


def test_no_folder_is_made_in_a_run(runs: Path) -> None:
    run = runs / "run1.zarr"
    before = sorted(run.rglob("*"))
    for folder in (run, run / "reduced", run / "frames" / ".." / "reduced"):
        with pytest.raises(UsageError, match="never written to"):
            outputs_of_runs(run, folder)
    assert sorted(run.rglob("*")) == before


def test_an_output_of_less_than_the_run_is_not_taken_for_its_output(tmp_path: Path) -> None:
    run, out_dir = tmp_path / "run.zarr", tmp_path / "reduced"
    ingest_run(planted_run(n_events=30), out=run)
    settings = FilterSettings(scorer=PeakScorer())

    def filter_one(path: Path, store: Path) -> Report:
        return filter_run(open_run(path), store, settings)

    def outcome() -> Outcome:
        return filter_runs(outputs_of_runs(run, out_dir), filter_one).runs[0]

    assert outcome().word == "ok"
    assert outcome().word == "skipped"
    made = (out_dir / "run.zarr" / "manifest" / "zarr.json").stat().st_mtime
    os.utime(run / "zarr.json", (made + 5, made + 5))
    found = outcome()
    assert (found.word, found.exit_status) == ("failed", 1)
    assert "before it was changed" in found.sentence


def test_workers_that_are_refused_are_started_once() -> None:
    class Refused(SerialPool):
        def needing(self, needs: Needs) -> AbstractContextManager[None]:
            raise RefusedError("no worker sees the run")

    pools: list[SerialPool] = []

    def start() -> SerialPool:
        pools.append(Refused())
        return pools[-1]

    pool = PoolOnDemand(start, has_gpu=False)
    for _ in range(3):
        with pytest.raises(RefusedError), pool.needing(Needs()):
            list(pool.map("square", abs, [1]))
    assert len(pools) == 1
