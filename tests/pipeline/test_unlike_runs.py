"""What the promise is worth on runs that are unlike the simulated ones; see ``benchmarks/wall.py``.

A run is rendered, filtered and deleted when a test first asks for it. The small wall is for every
change; the whole one is slow.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from photon_by_photon import Rendering
from unlike_runs import Judged, judge, most_lost
from wall import WALL, WallRun

from sfxreduce.decisions.threshold import Promise

SURE_OF_BLANKS = 0.95
"""Share of the blanks from which the peak finder is worth comparing with."""


@cache
def judged(name: str) -> Judged:
    run = next(run for run in WALL if run.name == name)
    with TemporaryDirectory() as folder:
        return judge(run, Path(folder))


def each(runs: Iterable[WallRun]) -> pytest.MarkDecorator:
    """One test for each run; those beyond the small wall are slow."""
    params = [
        pytest.param(run, id=run.name, marks=() if run.small else pytest.mark.slow) for run in runs
    ]
    return pytest.mark.parametrize("run", params)


@each(WALL)
def test_a_promised_run_loses_no_more_than_chance_allows(run: WallRun) -> None:
    outcome = judged(run.name)
    if outcome.promised:
        assert outcome.lost["default"]["10+"] <= most_lost(outcome.hits["10+"], outcome.max_loss)
    else:
        assert outcome.reasons


@each(WALL)
def test_nothing_is_lost_that_the_peak_finder_keeps(run: WallRun) -> None:
    outcome = judged(run.name)
    if outcome.specificity("peaks") >= SURE_OF_BLANKS:
        assert outcome.lost_alone == 0


WITHHELD = {
    "9 tiles, dim": "background",
    "25 tiles, 30 % hits, gain 8": "1 of 64 rejected events",
    "64 tiles, 30 % hits": "1 of 64 rejected events",
}
"""Ordinary runs without a promise, and how the reason begins: less background than any calibrated
run, and a reject with peaks that lie beyond the tiles which are looked at first."""


@each(run for run in WALL if run.inside)
def test_the_promise_is_given_for_ordinary_runs(run: WallRun) -> None:
    outcome = judged(run.name)
    if run.name in WITHHELD:
        assert outcome.reasons[0].startswith(WITHHELD[run.name])
    else:
        assert outcome.promised, outcome.reasons


RINGS = {"rings"}
"""Of its blanks 60 % show powder; rings of two to four grains look like a weak crystal."""


@each(run for run in WALL if run.least_rejected is not None and run.name not in RINGS)
def test_runs_that_once_lost_hits_lose_none_and_their_blanks_go(run: WallRun) -> None:
    outcome = judged(run.name)
    assert run.least_rejected is not None
    assert outcome.hits["10+"]
    assert outcome.lost["default"]["10+"] == 0
    assert outcome.specificity("default") >= run.least_rejected


@pytest.mark.xfail(strict=True, reason="83 % of the blanks are rejected, 90 % are wanted")
@each(run for run in WALL if run.name in RINGS)
def test_grains_of_powder_are_told_from_crystals(run: WallRun) -> None:
    outcome = judged(run.name)
    assert run.least_rejected is not None
    assert outcome.specificity("default") >= run.least_rejected


@each(run for run in WALL if run.name in RINGS)
def test_grains_of_powder_hide_no_hit(run: WallRun) -> None:
    assert judged(run.name).lost["default"]["10+"] == 0


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([run for run in WALL if run.small], id="small wall"),
        pytest.param(list(WALL), id="wall", marks=[pytest.mark.slow, pytest.mark.timeout(14_400)]),
    ],
)
def test_all_promised_runs_together_keep_the_promise(runs: list[WallRun]) -> None:
    promised = [outcome for outcome in (judged(run.name) for run in runs) if outcome.promised]
    hits = sum(outcome.hits["10+"] for outcome in promised)
    assert hits
    lost = sum(outcome.lost["default"]["10+"] for outcome in promised)
    assert lost <= Promise().max_loss * hits


def test_the_wall_is_as_wide_as_it_says() -> None:
    small = [run for run in WALL if run.small]
    assert len(small) >= 12
    assert all(run.plan.n_events >= 300 for run in WALL)
    assert 3 * sum(run.inside for run in WALL) >= len(WALL)
    assert {run.n_tiles for run in WALL} >= {1, 4, 9, 25, 64}
    for run in WALL:
        if run.inside:
            assert run.n_tiles >= 4
            assert run.plan.camera.has_metadata
            assert 0.5 <= run.plan.crystals.sigma_px <= 2
            assert 0.02 <= run.plan.hit_rate <= 0.5


def test_more_than_one_hit_may_go_only_where_there_are_a_hundred() -> None:
    assert [most_lost(hits, 0.01) for hits in (0, 30, 99, 100, 300, 1000)] == [0, 1, 1, 4, 8, 18]


def test_a_rendered_event_depends_on_its_plan_alone() -> None:
    plan = next(run.plan for run in WALL if run.name == "one tile, jets")
    one, other = Rendering(plan), Rendering(plan)
    one.event(3)
    frames = [rendering.event(7) for rendering in (one, other)]
    assert np.array_equal(frames[0][0], frames[1][0])
    assert frames[0][1] == frames[1][1]


def test_a_photon_counter_renders_photons_of_the_expected_number_and_spread() -> None:
    plan = next(run.plan for run in WALL if run.name == "one tile, counter")
    rendering = Rendering(plan)
    blanks = np.flatnonzero(~rendering.has_crystal)[:60].tolist()
    frames = np.stack([rendering.event(event)[0] for event in blanks]).astype(float)
    # The strength of the background differs from event to event: compare within an event.
    far = rendering.radius > 150
    mean = frames[:, far].mean(axis=1)
    expected = float(rendering.near[far].mean())
    assert abs(mean.mean() / expected - 1) < 0.15
    assert abs(frames[:, far].var(axis=1).mean() / mean.mean() - 1) < 0.1
