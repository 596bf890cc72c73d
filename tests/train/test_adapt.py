"""A model goes on learning from a run: what it is taught, what is chosen, never for the worse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import ArrayFrames
from typer.testing import CliRunner

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import LabelError, ModelError, SchemaError
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector
from sfxreduce.run.labels import Label
from sfxreduce.run.run import Run
from sfxreduce.scorers.cnn.folder import default_model, read_model
from sfxreduce.scorers.cnn.model import USUAL, Model, ModelConfig
from sfxreduce.scorers.cnn.on_torch import load_network
from sfxreduce.scorers.peaks.finder import PeakScorer
from sfxreduce.simulate.run import simulate_run
from sfxreduce.train.patches import adapt as adapting
from sfxreduce.train.patches.adapt import Adapted, adapt, needs
from sfxreduce.train.patches.peak_labels import HIT_AT_LEAST, MISS_AT_MOST, SeenEvents, see_events
from sfxreduce_cli.main import app

N_EVENTS = 60


@pytest.fixture(scope="module", autouse=True)
def brief_rehearsal() -> Iterator[None]:
    """Two events of each known experiment: what is tested here does not depend on how many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapting, "_REHEARSED", 2)
        yield


@pytest.fixture(scope="module")
def run() -> Run:
    return simulate_run("pyp-cspad", n_events=N_EVENTS, hit_rate=0.6, seed=3)


@pytest.fixture(scope="module")
def start() -> Model:
    return read_model(default_model())


@pytest.fixture(scope="module")
def seen(run: Run, start: Model) -> SeenEvents:
    config = start.config
    return see_events(
        run,
        range(N_EVENTS),
        candidates=config.candidates,
        pooling=config.pooling,
        pool=SerialPool(),
    )


@pytest.fixture(scope="module")
def adapted(run: Run, start: Model) -> Adapted:
    return adapt(run, start=start, pool=SerialPool())


def test_labels_agree_with_the_truth_and_clear_ones_alone_teach(run: Run, seen: SeenEvents) -> None:
    assert run.truth is not None
    blank = run.truth.n_crystals.values == 0
    strong = run.truth.n_peaks.values >= 20
    assert (seen.label[blank] != Label.HIT).mean() > 0.9
    assert (seen.label[strong] == Label.HIT).mean() > 0.9
    snr, label = seen.patches.snr, seen.label[seen.event_of_candidate]
    assert np.isnan(snr[label == Label.MAYBE]).all()
    assert not (snr[label == Label.MISS] > 0).any()
    assert (snr[label == Label.MISS] == 0).any()
    assert not (snr[label == Label.HIT] == 0).any()
    assert (snr[label == Label.HIT] > 5).any()


def test_events_are_seen_alike_however_they_are_grouped(
    run: Run, start: Model, seen: SeenEvents
) -> None:
    config = start.config
    few = see_events(
        run,
        [0, 17, 18],
        candidates=config.candidates,
        pooling=config.pooling,
        pool=SerialPool(),
    )
    np.testing.assert_array_equal(few.label, seen.label[[0, 17, 18]])
    np.testing.assert_array_equal(few.statistics, seen.statistics[[0, 17, 18]])
    for place, event in enumerate((0, 17, 18)):
        here, there = few.event_of_candidate == place, seen.event_of_candidate == event
        np.testing.assert_array_equal(
            few.patches.found.patch[here], seen.patches.found.patch[there]
        )


def test_it_is_never_worse_at_equal_specificity_and_says_what_it_saw(
    adapted: Adapted, start: Model
) -> None:
    assert adapted.after.lost_at_equal_specificity <= adapted.before.lost_at_equal_specificity
    assert adapted.before.lost_at_equal_specificity <= adapted.before.lost
    assert adapted.before.threshold == start.config.threshold
    sample = adapted.model.config.provenance.runs[-1]
    assert sample.hits + sample.misses + sample.unlabelled == sample.events == N_EVENTS
    assert sample.role == "adaptation"
    assert adapted.model.config.provenance.runs[:-1] == start.config.provenance.runs


def test_the_run_s_own_hits_stand_behind_the_threshold(adapted: Adapted, start: Model) -> None:
    model = adapted.model
    own = model.hit_groups == start.hit_groups.max() + 1
    assert own.sum() == adapted.after.hits
    np.testing.assert_array_equal(model.hit_scores[~own], start.hit_scores)
    assert model.hit_scores[own].min() >= model.config.threshold
    assert model.config.threshold <= start.config.threshold
    assert (model.reference.envelope[:, 0] <= start.reference.envelope[:, 0]).all()
    assert (model.reference.envelope[:, 1] >= start.reference.envelope[:, 1]).all()


