"""Fixtures shared by all tests: small runs with planted truth, pools, independent data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archived import Call
from beamtimes import DAY_NS, POOL, Beamtime, Clock
from hypothesis import settings
from planted import ArrayFrames, BrightestPixel, planted_run

from sfxreduce.cluster import Pool, SerialPool, open_pool
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.run.run import Run
from sfxreduce_cli.main import main

# How long an example takes says more about what else the machine does than about the code.
# Continuous integration tries the same examples every time; a developer's machine tries new ones.
settings.register_profile("shared machine", deadline=None)
settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "shared machine")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real and independently simulated frames, where this checkout has them."""
    if not SHARED.is_dir():
        pytest.skip("needs the independent data in ../shared/data, which is not here")
    return SHARED


HANDLERS = {
    number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
}


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Begin and end with the usual Ctrl-C: the command line ignores a second one for a while.

    Fixtures of a module run it before a test begins.
    """
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture
def serial() -> Pool:
    return SerialPool()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Pool]:
    """Two worker processes on 127.0.0.1, shared by all tests that need a cluster."""
    with open_pool(n_workers=2) as pool:
        yield pool


@pytest.fixture(params=["one panel", "panels"])
def run(request: pytest.FixtureRequest) -> Run:
    """A run of 70 small frames, a third of them with bright peaks; once with panels."""
    return planted_run(n_events=70, panels=0 if request.param == "one panel" else 3)


@pytest.fixture
def stored(run: Run, tmp_path: Path, serial: Pool) -> Path:
    """The same run as a run store."""
    path = tmp_path / "run.zarr"
    ingest_run(run, out=path, pool=serial)
    return path


@pytest.fixture
def frames(run: Run) -> np.ndarray:
    """All frames of the run in memory."""
    assert isinstance(run.source, ArrayFrames)
    return run.source.frames


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command as a user does: exit status, what it printed as JSON, and the rest."""

    def run(*args: object, json_too: bool = True) -> tuple[int, Any, str]:
        words = ["sfxreduce", *map(str, args), *(["--json"] if json_too else [])]
        monkeypatch.setattr(sys, "argv", words)
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        return status, json.loads(printed.out) if json_too else printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def filtered_beamtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five runs of 40 events and their reduced stores."""
    root = tmp_path_factory.mktemp("beamtime")
    for n in range(5):
        run = root / f"r{n:04}.zarr"
        ingest_run(planted_run(n_events=40, seed=n), out=run, pool=POOL)
        outputs = Outputs(store=root / f"r{n:04}_hits.zarr")
        filter_run(
            open_run(run),
            settings=FilterSettings(scorer=BrightestPixel()),
            outputs=outputs,
            pool=POOL,
        )
    return root


@pytest.fixture
def beamtime(filtered_beamtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beamtime:
    """The same runs, for one test to spoil."""
    # No test here cuts the power; what it needs to reach the disk in time is tested elsewhere.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    root = tmp_path / "beamtime"
    shutil.copytree(filtered_beamtime, root)
    # The ledger names the source by its path, and so do certificates.
    for pool in ("tape_a", "tape_b"):
        (root / pool).mkdir()
    newest = max(path.stat().st_mtime_ns for path in root.rglob("*"))
    return Beamtime(root, Clock(newest + DAY_NS))
