"""``filter --out-dir``: many runs, one pool, one summary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from planted import planted_run

from sfxreduce.pipeline.ingest import ingest_run

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
