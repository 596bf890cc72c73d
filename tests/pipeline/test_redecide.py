"""Another threshold gives what a filter run with it gives, and reads no more than that needs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import ArrayFrames, BrightestPixel, planted_run
from typer.testing import CliRunner

from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.decisions.assurance import Check
from sfxreduce.decisions.decide import Decision
from sfxreduce.decisions.threshold import Promise
from sfxreduce.errors import OutputExists, RefusedError, SchemaError, UsageError, VerificationError
from sfxreduce.io.chunks.blosc import USUAL_PACKING
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.io.writers import publish
from sfxreduce.io.writers.publish import Move
from sfxreduce.io.writers.shards import ShardJob, ShardWritten, copy_shard
from sfxreduce.pipeline import ingest
from sfxreduce.pipeline.filter import filter_run, plan_filter
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.redecide import Reread, redecide_run
from sfxreduce.pipeline.stages.plan import FilterPlan
from sfxreduce.pipeline.stages.reduced import Reduced, read_reduced
from sfxreduce.pipeline.stages.score import SEEN_ON_PIXELS
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.pipeline.verify.output import verify_run
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.calibration.record import Calibration, FirstLook, Reference
from sfxreduce.scorers.cnn.folder import default_model, write_model
from sfxreduce.scorers.cnn.model import Model, ModelConfig
from sfxreduce.scorers.cnn.poster.network import HitNetwork
from sfxreduce.scorers.cnn.scorer import CnnScorer
from sfxreduce.scorers.peaks.finder import PeakScorer
from sfxreduce.scorers.protocol import EventScores, Scorer, not_counted
from sfxreduce.simulate.run import simulate_run
from sfxreduce_cli.main import app

SERIAL = SerialPool()
TILE = 64
FIRST = 4
N_EVENTS = 40
FULL_SCALE = 4000.0
LOOK = FirstLook(tiles=FIRST, share=0.5)


class BrightestTile(BrightestPixel):
    """Looks at four tiles of fifteen first; scores are between 0 and 1."""

    @property
    def calibration(self) -> Calibration:
        return replace(super().calibration, threshold=500 / FULL_SCALE, first_look=LOOK)

    def window(self, detector: Detector) -> Window:
        return Window.tiled(detector, tile_shape=(TILE, TILE))

    def first_window(self, detector: Detector) -> Window:
        return self.window(detector).part(slice(FIRST))

    def __call__(self, pixels: np.ndarray, detector: Detector) -> np.ndarray:
        return super().__call__(pixels, detector) / np.float32(FULL_SCALE)

    def look_first(self, parts: Iterable[np.ndarray], detector: Detector) -> EventScores:
        # A part lies where the last one lay.
        first = np.concatenate([np.zeros(0, np.float32), *(self(p, detector) for p in parts)])
        n = len(first)
        kind, reason = np.ones(n, np.uint8), np.zeros(n, np.uint32)
        return EventScores(LOOK.most(first), kind, reason, *not_counted(n), first=first)

    def classify(self, pixels: np.ndarray, detector: Detector) -> EventScores:
        early = self.look_first([pixels[:, :FIRST]], detector)
        assert early.first is not None
        return early._replace(score=LOOK.score(early.first, self(pixels, detector)))


class Promising(BrightestTile):
    """The same, with hits that it has not learned from: what is promised sets the threshold."""

    @property
    def calibration(self) -> Calibration:
        return replace(
            super().calibration,
            hit_scores=np.linspace(150, 950, 2000, dtype=np.float32) / np.float32(FULL_SCALE),
            hit_groups=np.zeros(2000, np.int32),
        )


class OtherModel(BrightestTile):
    """The same by its name and settings, with a model behind it."""

    @property
    def calibration(self) -> Calibration:
        return replace(super().calibration, model_sha256="0")


class BrightPeaks(BrightestPixel):
    """A peak finder that counts in ADU; nothing lies on a ring."""

    def count_apart(self, pixels: np.ndarray, detector: Detector) -> tuple[np.ndarray, np.ndarray]:
        counts = self(pixels, detector)
        return counts, counts


class Referred(BrightestPixel):
    """The same with something to compare a run with."""

    @property
    def calibration(self) -> Calibration:
        return replace(super().calibration, model_sha256="0", reference=Reference())


@contextmanager
def layout(**changes: Any) -> Iterator[None]:
    """Stores with other tiles and shards than would be chosen."""
    choose = ingest.choose_layout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ingest,
            "choose_layout",
            lambda *args, **kwargs: replace(choose(*args, **kwargs), **changes),
        )
        yield


def mottled_run() -> Run:
    """Every tile of every event is as bright as chance has it."""
    rng = np.random.default_rng(3)
    detector = Detector.centred("camera", (3 * TILE, 5 * TILE))
    frames = rng.integers(0, 100, (N_EVENTS, *detector.frame_shape))
    bright = rng.integers(100, 1000, (N_EVENTS, 3, 5)) * (rng.random((N_EVENTS, 3, 5)) < 0.3)
    frames[:, 10::TILE, 10::TILE] += bright
    names = [f"event-{n}" for n in range(N_EVENTS)]
    names[12] = names[11]
    columns = event_columns(N_EVENTS, event_id=names)
    for name, event in (("dark", 20), ("no_image", 21)):
        columns[name] = ("event", (np.arange(N_EVENTS) == event).astype(np.uint8))
    return Run(
        source=ArrayFrames(frames=frames.astype(np.int16), detector=detector), columns=columns
    )


def damage_tiles(path: Path, *, events: Sequence[int], tile: int) -> None:
    """Flip a byte in one stored tile of some events."""
    frames = ZarrFrames(path=str(path))
    stored = frames.layout
    assert stored is not None
    for event in events:
        file = path / "frames" / stored.shard_key(stored.locate(event)[0])
        tiles = next(frames.encoded([event]))
        data = file.read_bytes()
        assert tiles[tile] is not None
        place = data.index(tiles[tile])
        file.write_bytes(data[: place + 20] + bytes([data[place + 20] ^ 1]) + data[place + 21 :])


@pytest.fixture(scope="module")
def mottled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same as a run store; an event or two cannot be read in a first, or in a later, tile."""
    path = tmp_path_factory.mktemp("mottled") / "run.zarr"
    blocks = replace(USUAL_PACKING, blocksize=16 * TILE)
    with layout(tile=(TILE, TILE), events_per_shard=8, packing=blocks):
        ingest_run(mottled_run(), out=path, pool=SERIAL)
    damage_tiles(path, events=[5, 17], tile=0)
    damage_tiles(path, events=[6, 30], tile=7)
    return open_run(path)


