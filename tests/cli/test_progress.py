"""What is said while events are scored: how many, how many hits, how fast, and how long still."""

from __future__ import annotations

import io
import math
import re
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run as command
from planted import BrightestPixel, planted_run
from rich.console import Console

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import UsageError
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.review import _user
from sfxreduce_cli import options, progress
from sfxreduce_cli.config import _of_user
from sfxreduce_cli.filter import _linger
from sfxreduce_cli.progress import BINS, ProgressDisplay, Tally


def scored(n_events: int, batch: int, *, every: int = 5) -> Iterator[tuple[int, Any]]:
    """Blocks of scores, each with its first event: each so-manyth event is a hit."""
    rows = np.zeros(n_events, [("score", np.float32)])
    rows["score"][::every] = 1
    for start in range(0, n_events, batch):
        yield start, rows[start : start + batch]


def expecting(n_events: int) -> ProgressDisplay:
    """A display that counts the hits of a run of so many events."""
    display = ProgressDisplay()
    run = planted_run(n_events=n_events)
    display.expect(run, BrightestPixel(), hit_from=0.5, out=Path("hits.zarr"))
    return display


@pytest.mark.parametrize(("n_events", "batch"), [(1000, 64), (7, 3), (1, 1), (200, 8192)])
def test_every_event_is_counted_once_in_its_part_of_the_run(n_events: int, batch: int) -> None:
    tally = Tally(0.5, n_events)
    for first, rows in scored(n_events, batch):
        tally.add(first, rows["score"])
    assert sum(tally.events) == n_events
    assert sum(tally.hits) == len(range(0, n_events, 5))
    if n_events >= BINS:
        assert max(tally.events) - min(tally.events) <= 1


def test_a_pipe_is_given_a_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(np.arange(0.0, 1000.0, 1.0))
    with expecting(1000) as display:
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        display("score", 0, 10)
        for done, (first, rows) in enumerate(scored(1000, 100), start=1):
            display.scored(first, rows)
            display("score", done, 10)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line.strip() for line in printed.err.splitlines()] == [
        "score 500/1,000 events · 100 hits (20.0 %) · 100 events/s · 00:05 left",
        "score 1,000/1,000 events · 200 hits (20.0 %) · 100 events/s",
    ]


def test_a_terminal_has_a_bar_and_the_hit_rate_along_the_run() -> None:
    display = expecting(1000)
    for first, rows in scored(1000, 100):
        display.scored(first, rows)
    screen = Console(file=io.StringIO(), width=100)
    for part in display._bars.get_renderables():
        screen.print(part)
    assert re.search(r"hit rate \S{24} up to 2[0-9] %", screen.file.getvalue())  # type: ignore[attr-defined]
    assert progress.sparkline([None, 0.0]) == "· "


def test_the_first_line_says_what_starts_and_nothing_is_on_stdout_but_json(tmp_path: Path) -> None:
    ingest_run(planted_run(n_events=12), out=tmp_path / "run.zarr", pool=SerialPool())
    done = command(
        "filter", "--in", tmp_path / "run.zarr", "--out", tmp_path / "h.zarr", "--scorer", "peaks",
        "--workers", "1", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("{")
    assert done.stderr.splitlines()[0] == "starting 1 worker"
    assert re.search(r"score 12/12 events · 0 hits \(0\.0 %\) · \S+ events/s", done.stderr)


def test_a_remote_node_is_given_the_tunnel_to_its_dashboard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SSH_CONNECTION", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    address = "http://127.0.0.1:4321/status"
    assert options.tunnel(address) == ""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert options.tunnel(address).startswith("ssh -N -L 4321:127.0.0.1:4321 ")
    assert options.tunnel("http://10.0.0.1:4321/status") == ""


@pytest.mark.parametrize("seconds", [1e12, math.inf])
def test_pages_that_stay_for_ever_go_with_an_interrupt(seconds: float) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        _linger(seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("opens_first", [True, False])
def test_the_page_is_there_whenever_the_pool_opens(
    opens_first: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def elsewhere(**_: object) -> AbstractContextManager[SerialPool]:
        return nullcontext(SerialPool())

    monkeypatch.setattr("sfxreduce.open_pool", elsewhere)
    run = planted_run(n_events=4)
    where = options.PoolOptions(scheduler="tcp://127.0.0.1:1")
    with where.opened() as work:
        if opens_first:
            assert not work["pool"].has_gpu
        work["progress"].expect(run, BrightestPixel(), hit_from=0.5, out=Path("hits.zarr"))
        assert not work["pool"].has_gpu
    assert capsys.readouterr().err.count("this run: http://127.0.0.1:") == 1


def test_a_user_without_name_and_home_is_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert " USER@" in options.tunnel("http://127.0.0.1:4321/status")
    assert not list(_of_user())
    with pytest.raises(UsageError, match="pass --by NAME"):
        _user()
