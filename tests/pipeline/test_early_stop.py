"""Tiles are read for events that are still open, and nothing that is decided depends on it."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.decisions.decide import Decision, ScoreBound, decide
from sfxreduce.decisions.method import RunThreshold
from sfxreduce.io.chunks import blosc, shards
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.pipeline.filter import Outputs, filter_run, plan_filter
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.conditions import with_conditions
from sfxreduce.pipeline.stages.score import collect_scores, score_run
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.folder import default_model
from sfxreduce.scorers.cnn.scorer import CnnScorer
from sfxreduce.simulate.run import simulate_run

N_EVENTS = 40
FIRST, ALL = 9, 25


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
    measured = with_conditions(stored_run, scorer, pool=SerialPool())
    return collect_scores(measured, scorer, pool=SerialPool())


def scored(run: Run, scorer: CnnScorer, pool: Pool, threshold: float) -> np.ndarray:
    """Rows of a run with a threshold that is given."""
    measured = with_conditions(run, scorer, pool=pool)
    rows, _, _ = score_run(
        measured, scorer, threshold_of=lambda _: RunThreshold(value=threshold), pool=pool
    )
    return rows


@pytest.mark.parametrize("threshold", [0.0, 0.0005, 0.05, 0.5, 0.9, 0.999])
def test_no_decision_depends_on_the_tiles_that_were_not_read(
    stored_run: Run, scorer: CnnScorer, whole: np.ndarray, serial: Pool, threshold: float
) -> None:
    rows = scored(stored_run, scorer, serial, threshold)
    bounds = {bound: rows["bound"] == bound for bound in ScoreBound}
    np.testing.assert_array_equal(rows["tiles"] == ALL, bounds[ScoreBound.EXACT])
    for name in ("first", "peaks", "class", "width_px"):
        np.testing.assert_array_equal(rows[name], whole[name], err_msg=name)
    exact = bounds[ScoreBound.EXACT]
    np.testing.assert_array_equal(rows["score"][exact], whole["score"][exact])
    for bound, least in ((ScoreBound.AT_MOST, whole["score"]), (ScoreBound.AT_LEAST, 0)):
        assert (rows["score"] >= least)[bounds[bound]].all()
    at_least = bounds[ScoreBound.AT_LEAST]
    assert (rows["score"] <= whole["score"])[at_least].all()
    assert at_least.all() == (threshold == 0.0)
    decided, expected = (
        decide(of["score"], np.zeros(N_EVENTS, np.uint32), threshold=threshold).decision
        for of in (rows, whole)
    )
    np.testing.assert_array_equal(decided, expected)


def test_tiles_are_counted_and_bounded_scores_pass_the_test_of_the_scores(
    stored_run: Run, scorer: CnnScorer, serial: Pool, tmp_path: Path
) -> None:
    plan = plan_filter(stored_run, FilterSettings(scorer=scorer), pool=serial)
    assert plan.method.assurance.checks["shape"].passed
    report = filter_run(
        stored_run,
        settings=FilterSettings(scorer=scorer),
        outputs=Outputs(store=tmp_path / "hits.zarr"),
        pool=serial,
    )
    tiles = plan.decisions.tiles
    assert tiles is not None
    assert tiles.min() == FIRST
    assert (plan.decisions.peak_tiles == FIRST).all()
    assert report.tiles_per_event == pytest.approx(tiles.mean())
    assert report.tiles_per_event < report.window_tiles == ALL
    look = report.first_look
    assert look is not None
    assert (look["tiles"], look["line"]) == (FIRST, look["share"] * report.threshold)
    np.testing.assert_array_equal(
        open_run(tmp_path / "hits.zarr").columns["source_index"], plan.decisions.kept
    )


def test_all_tiles_are_read_of_open_events_only(
    stored_run: Run, scorer: CnnScorer, monkeypatch: pytest.MonkeyPatch, serial: Pool
) -> None:
    seen = with_conditions(stored_run, scorer, pool=SerialPool())
    reads: Counter[tuple[int, int]] = Counter()
    read, read_first = ZarrFrames.read_into, ZarrFrames.read_first

    def noting(
        self: ZarrFrames, events: Sequence[int], window: Window | None, pixels: np.ndarray
    ) -> np.ndarray:
        for event in events:
            reads[event, len(window.origins) if window else 0] += 1
        return read(self, events, window, pixels)

    def noting_first(
        self: ZarrFrames, events: Sequence[int], first: Window, window: Window, room: np.ndarray
    ) -> Iterator[Reading]:
        for event in events:
            reads[event, len(first.origins)] += 1
        return read_first(self, events, first, window, room)

    monkeypatch.setattr(ZarrFrames, "read_into", noting)
    monkeypatch.setattr(ZarrFrames, "read_first", noting_first)
    monkeypatch.setattr(
        ZarrFrames,
        "read",
        lambda self, events, window: _reading(self, events, window, noting),
    )
    rows = scored(seen, scorer, serial, 0.9)
    assert set(reads.values()) == {1}
    assert 0 < np.count_nonzero(rows["tiles"] == ALL) < N_EVENTS / 2
    for event, tiles in enumerate(rows["tiles"]):
        assert (event, FIRST) in reads
        assert ((event, ALL) in reads) == (tiles == ALL)


def _reading(frames: ZarrFrames, events: Sequence[int], window: Window, read_into: Any) -> Any:
    pixels = np.zeros((len(events), *window.shape), frames.dtype)
    return Reading(reasons=read_into(frames, events, window, pixels), pixels=pixels)


def test_first_tiles_and_samples_of_the_others_are_read_in_one_go(
    stored_run: Run, scorer: CnnScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = stored_run.source
    assert isinstance(frames, ZarrFrames)
    window, first = scorer.window(frames.detector), scorer.first_window(frames.detector)
    assert first is not None
    events = list(range(5))
    reads: list[int] = []
    preadv = os.preadv

    def noting(file: int, buffers: list[memoryview], offset: int) -> int:
        reads.append(preadv(file, buffers, offset))
        return reads[-1]

    monkeypatch.setattr(blosc.os, "preadv", noting)
    pixels = np.full((5, *first.shape), -1, frames.dtype)
    reading = next(frames.read_first(events, first, window, pixels))
    stored = [sum(len(tile or b"") for tile in tiles) for tiles in frames.encoded(events)]
    assert reads[: 1 + len(events)][-len(events) :] == stored  # the index of the shard comes first
    np.testing.assert_array_equal(pixels, frames.read(events, first).pixels)
    sampled = frames.sampled(first, window)
    assert sampled is not None
    shown = sampled.index >= 0
    whole = frames.read(events).pixels.reshape(len(events), -1)
    np.testing.assert_array_equal(reading.pixels[:, shown], whole[:, sampled.index[shown]])
    assert not reading.reasons.any()


@pytest.mark.parametrize("tile", [0, 12])
def test_of_an_event_with_any_damaged_tile_the_first_ones_are_not_seen(
    stored_run: Run, scorer: CnnScorer, tmp_path: Path, tile: int
) -> None:
    path = tmp_path / "run.zarr"
    shutil.copytree(str(stored_run.path), path)
    _damage_bytes(path, events=[1], rng=np.random.default_rng(0), tiles=[tile])
    frames = ZarrFrames(path=str(path))
    window, first = scorer.window(frames.detector), scorer.first_window(frames.detector)
    assert first is not None
    pixels = np.full((3, *first.shape), -1, frames.dtype)
    reading = next(frames.read_first(range(3), first, window, pixels))
    assert reading.reasons.tolist() == [0, Reason.READ_ERROR, 0]
    assert not pixels[1].any()
    np.testing.assert_array_equal(pixels[::2], frames.read([0, 2], first).pixels)


def test_first_tiles_that_are_not_stored_tiles_are_read_by_themselves(
    stored_run: Run, scorer: CnnScorer
) -> None:
    frames = stored_run.source
    assert isinstance(frames, ZarrFrames)
    window = scorer.window(frames.detector)
    moved = replace(window, origins=tuple((y + 7, x - 7) for y, x in window.origins[:9]))
    room = np.full((2, *moved.shape), -1, frames.dtype)
    expected = frames.read(range(3), moved).pixels
    sizes = []
    for reading in frames.read_first(range(3), moved, window, room):
        n, start = len(reading.reasons), sum(sizes)
        np.testing.assert_array_equal(room[:n], expected[start : start + n])
        assert not reading.reasons.any()
        sizes.append(n)
    assert sizes == [2, 1]


def test_first_tiles_are_judged_alike_in_one_part_and_in_many(
    stored_run: Run, scorer: CnnScorer
) -> None:
    detector = stored_run.detector
    first = scorer.first_window(detector)
    pixels = stored_run.source.read(range(7), first).pixels
    together = scorer.look_first([pixels], detector)

    def one_after_the_other() -> Iterator[np.ndarray]:
        room = np.empty_like(pixels[:2])
        for start in range(0, 7, 2):
            part = room[: min(2, 7 - start)]
            part[...] = pixels[start : start + 2]
            yield part

    for ours, theirs in zip(
        scorer.look_first(one_after_the_other(), detector), together, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert scorer.look_first([], detector).score.shape == (0,)


HURT = 60


def _hurt(frame: np.ndarray, kind: str, rng: np.random.Generator) -> None:
    """Spoil a square of 175 pixels, or the end of the readout, beyond the first tiles."""
    row, column = 5, 5
    while 2 <= row < 8 and 2 <= column < 8:
        row, column = rng.integers(0, 10, 2)
    square = frame[row * 175 : (row + 1) * 175, column * 175 : (column + 1) * 175]
    if kind == "dark":
        square[...] = 0
    elif kind == "full":
        square[...] = 16000
    elif kind == "offset":
        square += np.int16(12000)
    elif kind == "hot":
        square[...] = square * 40 + 400
    else:
        frame[-16:] = 0


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_damaged_beyond_the_first_tiles_is_never_rejected(
    scorer: CnnScorer, serial: Pool, tmp_path: Path, seed: int
) -> None:
    from planted import ArrayFrames

    from sfxreduce.run.columns import event_columns

    run = simulate_run("photosystem-i-8kev", n_events=HURT + 20, hit_rate=0.0, seed=seed)
    frames = run.source.read(range(HURT + 20)).pixels.copy()
    rng = np.random.default_rng(seed)
    kinds = ("dark", "full", "offset", "hot", "short")
    for event in range(HURT):
        _hurt(frames[event], kinds[event % len(kinds)], rng)
    source = ArrayFrames(frames=frames, detector=run.detector)
    ingest_run(
        Run(source=source, columns=event_columns(len(frames))),
        out=tmp_path / "run.zarr",
        pool=serial,
    )
    stored = open_run(tmp_path / "run.zarr")
    _damage_bytes(tmp_path / "run.zarr", events=range(HURT, HURT + 5), rng=rng)
    settings = FilterSettings(scorer=scorer, threshold=0.9, drift=False, keep_from_peaks=0)
    decisions = plan_filter(stored, settings, pool=serial).decisions
    hurt = decisions.decision[: HURT + 5]
    assert not (hurt == Decision.REJECT).any(), np.flatnonzero(hurt == Decision.REJECT)
    doubted = decisions.reason[:HURT] & np.uint32(Reason.DOUBTED_AT_FIRST)
    assert doubted.all()
    assert (decisions.reason[HURT : HURT + 5] & np.uint32(Reason.READ_ERROR)).all()
    assert (decisions.decision[HURT + 5 :] == Decision.REJECT).mean() > 0.8


def _damage_bytes(
    path: Path,
    *,
    events: Sequence[int],
    rng: np.random.Generator,
    tiles: Sequence[int] = range(5),
) -> None:
    """Flip a bit in one of some stored tiles, by default at the edge of the frame."""
    frames = ZarrFrames(path=str(path))
    layout = frames.layout
    assert layout is not None
    for event in events:
        file = path / "frames" / layout.shard_key(layout.locate(event)[0])
        tile = next(frames.encoded([event]))[int(rng.choice(tiles))]
        assert tile is not None
        data = bytearray(file.read_bytes())
        data[bytes(data).index(tile) + int(rng.integers(16, len(tile)))] ^= 1
        file.write_bytes(data)


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