def test_the_same_seed_gives_the_same_model(run: Run, start: Model, adapted: Adapted) -> None:
    state = torch.random.get_rng_state()
    again = adapt(run, start=start, pool=SerialPool())
    assert again.model.encoded == adapted.model.encoded
    assert again.model.config == adapted.model.config
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_network_that_learned_nonsense_is_not_taken(
    run: Run, start: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nonsense(*_: object, **__: object) -> object:
        network = load_network(start)
        with torch.no_grad():
            for part in network.parameters():
                part.zero_()
        return network

    monkeypatch.setattr(adapting, "train_patches", nonsense)
    found = adapt(run, start=start, pool=SerialPool())
    assert found.share == 0.0
    assert found.after.lost_at_equal_specificity == found.before.lost_at_equal_specificity
    for name, value in start.weights.items():
        if not name.startswith("calibration."):
            np.testing.assert_array_equal(found.model.weights[name], value)


def test_what_is_usual_stays_as_it_does_not_depend_on_the_network(
    adapted: Adapted, start: Model
) -> None:
    for name in USUAL:
        np.testing.assert_array_equal(adapted.model.weights[name], start.weights[name])


def test_a_run_without_hits_is_refused(start: Model) -> None:
    blank = simulate_run("pyp-cspad", n_events=24, hit_rate=0.0, seed=3)
    with pytest.raises(LabelError, match=r"found \d+ and \d+ in 24 of 24 events; give another"):
        adapt(blank, start=start, pool=SerialPool())


def test_too_few_hits_in_the_sample_name_the_sample_that_would_do(start: Model) -> None:
    rare = simulate_run("pyp-cspad", n_events=400, hit_rate=0.3, seed=3)
    with pytest.raises(LabelError, match=r"in 24 of 400 events; pass --sample \d+") as refused:
        adapt(rare, start=start, sample=24, pool=SerialPool())
    assert 24 < int(str(refused.value).split("--sample ")[1].split(",")[0]) <= 400


def test_what_is_needed_is_said_and_refused_before_a_frame_is_read(
    run: Run, start: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = needs(run)
    for words in (
        "12 clear hits (10 peaks or more)",
        "12 clear misses (4 or fewer)",
        "among 60 of 60 whole frames",
        "ADU per photon",
    ):
        assert words in text
    assert "among 30 of 60 whole frames" in needs(run, sample=30)
    monkeypatch.setattr(type(run.source), "read", None)
    with pytest.raises(LabelError, match="found 23 events; pass a larger --sample"):
        adapt(run, start=start, sample=23, pool=SerialPool())


def test_a_run_of_unknown_gain_is_refused_before_peaks_are_counted(start: Model) -> None:
    frames = np.full((30, 350, 350), 7, np.int16)  # nothing to measure it by
    detector = Detector.centred("camera", (350, 350))
    source = ArrayFrames(frames=frames, detector=detector)
    blank = Run(source=source, columns=event_columns(30), experiment="test", name="blank")
    assert "to be measured on frames" in needs(blank)
    with pytest.raises(SchemaError, match="expected the gain in ADU per photon"):
        adapt(blank, start=start, pool=SerialPool())


def test_a_frame_of_a_single_tile_can_be_a_hit(start: Model) -> None:
    """A tile counted for 3 peaks, and so no frame of fewer than four tiles could have 10."""
    small = simulate_run(
        "photosystem-i-8kev", n_events=24, hit_rate=0.5, seed=1, frame_shape=(350, 350)
    )
    config = start.config
    found = see_events(
        small,
        range(24),
        candidates=config.candidates,
        pooling=config.pooling,
        pool=SerialPool(),
    )
    counts = PeakScorer()(small.source.read(range(24)).pixels, small.detector)
    assert (counts >= HIT_AT_LEAST).sum() > 3
    np.testing.assert_array_equal(found.label == Label.HIT, counts >= HIT_AT_LEAST)
    np.testing.assert_array_equal(found.label == Label.MISS, counts <= MISS_AT_MOST)


def test_a_model_without_calibrated_hits_is_refused(run: Run, start: Model) -> None:
    with pytest.raises(ModelError, match="pass --from default"):
        adapt(run, start=Model(config=ModelConfig(), weights={}), pool=SerialPool())
    bare = {n: w for n, w in start.weights.items() if not n.startswith("calibration.")}
    with pytest.raises(ModelError, match="with 0 hits"):
        adapt(run, start=replace(start, weights=bare), pool=SerialPool())


def test_the_command_writes_a_model_that_scores(run: Run, tmp_path: Path) -> None:
    stored = tmp_path / "run.zarr"
    ingest_run(run, out=stored, pool=SerialPool())
    cli = CliRunner()
    made = cli.invoke(
        app,
        f"train --from default --in {stored} --out {tmp_path / 'model'} --serial --json".split(),
    )
    assert made.exit_code == 0, made.output
    assert "train --from default: needs 12 clear hits" in made.stderr
    facts = json.loads(made.stdout)
    assert {"adapted", "before", "after", "events_labelled", "cpu_seconds"} <= set(facts)
    assert {"loss", "specificity", "threshold", "hits", "blanks"} <= set(facts["before"])
    model = read_model(tmp_path / "model")
    assert model.sha256 == facts["model_sha256"]
    assert "adaptation" in model.card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "default", "--recipe", "modern"], "leave --recipe"),
        (["--from", "default", "--hit-at-least", "9"], "leave --recipe"),
        (["--from", "default", "--window", "centre"], "expected 25 tiles, the window of"),
        (["--sample", "9"], "goes with --from only"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_frame_is_read(
    options: list[str],
    message: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ingest_run(run, out=tmp_path / "run.zarr", pool=SerialPool())
    monkeypatch.setattr(ZarrFrames, "read", None)
    arguments = ["train", "--in", str(tmp_path / "run.zarr"), "--out", str(tmp_path / "model")]
    found = CliRunner().invoke(app, [*arguments, "--serial", *options])
    assert message in str(found.exception)
    assert not (tmp_path / "model").exists()
