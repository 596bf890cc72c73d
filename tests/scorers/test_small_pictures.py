"""Small pictures have a calibration of their own, by which their crystals can be hits."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.decide import Decision
from sfxreduce.decisions.drift import LEAST_MARGIN, window_check
from sfxreduce.decisions.method import threshold_rule
from sfxreduce.decisions.threshold import Promise
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.detector import Detector
from sfxreduce.run.window import TileChoice
from sfxreduce.scorers.calibration.record import LevelRule
from sfxreduce.scorers.cnn.folder import default_model
from sfxreduce.scorers.cnn.model import Model, ModelConfig
from sfxreduce.scorers.cnn.patches.pooling import Pooling
from sfxreduce.scorers.cnn.scorer import CnnScorer
from sfxreduce.scorers.protocol import calibration_of
from sfxreduce.simulate.run import simulate_run
from sfxreduce.simulate.truth import HIT_PEAKS

SERIAL = SerialPool()


def sized(*sizes: int) -> Model:
    """A model whose hits score one thousandth of the tiles of their picture."""
    arrays = {
        "calibration.hit_scores": np.full(400, 0.025, np.float32),
        "weight": np.ones(3, np.float32),
    }
    for size in sizes:
        arrays |= {
            f"calibration.of_{size}.hit_scores": np.full(400, size / 1000, np.float32),
            f"calibration.of_{size}.hit_groups": np.full(400, size, np.int32),
            f"calibration.of_{size}.blank_scores": np.full(50, size / 5000, np.float32),
            f"calibration.of_{size}.usual_shape": np.full(1, size / 100, np.float32),
            f"calibration.of_{size}.level": np.array([-size, size], np.float64),
        }
    config = ModelConfig(
        architecture="patches",
        window=TileChoice(most=25),
        level=LevelRule(power=0.5, lowest=-6.0, highest=-4.0),
    )
    return Model(config=config, weights=arrays)


@settings(max_examples=60)
@given(n_tiles=st.integers(1, 200), sizes=st.sets(st.integers(1, 24), min_size=1))
def test_a_picture_is_judged_by_the_nearest_size(n_tiles: int, sizes: set[int]) -> None:
    model = sized(*sizes)
    own = model.of_size(n_tiles)
    by_factor = {size: max(size / n_tiles, n_tiles / size) for size in (*sizes, 25)}
    if n_tiles >= 25 or by_factor[25] < min(by_factor[size] for size in sizes):
        assert own is model
        return
    size = round(float(own.hit_scores[0]) * 1000)
    assert by_factor[size] == pytest.approx(min(by_factor.values()))
    assert (own.config.level.lowest, own.config.level.highest) == (-size, size)
    assert own.config.level.power == model.config.level.power
    assert set(own.hit_groups.tolist()) == {size}
    np.testing.assert_allclose(own.reference.blank_scores, size / 5000)
    assert own.reference.usual_shape == pytest.approx(size / 100)
    np.testing.assert_array_equal(own.weights["weight"], model.weights["weight"])
    assert "calibration.level" not in own.weights


@pytest.mark.parametrize("n_tiles", [1, 9, 25, 80])
def test_without_a_calibration_of_sizes_a_model_is_itself(n_tiles: int) -> None:
    model = sized()
    assert model.of_size(n_tiles) is model


@given(n_tiles=st.integers(1, 100), most=st.floats(0.5, 10))
def test_fewer_tiles_count_for_more_each_and_for_less_together(n_tiles: int, most: float) -> None:
    pooling = Pooling(most_per_tile=most)
    assert pooling.cap(n_tiles) >= pooling.cap(n_tiles + 1) >= most
    assert n_tiles * pooling.cap(n_tiles) <= (n_tiles + 1) * pooling.cap(n_tiles + 1)
    full = np.full((1, n_tiles), 1e6)
    score = pooling.probability(pooling.pooled(full, n_tiles=n_tiles))[0]
    assert score == pytest.approx(pooling.highest(n_tiles, n_tiles=n_tiles), rel=1e-6)


@pytest.mark.parametrize("shape", [(350, 350), (700, 350), (700, 700), (1050, 1050), (1750, 1750)])
def test_a_crystal_on_every_tile_clears_the_shipped_threshold(shape: tuple[int, int]) -> None:
    scorer, detector = CnnScorer(default_model()), Detector.centred("camera", shape)
    n_tiles = len(scorer.window(detector).origins)
    known = calibration_of(scorer, detector)
    assert known.highest == scorer._read().config.pooling.highest(n_tiles, n_tiles=n_tiles)
    rule = threshold_rule(scorer, promise=Promise(), detector=detector)
    assert rule.claim is not None
    assert rule.claim.certified
    check = window_check(
        n_tiles=n_tiles, is_calibrated=True, highest=known.highest, threshold=rule.value
    )
    assert check.passed
    assert known.highest / (1 - known.highest) >= LEAST_MARGIN * rule.value / (1 - rule.value)


@pytest.fixture(scope="module")
def bare_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of one tile in a file that says nothing else of them."""
    path = tmp_path_factory.mktemp("small") / "run.cxi"
    run = simulate_run(
        "photosystem-i-8kev", n_events=48, hit_rate=0.4, seed=6, frame_shape=(350, 350)
    )
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        file["entry_1/data_1/data"] = run.source.read(range(run.n_events)).pixels
    return path


def test_crystals_on_one_tile_without_metadata_are_kept(bare_file: Path) -> None:
    truth = simulate_run(
        "photosystem-i-8kev", n_events=48, hit_rate=0.4, seed=6, frame_shape=(350, 350)
    ).truth
    assert truth is not None
    hit = truth.n_peaks.values >= HIT_PEAKS
    assert hit.sum() >= 5
    scorer = CnnScorer(default_model())
    alone = plan_filter(
        open_run(bare_file),
        FilterSettings(scorer=scorer, drift=False, keep_from_peaks=0, audit_share=0.0),
        pool=SERIAL,
    )
    assert alone.decisions.count(Decision.HIT) > 0
    assert alone.method.threshold < calibration_of(scorer, alone.run.detector).highest  # type: ignore[operator]
    plan = plan_filter(
        open_run(bare_file), FilterSettings(scorer=scorer, audit_share=0.0), pool=SERIAL
    )
    assert not (plan.decisions.decision[hit] == Decision.REJECT).any()
    blank = truth.n_crystals.values == 0
    assert (plan.decisions.decision[blank] == Decision.REJECT).any()


def test_where_no_score_can_be_a_hit_nothing_is_promised(bare_file: Path) -> None:
    """All tiles at their cap, and still below the threshold: it was once certified."""
    scorer = CnnScorer(default_model())
    run = open_run(bare_file)
    highest = calibration_of(scorer, run.detector).highest
    assert highest is not None
    plan = plan_filter(run, FilterSettings(scorer=scorer, threshold=highest), pool=SERIAL)
    assert not plan.method.assurance.checks["window"].passed
    assert not plan.method.claims["certified"]