def filtered(run: Run, out: Path, scorer: Scorer, **judging: Any) -> Reduced:
    filter_run(
        run,
        settings=FilterSettings(scorer=scorer, **judging),
        outputs=Outputs(store=out),
        pool=SERIAL,
    )
    return read_reduced(out, pool=SERIAL)


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def redecided(old: Reduced, run: Run, out: Path, scorer: Scorer, **judging: Any) -> Reread:
    """Apply another threshold, compare every byte with a filter run, and say what was read."""
    shutil.rmtree(out, ignore_errors=True)
    outputs = Outputs(store=out)
    report, reread = redecide_run(
        run, FilterSettings(scorer=scorer, **judging), known=old, outputs=outputs, pool=SERIAL
    )
    fresh = out.with_name("fresh.zarr")
    shutil.rmtree(fresh, ignore_errors=True)
    expected = filter_run(
        run,
        settings=FilterSettings(scorer=scorer, **judging),
        outputs=Outputs(store=fresh),
        pool=SERIAL,
    )
    ours, theirs = tree(out), tree(fresh)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    told = replace(report, wall_seconds=0, out="", next_command="")
    assert told == replace(expected, wall_seconds=0, out="", next_command="")
    assert reread.frames_read + reread.frames_taken_over == report.kept + report.audit_sample
    return reread


THRESHOLDS = (0.03, 0.1, 0.175, 0.5)


