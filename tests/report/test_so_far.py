"""What a page tells of a run while it is filtered agrees with what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import Calibrated, crystals_run

from sfxreduce.cluster import SerialPool
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.report.live.so_far import RunSoFar, Snapshot
from sfxreduce.run.run import Run

SETTINGS = FilterSettings(scorer=Calibrated(), threshold=0.5)


def so_far_of(run: Run, folder: Path) -> RunSoFar:
    return RunSoFar(run, SETTINGS.scorer, hit_from=0.5, out=folder / "hits.zarr")


class Seen(RunSoFar):
    """Keeps a snapshot of every moment at which it is told something."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        super().__call__(stage, done, total)
        self.__dict__.setdefault("snapshots", []).append(self.snapshot())


def test_counts_grow_and_end_as_the_report_has_them(tmp_path: Path) -> None:
    run = crystals_run(hits=range(0, 150, 6), lost=(7, 50), n_events=150)
    so_far = Seen(run, SETTINGS.scorer, hit_from=0.5, out=tmp_path / "hits.zarr")
    report = filter_run(
        run, Outputs(store=tmp_path / "hits.zarr"), SETTINGS, pool=SerialPool(), progress=so_far
    )
    so_far.ended()
    seen: list[Snapshot] = so_far.__dict__["snapshots"]
    scored = [one.scored for one in seen]
    assert scored == sorted(scored)
    assert {64, 128, 150} <= set(scored)
    assert seen[0].provisional
    end = so_far.snapshot()
    assert not end.provisional
    assert end.stage == ""
    assert (end.scored, end.hits, end.undecided) == (150, report.hits, report.undecided)
    assert end.threshold == report.threshold
    assert end.bytes_written == report.bytes_out
    assert end.assurance is not None
    assert end.assurance.to_json() == report.assurance
    n_pixels = 20 * 20
    assert end.bytes_scored == 150 * n_pixels * run.source.dtype.itemsize
    assert sum(end.reasons.values()) >= end.undecided
    total = np.nansum(end.hit_rates * np.diff(np.linspace(0, 150, 61).astype(int)))
    assert total == pytest.approx(report.hits)
    shown = dict(end.latest)
    assert shown
    assert all(score >= 0.5 for score in shown.values())


def test_the_next_run_begins_with_nothing(tmp_path: Path) -> None:
    first, second = crystals_run(hits=(3,), n_events=70), crystals_run(hits=(5, 9), n_events=40)
    so_far = so_far_of(first, tmp_path)
    filter_run(
        first, Outputs(store=tmp_path / "hits.zarr"), SETTINGS, pool=SerialPool(), progress=so_far
    )
    assert so_far.snapshot().hits >= 1
    so_far.begin(second, SETTINGS.scorer, hit_from=0.5, out=tmp_path / "more.zarr")
    now = so_far.snapshot()
    assert (now.scored, now.hits, now.undecided, now.bytes_written) == (0, 0, 0, 0)
    assert (now.latest, now.nearest, now.assurance) == ((), (), None)
    filter_run(
        second, Outputs(store=tmp_path / "more.zarr"), SETTINGS, pool=SerialPool(), progress=so_far
    )
    assert so_far.snapshot().scored == 40
    assert {5, 9} <= {event for event, _ in so_far.snapshot().latest}


def test_events_of_a_run_that_was_cut_off_keep_their_places(tmp_path: Path) -> None:
    run = crystals_run(hits=(70, 71, 140), lost=(), n_events=150)

    class Cut(Exception):
        pass

    class Cutting(RunSoFar):
        def __call__(self, stage: str, done: int, total: int) -> None:
            if stage == "score" and done == 1:
                raise Cut

    outputs = Outputs(store=tmp_path / "hits.zarr")
    cut = Cutting(run, SETTINGS.scorer, hit_from=0.5, out=outputs.store)
    with pytest.raises(Cut):
        filter_run(run, outputs, SETTINGS, pool=SerialPool(), progress=cut)
    so_far = so_far_of(run, tmp_path)
    told: list[Any] = []
    before = so_far.scored
    so_far.scored = lambda first, rows: (told.append(first), before(first, rows))[1]  # type: ignore[method-assign]
    filter_run(run, outputs, SETTINGS, pool=SerialPool(), progress=so_far)
    assert sorted(told) == [0, 64, 128]
    assert so_far.snapshot().hits >= 3
    assert {70, 71, 140} <= {event for event, _ in so_far.snapshot().latest}
