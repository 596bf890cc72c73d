"""What is said while events are scored: how many, how many hits, how fast, and how long still."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from commands import run as command
from planted import planted_run
from rich.console import Console

from sfxreduce.cluster import SerialPool
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce_cli import options, progress
from sfxreduce_cli.progress import BINS, ProgressDisplay, Tally


def scored(n_events: int, batch: int, *, every: int = 5) -> tuple[da.Array, Iterator[Any]]:
    """An array of scores, and its blocks: each so-manyth event is a hit."""
    rows = np.zeros(n_events, [("score", np.float32)])
    rows["score"][::every] = 1
    blocks = [(k, rows[k * batch : (k + 1) * batch]) for k in range(-(-n_events // batch))]
    return da.from_array(rows, chunks=batch), iter(blocks)


@pytest.mark.parametrize(("n_events", "batch"), [(1000, 64), (7, 3), (1, 1), (200, 8192)])
def test_every_event_is_counted_once_in_its_part_of_the_run(n_events: int, batch: int) -> None:
    tally = Tally(0.5, n_events)
    _, blocks = scored(n_events, batch)
    for number, rows in blocks:
        tally.add(number * batch, rows["score"])
    assert sum(tally.events) == n_events
    assert sum(tally.hits) == len(range(0, n_events, 5))
    if n_events >= BINS:
        assert max(tally.events) - min(tally.events) <= 1


def test_a_pipe_is_given_a_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(np.arange(0.0, 1000.0, 1.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    array, blocks = scored(1000, 100)
    with ProgressDisplay() as display:
        display.hit_from = 0.5
        display("score", 0, 10)
        for done, _ in enumerate(display.watched(array, blocks), start=1):
            display("score", done, 10)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line.strip() for line in printed.err.splitlines()] == [
        "score 500/1,000 events · 100 hits (20.0 %) · 100 events/s · 00:05 left",
        "score 1,000/1,000 events · 200 hits (20.0 %) · 100 events/s",
    ]


def test_a_terminal_has_a_bar_and_the_hit_rate_along_the_run() -> None:
    display = ProgressDisplay()
    array, blocks = scored(1000, 100)
    display.hit_from = 0.5
    for _ in display.watched(array, blocks):
        pass
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
    assert options._tunnel(address) == ""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert options._tunnel(address).startswith("ssh -N -L 4321:127.0.0.1:4321 ")
    assert options._tunnel("http://10.0.0.1:4321/status") == ""