@pytest.fixture(scope="module")
def outputs_of(mottled: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[float, Reduced]:
    """An output for each of these thresholds."""
    folder = tmp_path_factory.mktemp("outputs")
    return {
        threshold: filtered(
            mottled, folder / f"{threshold}.zarr", BrightestTile(), threshold=threshold
        )
        for threshold in THRESHOLDS
    }


@pytest.mark.parametrize(("before", "after"), list(permutations(THRESHOLDS, 2)))
def test_the_bytes_are_those_of_a_filter_run(
    before: float, after: float, outputs_of: dict[float, Reduced], mottled: Run, tmp_path: Path
) -> None:
    old = outputs_of[before]
    reread = redecided(old, mottled, tmp_path / "new.zarr", BrightestTile(), threshold=after)
    decided, tiles = old.decisions, old.decisions.tiles
    assert tiles is not None
    between = (decided.first < after) & (LOOK.most(decided.first) >= after)
    assert reread.reread == np.count_nonzero(between & (tiles == FIRST))
    assert reread.tiles_read <= 15 * reread.reread
    assert verify_run(tmp_path / "new.zarr", against=mottled, pool=SERIAL).ok


def test_the_same_threshold_reads_nothing(
    outputs_of: dict[float, Reduced], mottled: Run, tmp_path: Path
) -> None:
    old = outputs_of[0.1]
    there = old.decisions.kept.size + old.decisions.sample.size
    reread = plan_filter(
        mottled, FilterSettings(scorer=BrightestTile(), threshold=0.1), known=old, pool=SERIAL
    ).reread
    assert reread is not None
    assert (reread.reread, reread.tiles_read) == (0, 0)
    assert (reread.frames_read, reread.frames_taken_over) == (0, there)


def same_plan(ours: FilterPlan, theirs: FilterPlan) -> None:
    names = ("decision", "reason", "score", "bound", "first", "tiles", "event_class", "peaks")
    for name in names:
        np.testing.assert_array_equal(
            getattr(ours.decisions, name), getattr(theirs.decisions, name), err_msg=name
        )
    assert ours.method.threshold == theirs.method.threshold
    assert ours.method.settings == theirs.method.settings
    assert ours.method.claims == theirs.method.claims
    np.testing.assert_array_equal(ours.reduction.kept, theirs.reduction.kept)
    np.testing.assert_array_equal(ours.audit.kept, theirs.audit.kept)


@settings(max_examples=200)
@given(before=st.sampled_from(THRESHOLDS), after=st.floats(-0.01, 0.4), share=st.floats(0, 1))
def test_any_threshold_plans_what_a_filter_run_plans(
    before: float, after: float, share: float, outputs_of: dict[float, Reduced], mottled: Run
) -> None:
    judging: dict[str, Any] = {"threshold": after, "audit_share": share}
    scorer = BrightestTile()
    ours = plan_filter(
        mottled, FilterSettings(scorer=scorer, **judging), known=outputs_of[before], pool=SERIAL
    )
    same_plan(ours, plan_filter(mottled, FilterSettings(scorer=scorer, **judging), pool=SERIAL))
    reread = ours.reread
    assert reread is not None
    assert reread.tiles_read <= 15 * reread.reread


@settings(max_examples=40)
@given(loss=st.floats(0.002, 0.6), confidence=st.floats(0.5, 0.99))
def test_any_promise_plans_what_a_filter_run_plans(
    loss: float, confidence: float, promised: Reduced, mottled: Run
) -> None:
    promise, scorer = Promise(max_loss=loss, confidence=confidence), Promising()
    ours = plan_filter(
        mottled, FilterSettings(scorer=scorer, promise=promise), known=promised, pool=SERIAL
    )
    same_plan(
        ours, plan_filter(mottled, FilterSettings(scorer=scorer, promise=promise), pool=SERIAL)
    )


@pytest.fixture(scope="module")
def promised(mottled: Run, tmp_path_factory: pytest.TempPathFactory) -> Reduced:
    """An output whose threshold loses at most a tenth of the hits."""
    out = tmp_path_factory.mktemp("promised") / "hits.zarr"
    return filtered(mottled, out, Promising(), promise=Promise(max_loss=0.1))


def test_only_frames_that_are_newly_kept_are_read_from_the_run(
    outputs_of: dict[float, Reduced],
    mottled: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: Counter[tuple[str, int]] = Counter()
    encoded, read_into = ZarrFrames.encoded, ZarrFrames.read_into
    looked: list[int] = []

    def noting(self: ZarrFrames, events: Sequence[int]) -> Iterator[list[bytes | None]]:
        read.update((Path(self.path).name, event) for event in events)
        return encoded(self, events)

    def looking(self: ZarrFrames, events: Sequence[int], *rest: Any) -> np.ndarray:
        looked.extend(events)
        return read_into(self, events, *rest)

    monkeypatch.setattr(ZarrFrames, "encoded", noting)
    monkeypatch.setattr(ZarrFrames, "read_into", looking)
    monkeypatch.setattr("sfxreduce.io.chunks.shards.TileCodec.encode", None)
    old = outputs_of[0.175]
    _, reread = redecide_run(
        mottled,
        FilterSettings(scorer=BrightestTile(), threshold=0.1, audit_share=0.0),
        known=old,
        outputs=Outputs(store=tmp_path / "new.zarr"),
        pool=SERIAL,
    )
    new = read_reduced(tmp_path / "new.zarr", pool=SERIAL).decisions
    known = {*old.decisions.kept.tolist(), *old.decisions.sample.tolist()}
    holes = {5, 6, 17, 30}  # what the old output has no tiles of, the run is asked for again
    from_run = {event for (name, event) in read if name == "run.zarr"}
    assert from_run == (set(new.kept.tolist()) - known) | (holes & set(new.kept.tolist()))
    assert max(read.values()) == 1
    assert reread.frames_read == new.kept.size - len(known & set(new.kept.tolist())) > 0
    assert reread.reread == len(set(looked)) < N_EVENTS / 2


def test_events_that_are_kept_no_more_are_left_out_and_cost_nothing(
    promised: Reduced, mottled: Run, tmp_path: Path
) -> None:
    reread = redecided(promised, mottled, tmp_path / "a.zarr", Promising(), threshold=3000.0)
    kept = read_reduced(tmp_path / "a.zarr", pool=SERIAL).decisions
    assert kept.count(Decision.HIT) == 0
    assert reread.frames_read <= kept.sample.size


@pytest.mark.parametrize("panels", [0, 3])
def test_frames_that_are_stored_in_no_tiles_are_encoded(panels: int, tmp_path: Path) -> None:
    run = planted_run(panels=panels)
    scorer = BrightestPixel()
    old = filtered(run, tmp_path / "old.zarr", scorer, threshold=1030.0)
    for threshold in (115.0, 1010.0, 1050.0):
        redecided(old, run, tmp_path / "new.zarr", scorer, threshold=threshold)


class Flickering(ArrayFrames):
    """A source of which one event comes out differently every time."""

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        reading = super().read(events, window)
        for place, event in enumerate(events):
            if event == 3:
                reading.pixels[place, 0, 0] = FLICKER.integers(0, 50)
        return reading


FLICKER = np.random.default_rng(0)


def test_an_event_that_came_out_differently_is_read_anew(tmp_path: Path) -> None:
    steady = planted_run()
    assert isinstance(steady.source, ArrayFrames)
    source = Flickering(frames=steady.source.frames, detector=steady.detector)
    run = replace(steady, source=source)
    scorer = BrightestPixel()
    old = filtered(run, tmp_path / "old.zarr", scorer, threshold=1030.0)
    assert old.unstable.tolist() == []
    assert old.decisions.sample.tolist() == [3]
    for before, threshold, out in ((old, 1000.0, "new.zarr"), (None, 1010.0, "last.zarr")):
        known = before or read_reduced(tmp_path / "new.zarr", pool=SERIAL)
        redecide_run(
            run,
            FilterSettings(scorer=scorer, threshold=threshold, drift=False),
            known=known,
            outputs=Outputs(store=tmp_path / out),
            pool=SERIAL,
        )
    last = read_reduced(tmp_path / "new.zarr", pool=SERIAL)
    assert last.unstable.tolist() == [3]
    assert last.decisions.decision[3] == Decision.UNDECIDED
    final = read_reduced(tmp_path / "last.zarr", pool=SERIAL)
    assert final.decisions.decision[3] in (Decision.REJECT, Decision.UNDECIDED)


def test_a_hit_that_was_damaged_in_the_old_output_is_no_hole(
    outputs_of: dict[float, Reduced], mottled: Run, tmp_path: Path
) -> None:
    """Nothing is taken over from an output that is not whole."""
    old = outputs_of[0.1]
    hurt = Path(shutil.copytree(old.path, tmp_path / "hurt.zarr"))
    damage_tiles(hurt, events=[1], tile=3)
    with pytest.raises(VerificationError, match="shard 0, event 1: does not match"):
        read_reduced(hurt, pool=SERIAL)
    # It may be hurt after it was looked at: the run has what it lost.
    redecided(
        replace(old, path=hurt), mottled, tmp_path / "new.zarr", BrightestTile(), threshold=0.1
    )


@pytest.mark.parametrize("alarms", [((), ("odd",)), (("odd",), ()), (("odd",), ("odd",))])
def test_what_the_checks_made_of_events_is_taken_back_and_made_anew(
    alarms: tuple[tuple[str, ...], tuple[str, ...]],
    mottled: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = "sfxreduce.pipeline.stages.drift"

    def check(of: tuple[str, ...]) -> None:
        for name in ("shape", "conditions", "opinion", "window", "range"):
            found = Check(ran=True, alarms=of if name == "shape" else ())
            monkeypatch.setattr(f"{stage}.{name}_check", lambda *_, found=found, **__: found)

    # In place of the peak finder: the brightest pixel, of which one of 250 ADU is a hit.
    monkeypatch.setattr(f"{stage}.PeakScorer", BrightPeaks)
    monkeypatch.setattr(f"{stage}.MIN_PEAKS", 250)
    # It sees the tile in the middle: of some events other tiles are damaged.
    scorer = Referred(tile=TILE)
    check(alarms[0])
    old = filtered(mottled, tmp_path / "old.zarr", scorer, threshold=700.0)
    assert bool(np.any(old.decisions.reason & Reason.UNLIKE_CALIBRATION)) == bool(alarms[0])
    check(alarms[1])
    for threshold in (300.0, 900.0):
        redecided(old, mottled, tmp_path / "new.zarr", scorer, threshold=threshold)


def test_every_reason_is_known_to_come_from_pixels_columns_or_later() -> None:
    columns = (
        Reason.NO_IMAGE | Reason.DARK | Reason.DUPLICATE_ID | Reason.TIMESTAMP_ORDER
        | Reason.METADATA_MISSING | Reason.GAIN_UNKNOWN
    )  # fmt: skip
    later = (
        Reason.AUDIT_SAMPLE | Reason.UNLIKE_CALIBRATION | Reason.FILE_UNREADABLE | Reason.READ_ERROR
        | Reason.DATA_HOLE | Reason.UNEXPECTED_FORMAT | Reason.SCORE_INVALID | Reason.WORKER_LOST
        | Reason.UNSTABLE_READ | Reason.PEAK_COUNT | Reason.CHANGED
    )  # fmt: skip
    assert not SEEN_ON_PIXELS & (later | columns)
    assert all(reason & (SEEN_ON_PIXELS | columns | later) for reason in Reason)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Frames of 25 tiles, half of them with a crystal."""
    path = tmp_path_factory.mktemp("simulated") / "run.zarr"
    run = simulate_run("photosystem-i-8kev", n_events=20, hit_rate=0.5, seed=9)
    ingest_run(run, out=path, pool=SERIAL)
    return open_run(path)


def poster(folder: Path) -> CnnScorer:
    """The poster's network with random weights, on all tiles."""
    torch.manual_seed(0)
    weights = {name: value.numpy() * 1.5 for name, value in HitNetwork().state_dict().items()}
    write_model(folder / "poster", Model(config=ModelConfig(threshold=0.5), weights=weights))
    return CnnScorer(folder / "poster", looks_at="full")


def test_the_default_model_with_rounds(simulated: Run, tmp_path: Path) -> None:
    scorer = CnnScorer(default_model())
    old = filtered(simulated, tmp_path / "old.zarr", scorer)
    assert set(np.unique(old.decisions.tiles)) == {9}  # type: ignore[arg-type]
    out = tmp_path / "new.zarr"
    for judging in (
        {"promise": Promise(max_loss=0.02)},
        {"threshold": 0.999999, "drift": False},
        {"threshold": 0.02, "drift": False},
    ):
        same = old.scorer()
        assert same == scorer
        redecided(old, simulated, out, same, **judging)


def test_the_poster_network(simulated: Run, tmp_path: Path) -> None:
    full = poster(tmp_path)
    for scorer in (full, replace(full, looks_at="centre")):
        scores = plan_filter(
            simulated, FilterSettings(scorer=scorer, threshold=2.0, drift=False), pool=SERIAL
        ).decisions.score
        low, middle, high = (
            float(np.quantile(scores, share, method="lower")) for share in (0.2, 0.5, 0.8)
        )
        out = tmp_path / f"{scorer.looks_at}.zarr"
        old = filtered(simulated, out, scorer, threshold=middle, drift=False)
        same = old.scorer(model=full.model)
        assert same.settings == scorer.settings
        for threshold in (low, high):
            reread = redecided(
                old, simulated, tmp_path / "new.zarr", same, threshold=threshold, drift=False
            )
            assert reread.tiles_read == 0


def test_no_frame_is_read_to_learn_what_the_output_knows(
    simulated: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = CnnScorer(default_model())
    old = filtered(simulated, tmp_path / "old.zarr", scorer)
    monkeypatch.setattr(ZarrFrames, "read_into", None)
    hits = old.decisions.decision == Decision.HIT
    threshold = float(old.decisions.first[hits].min())
    plan = plan_filter(
        simulated,
        FilterSettings(scorer=scorer, threshold=threshold, drift=False),
        known=old,
        pool=SERIAL,
    )
    assert plan.reread is not None
    assert plan.reread.tiles_read == 0
    assert plan.conditions == old.conditions()


@pytest.fixture
def old(outputs_of: dict[float, Reduced]) -> Reduced:
    return outputs_of[0.1]


def refused(old: Reduced, run: Run, scorer: Scorer | None = None) -> None:
    plan_filter(
        run,
        FilterSettings(scorer=scorer or BrightestTile(), threshold=0.075),
        known=old,
        pool=SERIAL,
    )


def test_a_run_that_is_not_the_source_is_refused(
    old: Reduced, mottled: Run, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match="events 40, found 70"):
        refused(old, planted_run())
    with pytest.raises(RefusedError, match="the bytes"):
        refused(old, mottled_run())
    copy = Path(shutil.copytree(mottled.path, tmp_path / "copy.zarr"))
    with pytest.raises(RefusedError, match="the path"):
        refused(old, open_run(copy))
    link = tmp_path / "link.zarr"
    link.symlink_to(mottled.path)
    refused(old, open_run(link))
    columns = mottled.columns.copy()
    columns["source_event"] = ("event", np.arange(N_EVENTS) + 1)
    with pytest.raises(RefusedError, match="source_event"):
        refused(old, replace(mottled, columns=columns))


def test_a_scorer_that_did_not_judge_is_refused(old: Reduced, mottled: Run) -> None:
    for scorer in (PeakScorer(), OtherModel(), BrightestTile(settings="non")):
        with pytest.raises(RefusedError, match="judged"):
            refused(old, mottled, scorer)
    with pytest.raises(RefusedError, match="does not know"):
        old.scorer()
    known = replace(old, manifest=replace(old.manifest, scorer="cnn", model_sha256="0" * 64))
    with pytest.raises(RefusedError, match="pass --model"):
        known.scorer()
    odd = replace(old, manifest=replace(old.manifest, scorer="peaks", settings="min_snr wide"))
    with pytest.raises(RefusedError, match="peak finder"):
        odd.scorer()


def test_an_output_is_neither_replaced_nor_overlapped(
    old: Reduced, mottled: Run, tmp_path: Path
) -> None:
    def run(store: Path, *, overwrite: bool = False) -> None:
        redecide_run(
            mottled,
            FilterSettings(scorer=BrightestTile(), threshold=0.075),
            known=old,
            outputs=Outputs(store=store, overwrite=overwrite),
            pool=SERIAL,
        )

    with pytest.raises(UsageError, match="overlaps the input"):
        run(old.path, overwrite=True)
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputExists):
        run(tmp_path / "mine")


def test_a_redecision_that_was_cut_off_goes_on_and_is_no_filter_run(
    old: Reduced, mottled: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new.zarr"

    def cut_off(*_: Any, **__: Any) -> None:
        raise SchemaError("cut off")

    def copied(job: ShardJob) -> ShardWritten:
        assert set(job.events) & {5, 6, 17, 30}
        return copy_shard(job)

    with monkeypatch.context() as patch:
        patch.setattr("sfxreduce.pipeline.stages.write.write_manifest", cut_off)
        with pytest.raises(SchemaError, match="cut off"):
            redecide_run(
                mottled,
                FilterSettings(scorer=BrightestTile(), threshold=900.0),
                known=old,
                outputs=Outputs(store=out),
                pool=SERIAL,
            )
    assert not out.exists()
    with monkeypatch.context() as patch:
        # Its scores are noted and its shards are there; only those with a hole are written again.
        patch.setattr(ZarrFrames, "read_into", None)
        patch.setattr("sfxreduce.pipeline.stages.write.copy_shard", copied)
        redecide_run(
            mottled,
            FilterSettings(scorer=BrightestTile(), threshold=900.0),
            known=old,
            outputs=Outputs(store=out),
            pool=SERIAL,
        )
    fresh = filtered(mottled, tmp_path / "fresh.zarr", BrightestTile(), threshold=900.0)
    assert tree(out) == tree(fresh.path)


def test_a_cluster_writes_the_same_bytes(
    old: Reduced, mottled: Run, tmp_path: Path, cluster: Pool, serial: Pool
) -> None:
    for name, pool in (("serial", serial), ("cluster", cluster)):
        redecide_run(
            mottled,
            FilterSettings(scorer=BrightestPixel(), threshold=0.075),
            known=old,
            outputs=Outputs(store=tmp_path / name),
            pool=pool,
        )
    assert tree(tmp_path / "serial") == tree(tmp_path / "cluster")


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    result.exit_code = getattr(result.exception, "exit_status", result.exit_code)
    return result


@pytest.fixture(scope="module")
def by_peaks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CXI file and what was kept of it by its peaks."""
    folder = tmp_path_factory.mktemp("peaks")
    simulated = simulate_run(
        "photosystem-i-8kev", n_events=30, hit_rate=0.5, seed=2, frame_shape=(350, 350)
    )
    with h5py.File(folder / "run.cxi", "w") as file:
        file["cxi_version"] = 160
        file["entry_1/data_1/data"] = simulated.source.read(range(30)).pixels
    done = run(
        "filter", "--in", folder / "run.cxi", "--out", folder / "hits.zarr", "--scorer", "peaks",
        "--min-peaks", 15, "--serial",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


def test_peaks_of_a_cxi_file_by_the_command(by_peaks: Path, tmp_path: Path) -> None:
    base = [
        "redecide", "--in", by_peaks / "hits.zarr", "--against", by_peaks / "run.cxi",
        "--out", tmp_path / "new.zarr", "--serial", "--json",
    ]  # fmt: skip
    planned = run(*base, "--threshold", 6, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert list(tmp_path.iterdir()) == []
    done = run(*base, "--threshold", 6, "--report", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    for key in ("kept", "hits", "frames_read", "frames_taken_over"):
        assert found.get(key) == json.loads(planned.stdout)[key]
    assert (found["tiles_read"], found["reread"]) == (0, 0)
    assert found["frames_read"] > 0
    assert "<svg" in (tmp_path / "page.html").read_text()
    again = [
        "filter", "--in", by_peaks / "run.cxi", "--scorer", "peaks", "--threshold", 6, "--serial",
        "--out", tmp_path / "fresh.zarr",
    ]  # fmt: skip
    assert run(*again).exit_code == 0
    assert tree(tmp_path / "new.zarr") == tree(tmp_path / "fresh.zarr")


Spoil = Callable[[Path], list[object]]


def spoil_manifest(hits: Path) -> list[object]:
    (hits / "manifest" / "zarr.json").write_text("{}")
    return ["--threshold", 6]


def spoil_ledger(hits: Path) -> list[object]:
    file = hits / "ledger" / "score" / "c" / "0"
    file.write_bytes(file.read_bytes()[:-1] + b"1")
    return ["--threshold", 6]


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (spoil_manifest, 4),
        (spoil_ledger, 4),
        (lambda _: [], 2),
        (lambda _: ["--threshold", 6, "--max-loss", 0.1], 2),
        (lambda _: ["--threshold", "nan"], 2),
        (lambda _: ["--threshold", 6, "--cxi-filter", "gzip"], 2),
    ],
)
def test_what_the_command_refuses(
    spoil: Spoil, status: int, by_peaks: Path, tmp_path: Path
) -> None:
    hits = Path(shutil.copytree(by_peaks / "hits.zarr", tmp_path / "hits.zarr"))
    options = spoil(hits)
    done = run(
        "redecide", "--in", hits, "--against", by_peaks / "run.cxi", "--out", tmp_path / "new",
        "--serial", *options,
    )  # fmt: skip
    assert done.exit_code == status, done.output
    assert not (tmp_path / "new").exists()


def test_the_command_refuses_another_run(by_peaks: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.cxi"
    with h5py.File(other, "w") as file:
        file["cxi_version"] = 160
        file["entry_1/data_1/data"] = np.zeros((9, 350, 350), np.int16)
    done = run(
        "redecide", "--in", by_peaks / "hits.zarr", "--against", other, "--out", tmp_path / "new",
        "--threshold", 6, "--serial",
    )  # fmt: skip
    assert done.exit_code == 3
    assert "expected" not in str(done.exception) or "found" in str(done.exception)


def test_an_output_that_was_appearing_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It was once refused because it was there already.
    ingest_run(planted_run(n_events=N_EVENTS), out=tmp_path / "run.zarr", pool=SERIAL)
    run, scorer = open_run(tmp_path / "run.zarr"), BrightestPixel()
    for name, threshold in (("old", 500.0), ("fresh", 1010.0)):
        filter_run(
            run,
            settings=FilterSettings(scorer=scorer, threshold=threshold),
            outputs=Outputs(store=tmp_path / name),
            pool=SERIAL,
        )
    old, outputs = read_reduced(tmp_path / "old", pool=SERIAL), Outputs(store=tmp_path / "new")

    def attempt() -> Reread:
        return redecide_run(
            run,
            FilterSettings(scorer=scorer, threshold=1010.0),
            known=old,
            outputs=outputs,
            pool=SERIAL,
        )[1]

    complete = publish.complete_moves

    def interrupted(moves: Sequence[Move], *, undo: bool) -> None:
        complete(moves, undo=undo)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(publish, "complete_moves", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attempt()
    assert outputs.store.exists()
    attempt()
    files = [path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*")]
    for file in (path for path in files if (tmp_path / "new" / path).is_file()):
        assert (tmp_path / "new" / file).read_bytes() == (tmp_path / "fresh" / file).read_bytes()
    assert not list(tmp_path.glob(".*"))
