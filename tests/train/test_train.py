"""Training is repeatable and learns; judging counts every event once."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from planted import ArrayFrames, BrightestPixel, planted_run

from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.decisions.decide import Decision, decide
from sfxreduce.errors import LabelError, UsageError
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector
from sfxreduce.run.labels import Label, Labels
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.run.window import CENTRE, FULL
from sfxreduce.scorers.calibration.windows import smallest_window
from sfxreduce.scorers.cnn.folder import read_model, write_model
from sfxreduce.scorers.cnn.model import Model
from sfxreduce.scorers.cnn.on_torch import hit_probability, load_network
from sfxreduce.scorers.cnn.poster.normalise import Normalisation, normalise
from sfxreduce.scorers.cnn.scorer import CnnScorer
from sfxreduce.scorers.peaks.finder import MIN_PEAKS, PeakScorer
from sfxreduce.train.card import model_card
from sfxreduce.train.evaluate import Evaluation, evaluate_model
from sfxreduce.train.labelling import (
    MISS_AT_MOST,
    PeakLabelling,
    QuartileLabelling,
    TruthLabelling,
    true_hits,
    true_kinds,
)
from sfxreduce.train.metrics import Confusion
from sfxreduce.train.poster.augment import vary
from sfxreduce.train.poster.dataset import EventSet, read_labelled, split_events
from sfxreduce.train.poster.train import train
from sfxreduce.train.recipe import MODERN, POSTER, RECIPES, Recipe
from sfxreduce.train.windows import window_curve

QUICK = Recipe(name="quick", optimiser="adamw", learning_rate=0.001, batch=4, epochs=12)
CAREFUL = replace(QUICK, epochs=3, patience=2, augment=True, balance=True, hit_loss=0.1)
FLAGS = {"flag_values": [0, 1, 4], "flag_meanings": "blank hit artefact"}


def _crystal_run(seed: int, *, n_events: int = 24) -> Run:
    """Every other event shows 30 strong peaks; the others show 0 to 2."""
    rng = np.random.default_rng(seed)
    frames = 20 * rng.poisson(2.0, (n_events, 350, 350))
    n_peaks = np.where(np.arange(n_events) % 2, 30, rng.integers(0, 3, n_events))
    for frame, n in zip(frames, n_peaks, strict=True):
        for y, x in rng.integers(5, 345, (n, 2)):
            frame[y : y + 2, x : x + 2] += 2000
    is_hit = n_peaks == 30
    truth = xr.Dataset(
        {
            "kind": ("event", is_hit.astype(np.uint8), FLAGS),
            "n_peaks": ("event", np.where(is_hit, n_peaks, 0)),
            "n_crystals": ("event", is_hit.astype(int)),
        }
    )
    detector = Detector.centred("camera", (350, 350), adu_per_photon=20.0)
    source = ArrayFrames(frames=frames.astype(np.int16), detector=detector)
    columns = event_columns(n_events)
    return Run(source=source, columns=columns, truth=truth, experiment="test", name=f"r{seed}")


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return [_crystal_run(1), _crystal_run(2)]


def _weights(model: Model) -> NDArray[np.float32]:
    return np.concatenate([model.weights[name].ravel() for name in sorted(model.weights)])


class _GivenLabels:
    """Labels known beforehand."""

    sentence = "labels are given"

    def __init__(self, label: list[Label]) -> None:
        self._label = np.array(label, np.int8)

    def __call__(self, run: Run, *, pool: Pool, progress: Progress) -> Labels:
        return Labels(label=self._label, miss_at_most=0, hit_at_least=1)


def test_the_poster_recipe_is_the_printed_one() -> None:
    assert (POSTER.optimiser, POSTER.learning_rate, POSTER.momentum) == ("sgd", 0.002, 0.9)
    assert (POSTER.batch, POSTER.epochs, POSTER.run_after_run) == (100, 3, True)
    assert not any((POSTER.augment, POSTER.balance, POSTER.patience, POSTER.weight_decay))
    assert RECIPES == {"poster": POSTER, "modern": MODERN}


def test_a_recipe_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(UsageError, match="batch and epochs of at least 1"):
        replace(POSTER, epochs=0)
    with pytest.raises(UsageError, match="held-out"):
        replace(POSTER, hit_loss=0.1)
    with pytest.raises(UsageError, match="run_after_run"):
        replace(POSTER, patience=1)


@pytest.mark.parametrize("recipe", [replace(POSTER, epochs=1, batch=5), replace(CAREFUL, epochs=1)])
def test_the_same_seed_gives_the_same_model(runs: list[Run], recipe: Recipe) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (train(runs, recipe=recipe, seed=seed) for seed in (3, 3, 4))
    assert first.encoded == again.encoded
    assert first.config == again.config
    assert not np.array_equal(_weights(first), _weights(other))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_trained_model_tells_hits_from_misses_on_another_run(
    runs: list[Run], tmp_path: Path
) -> None:
    model = train(runs, recipe=QUICK, seed=0)
    write_model(tmp_path / "model", model)
    found = evaluate_model(CnnScorer(tmp_path / "model"), [_crystal_run(9)])
    assert found.labelled.counts.accuracy > 0.9
    card = model_card(read_model(tmp_path / "model").config, evaluations={"test": found})
    assert f"| test, labelled | {found.labelled.counts.tp} |" in card


def test_the_poster_recipe_learns_run_after_run(runs: list[Run]) -> None:
    seen = []

    def show(stage: str, done: int, total: int) -> None:
        if done == total:
            seen.append(stage)

    train(runs, recipe=replace(POSTER, epochs=1), progress=show)
    assert seen == ["count peaks"] * 2 + ["read", "train"] * 2


def test_a_model_remembers_where_it_comes_from(runs: list[Run]) -> None:
    model = train(runs, recipe=replace(CAREFUL, epochs=1), seed=5)
    made = model.config.provenance
    assert made.seed == 5
    assert made.recipe["name"] == "quick"
    assert set(made.versions) == {"numpy", "sfxreduce", "torch"}
    assert [(r.name, r.role) for r in made.runs] == [("r1", "training"), ("r2", "stopping")]
    assert all(r.events == r.hits + r.misses + r.unlabelled == 24 for r in made.runs)
    assert 0 < model.config.threshold <= 0.5
    assert "r2" in model.card


def test_the_threshold_loses_no_more_held_out_hits_than_the_recipe_allows(runs: list[Run]) -> None:
    model = train(runs, recipe=replace(CAREFUL, epochs=1), seed=2)
    labels = PeakLabelling()(runs[-1], pool=SerialPool(), progress=silent)
    held = read_labelled(runs[-1], labels, normalisation=Normalisation(), most_tiles=99)
    score = hit_probability(load_network(model), held.seen)[held.is_hit]
    assert np.mean(score < model.config.threshold) <= CAREFUL.hit_loss
    assert model.config.threshold in {0.5, *score.tolist()}


def test_a_single_run_gives_up_some_events_to_know_when_to_stop(runs: list[Run]) -> None:
    model = train(runs[:1], recipe=replace(CAREFUL, epochs=1), seed=2)
    assert [r.role for r in model.config.provenance.runs] == ["training"]
    assert 0 < model.config.threshold <= 0.5


def test_training_needs_runs_with_hits_and_misses(runs: list[Run]) -> None:
    with pytest.raises(LabelError, match="at least one run"):
        train([])
    with pytest.raises(LabelError, match="found 24 and 0"):
        train(runs[:1], labelling=_GivenLabels([Label.HIT] * 24))


def test_a_run_with_too_few_hits_to_hold_one_out_is_refused(runs: list[Run]) -> None:
    # It was once an IndexError out of NumPy: no quantile of nothing.
    labels = _GivenLabels([Label.HIT] + [Label.MISS] * 23)
    with pytest.raises(LabelError, match=r"expected hits among the .* held out"):
        train(runs[:1], recipe=replace(CAREFUL, epochs=1), labelling=labels, seed=2)


def test_labelled_events_are_read_in_order_as_the_scorer_sees_them(runs: list[Run]) -> None:
    run = runs[0]
    label = np.resize([Label.MISS, Label.HIT, Label.MAYBE], 24).astype(np.int8)
    labels = Labels(label=label, miss_at_most=0, hit_at_least=1)
    how = Normalisation()
    events = read_labelled(run, labels, normalisation=how, most_tiles=99)
    clear = np.flatnonzero(label != Label.MAYBE)
    assert events.is_hit.tolist() == (label[clear] == Label.HIT).tolist()
    frames = run.source.read(clear.tolist()).pixels[:, None]
    good = np.ones((1, 350, 350), bool)
    expected = normalise(frames, good, adu_per_photon=20.0, how=how)
    np.testing.assert_array_equal(events.seen, expected.astype(np.float16))
    assert len(read_labelled(run, labels, normalisation=how, most_tiles=10)) == 10


def test_events_that_cannot_be_read_are_not_learned_from() -> None:
    run = _crystal_run(4, n_events=8)
    source = replace(run.source, reasons={3: int(Reason.READ_ERROR)})  # type: ignore[type-var]
    label = np.resize([Label.MISS, Label.HIT], 8).astype(np.int8)
    events = read_labelled(
        replace(run, source=source),
        Labels(label=label, miss_at_most=0, hit_at_least=1),
        normalisation=Normalisation(),
        most_tiles=99,
    )
    assert (len(events), events.n_hits) == (7, 3)


@given(is_hit=st.lists(st.booleans(), max_size=60), every=st.integers(2, 7))
def test_events_set_aside_are_a_share_of_hits_and_of_misses(is_hit: list[bool], every: int) -> None:
    number = np.arange(len(is_hit), dtype=np.float16).reshape(-1, 1, 1, 1)
    rest, aside = split_events(EventSet(seen=number, is_hit=np.array(is_hit, bool)), every=every)
    both = np.concatenate([rest.seen, aside.seen]).ravel().astype(int)
    assert sorted(both.tolist()) == list(range(len(is_hit)))
    assert aside.n_hits == sum(is_hit) // every
    assert len(aside) - aside.n_hits == (len(is_hit) - sum(is_hit)) // every


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_variations_stay_in_range_and_leave_the_original_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(2, 1, 60, 60)).clip(-4, 16).astype(np.float32)
    seen[0, 0, 20:40] = 0
    before = seen.copy()
    varied = vary(seen, normalisation=Normalisation(), rng=rng)
    np.testing.assert_array_equal(seen, before)
    assert varied.shape == seen.shape
    assert varied.dtype == np.float32
    assert varied.min() >= -4
    assert varied.max() <= 16
    # A third is masked and may be shifted out by 12 rows; noise never fills what is left.
    assert np.count_nonzero(varied[0] == 0) >= (20 - 12) * (60 - 12)


def test_an_empty_picture_varies_into_itself() -> None:
    empty = np.zeros((1, 1, 50, 50), np.float32)
    assert not vary(empty, normalisation=Normalisation(), rng=np.random.default_rng(0)).any()


def _judge(run: Run, label: list[Label], threshold: float = 500.0) -> Evaluation:
    return evaluate_model(
        BrightestPixel(), [run], threshold=threshold, labelling=_GivenLabels(label)
    )


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_judging_counts_what_deciding_would_do(data: st.DataObject) -> None:
    n_events = 12
    label = data.draw(st.lists(st.sampled_from(list(Label)), min_size=n_events, max_size=n_events))
    bad = data.draw(st.sets(st.integers(0, n_events - 1), max_size=4))
    run = planted_run(n_events=n_events)
    assert isinstance(run.source, ArrayFrames)
    run = replace(run, source=replace(run.source, reasons=dict.fromkeys(bad, Reason.DATA_HOLE)))
    found = _judge(run, label)

    score = run.source.read(range(n_events)).pixels.reshape(n_events, -1).max(axis=1)
    reason = np.array([Reason.DATA_HOLE if e in bad else 0 for e in range(n_events)], np.uint32)
    made = decide(score.astype(np.float32), reason, threshold=500.0)
    kept = made.decision != Decision.REJECT
    expected = Counter(
        (bool(want == Label.HIT), bool(keeps))
        for want, keeps in zip(label, kept, strict=True)
        if want != Label.MAYBE
    )
    assert found.labelled.counts == Confusion(
        tp=expected[True, True],
        fn=expected[True, False],
        fp=expected[False, True],
        tn=expected[False, False],
    )
    assert found.n_events == n_events
    assert found.n_unlabelled == label.count(Label.MAYBE)
    assert found.all_events is not None
    assert found.all_events.counts.fn == 0
    assert sum(map(sum, found.by_kind.values())) == n_events
    assert sum(found.by_kind["hit"]) == 4


def test_the_json_is_flat_and_has_the_promised_names() -> None:
    document = _judge(planted_run(n_events=9), [Label.HIT, Label.MISS, Label.MAYBE] * 3).to_json()
    names = {"tp", "fn", "fp", "tn", "recall", "specificity", "precision", "npv", "accuracy"}
    names |= {"roc_auc", "hit_loss", "hit_loss_upper95"}
    assert names <= set(document)
    assert names | {"by_kind"} == set(document["all_events"])
    assert (document["events"], document["labelled"], document["unlabelled"]) == (9, 6, 3)
    assert document["tp"] == 3
    assert "rows are the truth" in document["axes"]
    assert document["all_events"]["by_kind"]["blank"] == {"kept": 0, "rejected": 6}


def test_by_the_truth_weak_crystals_are_left_out(runs: list[Run]) -> None:
    run = runs[0]
    assert run.truth is not None
    peaks = np.where(run.truth.n_crystals.values > 0, np.resize([30, 4], 24), 0)
    run = replace(run, truth=run.truth.assign(n_peaks=("event", peaks)))
    label = [Label.HIT, Label.MISS] * 12
    strict = evaluate_model(BrightestPixel(), [run], threshold=500.0, labelling=_GivenLabels(label))
    loose = evaluate_model(
        BrightestPixel(),
        [run],
        threshold=500.0,
        hit_min_peaks=4,
        labelling=_GivenLabels(label),
    )
    found = [e.to_json()["true_hits"] for e in (strict, loose)]
    n_of = [int(np.count_nonzero(peaks >= least)) for least in (10, 4)]
    assert [f["tp"] + f["fn"] for f in found] == n_of
    assert [f["fp"] + f["tn"] for f in found] == [12, 12]


def _tile_run(seed: int) -> Run:
    """Hits show their peaks in the corners of a picture of nine tiles, and never in the middle."""
    small = _crystal_run(seed, n_events=16)
    assert isinstance(small.source, ArrayFrames)
    rng = np.random.default_rng(seed)
    frames = 20 * rng.poisson(2.0, (16, 1050, 1050)).astype(np.int16)
    for corner in (slice(0, 350), slice(700, 1050)):
        frames[:, corner, corner] = small.source.frames
    detector = Detector.centred("camera", (1050, 1050), adu_per_photon=20.0)
    return replace(small, source=ArrayFrames(frames=frames, detector=detector))


def test_the_window_is_as_small_as_the_held_out_hits_allow() -> None:
    runs = [_tile_run(1), _tile_run(2)]
    recipe = replace(CAREFUL, epochs=1)
    auto = train(runs, recipe=recipe, seed=1).config
    assert [one.tiles.name for one in auto.curve] == ["centre", "5 tiles", "full"]
    assert auto.window == smallest_window(auto.curve)
    assert "| centre |" in model_card(auto)
    for name, choice in (("centre", CENTRE), ("full", FULL)):
        config = train(runs, recipe=recipe, seed=1, window=name).config
        assert (config.window, config.curve) == (choice, ())
    with pytest.raises(UsageError, match="--window all: expected auto"):
        train(runs, recipe=recipe, window="all")


def test_the_curve_sees_that_the_middle_shows_nothing() -> None:
    rng = np.random.default_rng(0)
    is_hit = np.arange(400) % 2 == 0
    of_tiles = rng.uniform(0.0, 0.4, (400, 9))
    of_tiles[is_hit, 8] = rng.uniform(0.6, 1.0, 200)
    curve = window_curve(of_tiles, is_hit, Detector.centred("camera", (1050, 1050)))
    by_name = {one.tiles.name: one for one in curve}
    assert by_name["full"].keeps_promise
    assert not by_name["centre"].keeps_promise
    assert smallest_window(curve).most in (0, 9)


def test_a_ratio_without_a_base_is_null_in_json() -> None:
    document = _judge(planted_run(n_events=4), [Label.MISS] * 4).to_json()
    assert document["recall"] is None
    assert document["roc_auc"] is None
    assert not any(isinstance(v, float) and math.isnan(v) for v in document.values())


def test_a_run_without_truth_is_judged_by_its_labels_alone() -> None:
    run = replace(planted_run(n_events=4), truth=None)
    found = _judge(run, [Label.HIT, Label.MISS] * 2)
    assert (found.all_events, found.by_kind) == (None, {})
    assert found.to_json()["all_events"] is None


def test_judging_needs_a_run() -> None:
    with pytest.raises(LabelError, match="at least one run"):
        evaluate_model(BrightestPixel(), [])


def _rare_hits(n_events: int = 24) -> Run:
    """One event in 12 shows 30 peaks, one 5 to 7, the others 0 to 2: an ordinary hit rate."""
    run = _crystal_run(4, n_events=n_events)
    assert isinstance(run.source, ArrayFrames)
    frames = run.source.frames.copy()
    blank = frames[::2]
    frames[1::2] = np.roll(blank, 3, axis=2)
    frames[7::12] = run.source.frames[7::12]
    frames[3::12] = blank[0]
    frames[3::12, 20::70, 30] = 2000
    return replace(run, source=replace(run.source, frames=frames))


def test_peak_labels_are_those_of_the_peak_finder_at_any_hit_rate() -> None:
    """They were quartiles, which refuse a run of which fewer than a quarter are hits."""
    run = _rare_hits()
    labels = PeakLabelling()(run, pool=SerialPool(), progress=silent)
    plan = plan_filter(run, FilterSettings(scorer=PeakScorer(), audit_share=0), pool=SerialPool())
    hits = np.flatnonzero(plan.decisions.decision == Decision.HIT)
    assert np.flatnonzero(labels.label == Label.HIT).tolist() == hits.tolist() == [7, 19]
    assert np.flatnonzero(labels.label == Label.MAYBE).tolist() == [3, 15]
    assert labels.count(Label.MISS) == 20
    assert (labels.miss_at_most, labels.hit_at_least) == (MISS_AT_MOST, MIN_PEAKS)
    found = evaluate_model(PeakScorer(), [run])
    assert (found.labelled.counts.tp, found.labelled.counts.tn, found.n_unlabelled) == (2, 20, 2)
    lower = PeakLabelling(min_peaks=4)(run, pool=SerialPool(), progress=silent)
    assert lower.count(Label.HIT) == 4


def test_rules_by_peaks_say_what_they_are() -> None:
    assert "at most 2 peaks, hits at least 8," in PeakLabelling().sentence
    assert "hits at least 5" in PeakLabelling(min_peaks=5).sentence
    assert "lower quartile" in QuartileLabelling().sentence
    with pytest.raises(UsageError, match="--miss-at-most below --min-peaks, found 8 and 8"):
        PeakLabelling(miss_at_most=8)


def test_quartiles_name_the_run_they_fail_on() -> None:
    with pytest.raises(LabelError, match=r"memory: labels: .* leave 'quartiles' out"):
        QuartileLabelling()(planted_run(n_events=8), pool=SerialPool(), progress=silent)
    labels = QuartileLabelling()(_crystal_run(1), pool=SerialPool(), progress=silent)
    assert labels.count(Label.HIT) == 12


def test_held_out_events_without_a_hit_are_refused_before_anything_is_learned() -> None:
    told: list[str] = []
    with pytest.raises(LabelError, match=r"hits among the \d+ events held out"):
        train([_rare_hits()], recipe=CAREFUL, progress=lambda stage, *_: told.append(stage))
    assert "train" not in told


def test_truth_labels_leave_crystals_without_peaks_open() -> None:
    run = _crystal_run(1, n_events=6)
    assert run.truth is not None
    truth = run.truth.assign(n_peaks=("event", np.array([0, 30, 0, 2, 0, 3])))
    labels = TruthLabelling()(replace(run, truth=truth), pool=SerialPool(), progress=silent)
    assert labels.label.tolist() == [
        Label.MISS,
        Label.HIT,
        Label.MISS,
        Label.MAYBE,
        Label.MISS,
        Label.HIT,
    ]
    with pytest.raises(LabelError, match="expected a truth"):
        TruthLabelling()(replace(run, truth=None), pool=SerialPool(), progress=silent)


def test_kinds_are_read_as_codes_and_as_text() -> None:
    run = _crystal_run(1, n_events=2)
    for kind in (
        ("event", np.array([4, 1], np.uint8), FLAGS),
        ("event", np.array([b"artefact", b"hit"])),
        ("event", np.array(["artefact", "hit"])),
    ):
        known = replace(run, truth=xr.Dataset({"kind": kind}))
        kinds, hits = true_kinds(known), true_hits(known)
        assert kinds is not None
        assert kinds.tolist() == ["artefact", "hit"]
        assert hits is not None
        assert hits.tolist() == [False, True]
    assert true_kinds(replace(run, truth=None)) is None
