"""Tiles are read for events that are still open, and nothing that is decided depends on it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.decisions.decide import Decision, decide
from sfxreduce.decisions.method import threshold_rule
from sfxreduce.io.chunks import blosc, shards
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.pipeline.filter import Outputs, filter_run, plan_filter
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.conditions import with_conditions
from sfxreduce.pipeline.stages.score import collect_scores
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.folder import default_model
from sfxreduce.scorers.cnn.scorer import CnnScorer
from sfxreduce.simulate.run import simulate_run

N_EVENTS = 40


@pytest.fixture(scope="module")
def stored_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Frames of 25 tiles, half of them with a crystal."""
    path = tmp_path_factory.mktemp("rounds") / "run.zarr"
    run = simulate_run("photosystem-i-8kev", n_events=N_EVENTS, hit_rate=0.5, seed=9)
    ingest_run(run, out=path, pool=SerialPool())
    return open_run(path)


@pytest.fixture(scope="module")
def scorer() -> CnnScorer:
    return CnnScorer(default_model())


@pytest.fixture(scope="module")
def whole(stored_run: Run, scorer: CnnScorer) -> np.ndarray:
    """What is said of every event if all of its window is seen."""
    return collect_scores(stored_run, scorer, pool=SerialPool())


@pytest.mark.parametrize("closed", [0.0, 0.05, 0.5, 0.999])
def test_no_decision_depends_on_the_tiles_that_were_not_read(
    stored_run: Run, scorer: CnnScorer, whole: np.ndarray, serial: Pool, closed: float
) -> None:
    rows = collect_scores(stored_run, scorer, pool=serial, closed_from=closed)
    early = rows["tiles"] == 9
    np.testing.assert_array_equal(rows["tiles"][~early], 25)
    np.testing.assert_array_equal(rows["score"][~early], whole["score"][~early])
    assert (rows["score"][early] >= closed).all()
    assert (rows["score"][early] <= whole["score"][early]).all()
    assert early.any() == (closed < 0.999)
    for threshold in (closed, closed / 2):
        decided, expected = (
            decide(of["score"], of["reason"], threshold=threshold).decision for of in (rows, whole)
        )
        np.testing.assert_array_equal(decided, expected)


def test_an_event_is_closed_only_where_no_run_could_ask_for_more(scorer: CnnScorer) -> None:
    from sfxreduce.decisions.threshold import Promise, binomial_threshold

    closed = threshold_rule(scorer, promise=Promise()).closed_from
    known = scorer.calibration
    value = binomial_threshold(known.hit_scores, promise=Promise(), groups=known.hit_groups).value
    rule = known.level
    for level in np.linspace(rule.lowest - 3, rule.highest + 3, 41):
        scores = 1 / (1 + np.exp(-np.full(100, level)))
        assert rule.threshold(value, rule.move(scores)) <= closed
    assert threshold_rule(scorer, threshold=0.25, promise=Promise()).closed_from == 0.25


def test_tiles_are_counted_and_closed_hits_pass_the_test_of_the_scores(
    stored_run: Run, scorer: CnnScorer, whole: np.ndarray, serial: Pool, tmp_path: Path
) -> None:
    plan = plan_filter(stored_run, FilterSettings(scorer=scorer), pool=serial)
    assert plan.method.assurance.checks["shape"].passed
    report = filter_run(
        stored_run,
        FilterSettings(scorer=scorer),
        outputs=Outputs(store=tmp_path / "hits.zarr"),
        pool=serial,
    )
    tiles = plan.decisions.tiles
    assert tiles is not None
    assert set(np.unique(tiles)) == {9, 25}
    assert report.tiles_per_event == pytest.approx(tiles.mean())
    assert report.tiles_per_event < report.window_tiles == 25
    np.testing.assert_array_equal(
        open_run(tmp_path / "hits.zarr").columns["source_index"], plan.decisions.kept
    )


def test_further_tiles_are_read_for_open_events_only(
    stored_run: Run, scorer: CnnScorer, monkeypatch: pytest.MonkeyPatch, serial: Pool
) -> None:
    seen = with_conditions(stored_run, scorer, pool=SerialPool())
    reads: Counter[tuple[int, int]] = Counter()
    read = ZarrFrames.read_into

    def noting(
        self: ZarrFrames, events: Sequence[int], window: Window | None, pixels: np.ndarray
    ) -> np.ndarray:
        for event in events:
            reads[event, len(window.origins) if window else 0] += 1
        return read(self, events, window, pixels)

    monkeypatch.setattr(ZarrFrames, "read_into", noting)
    rows = collect_scores(seen, scorer, pool=serial, closed_from=0.7)
    assert set(reads.values()) == {1}
    for event, tiles in enumerate(rows["tiles"]):
        assert (event, 9) in reads
        assert ((event, 16) in reads) == (tiles == 25)


def test_a_rejected_event_costs_no_more_bytes_than_its_window(
    stored_run: Run, monkeypatch: pytest.MonkeyPatch, serial: Pool
) -> None:
    scorer = CnnScorer(default_model(), looks_at="centre")
    seen = with_conditions(stored_run, scorer, pool=SerialPool())
    n_read = 0

    def counted(function: Any, size: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal n_read
            found = function(*args)
            n_read += size(found)
            return found

        return call

    monkeypatch.setattr(shards.os, "pread", counted(os.pread, len))
    monkeypatch.setattr(blosc.os, "preadv", counted(os.preadv, int))
    plan = plan_filter(
        seen,
        FilterSettings(scorer=scorer, threshold=2.0, drift=False, keep_from_peaks=0, audit_share=0),
        pool=serial,
    )
    assert plan.decisions.count(Decision.REJECT) == N_EVENTS
    n_scored = n_read
    tiles = next(iter(seen.source.source.encoded(range(1))))  # type: ignore[attr-defined]
    middle = [
        len(event[len(event) // 2] or b"")
        for event in seen.source.source.encoded(range(N_EVENTS))  # type: ignore[attr-defined]
    ]
    assert len(tiles) == 25
    assert sum(middle) <= n_scored <= 1.05 * sum(middle)
