"""Events unlike the calibrated ones are told, the same by whatever device; usual ones are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from planted import ArrayFrames
from scipy.ndimage import gaussian_filter

from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.decide import Decision
from sfxreduce.errors import ModelError, UsageError
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.folder import default_model, read_model, write_model
from sfxreduce.scorers.cnn.model import CALIBRATION, USUAL, USUAL_FIRST
from sfxreduce.scorers.cnn.on_torch import device_scorer
from sfxreduce.scorers.cnn.patches.candidates import Candidates
from sfxreduce.scorers.cnn.patches.outliers import TRAITS, Usual, event_traits
from sfxreduce.scorers.cnn.poster.gpu import DeviceSettings, Feed
from sfxreduce.scorers.cnn.scorer import CnnScorer
from sfxreduce.simulate.run import simulate_run
from sfxreduce.train.patches.outliers import (
    MOST_UNLIKE,
    conformal_limit,
    fit_usual,
    shrunk_covariance,
    with_usual,
)
from sfxreduce.train.patches.simulated import as_seen

N_TRAITS = len(TRAITS)
Frame = NDArray[np.float64]


# What is usual


@st.composite
def experiments(draw: st.DrawFn) -> list[NDArray[np.float64]]:
    """Traits of three to five experiments, of heavy tails, some of them not measured."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    found = []
    for _ in range(draw(st.integers(3, 5))):
        n = draw(st.integers(2, 400))
        traits = rng.normal(0, 0.2, N_TRAITS) + 0.1 * rng.standard_t(2, (n, N_TRAITS))
        traits[rng.random(n) < 0.05, 1:] = np.nan
        found.append(traits)
    return found


@given(traits=experiments(), share=st.sampled_from([MOST_UNLIKE, 0.01, 0.1]))
def test_no_more_left_out_events_lie_beyond_the_limit_than_may(
    traits: list[NDArray[np.float64]], share: float
) -> None:
    usual = fit_usual(traits, share=share)
    distances = np.concatenate(
        [fit_usual([o for o in traits if o is not one]).distance(one) for one in traits]
    )
    n = distances.size
    beyond = np.count_nonzero(distances > usual.limit)
    assert beyond <= share * n
    assert beyond + 1 > min(share * (n + 1), n) - 1  # and the limit is no larger than need be
    again = fit_usual(traits, share=share)
    np.testing.assert_array_equal(usual.whitening, again.whitening)
    assert usual.limit == again.limit


def test_a_further_event_is_beyond_the_limit_as_seldom_as_promised() -> None:
    rng = np.random.default_rng(0)
    beyond = [rng.exponential() > conformal_limit(rng.exponential(size=60), share=0.05)
              for _ in range(4000)]  # fmt: skip
    assert 0.03 < np.mean(beyond) <= 0.06


def test_the_distance_is_that_of_mahalanobis_in_units_of_slack() -> None:
    rng = np.random.default_rng(1)
    traits = [rng.normal(size=(300, N_TRAITS)) @ rng.normal(size=(N_TRAITS,) * 2) for _ in range(3)]
    together = np.concatenate(traits)
    slack = np.array([trait.slack for trait in TRAITS])
    apart = (together - together.mean(axis=0)) / slack
    inverse = np.linalg.inv(shrunk_covariance(apart) + np.eye(N_TRAITS))
    expected = np.sqrt(np.einsum("ei,ij,ej->e", apart, inverse, apart))
    np.testing.assert_allclose(fit_usual(traits).distance(together), expected, rtol=1e-9)


def test_the_covariance_is_shrunk_as_ledoit_and_wolf_do() -> None:
    rows = np.random.default_rng(2).standard_t(5, size=(12, 4))
    n, p = rows.shape
    sample = sum(np.outer(row, row) for row in rows) / n
    level = np.trace(sample) / p
    spread = np.linalg.norm(sample - level * np.eye(p)) ** 2 / p
    noise = sum(np.linalg.norm(np.outer(row, row) - sample) ** 2 for row in rows) / p / n**2
    weight = min(noise, spread) / spread
    assert 0 < weight < 1
    expected = weight * level * np.eye(p) + (1 - weight) * sample
    np.testing.assert_allclose(shrunk_covariance(rows), expected, rtol=1e-12)


def test_a_trait_that_never_varies_makes_no_alarm_of_nothing() -> None:
    traits = [np.random.default_rng(n).normal(size=(50, N_TRAITS)) for n in range(3)]
    for one in traits:
        one[:, 0] = 0.0
    usual = fit_usual(traits)
    event = usual.mean.copy()
    event[0] = TRAITS[0].slack
    assert usual.distance(event[np.newaxis])[0] <= 1.0


def test_one_experiment_is_too_few() -> None:
    with pytest.raises(UsageError, match="at least 2 experiments, found 1"):
        fit_usual([np.zeros((5, N_TRAITS))])


# In a model


def test_what_is_usual_comes_back_from_a_model(tmp_path: Path) -> None:
    whole = read_model(default_model())
    assert whole.usual is not None
    bare = whole.without_usual()
    assert bare.usual is None
    assert whole.usual_first is not None
    assert set(whole.weights) - set(bare.weights) == {*USUAL, *USUAL_FIRST}
    again = with_usual(bare, whole.usual)
    write_model(tmp_path / "again", with_usual(again, whole.usual_first, names=USUAL_FIRST))
    assert read_model(tmp_path / "again").sha256 == whole.sha256
    write_model(tmp_path / "bare", bare)
    assert read_model(tmp_path / "bare").usual is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"traits_limit": None}, "or nothing of it, found no"),
        ({"traits_mean": np.zeros(3, np.float32)}, r"found \(3,\)"),
        ({"traits_mean": np.full(N_TRAITS, np.nan, np.float32)}, "finite arrays"),
        ({"traits_whitening": np.ones(N_TRAITS, np.float32)}, r"of shapes \(7,\) and \(7, 7\)"),
        ({"traits_limit": np.array([0.0], np.float32)}, "a positive limit"),
        ({"traits_limit": np.zeros(0, np.float32)}, "a positive limit"),
    ],
)
def test_a_damaged_part_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, NDArray[np.float32] | None], message: str
) -> None:
    whole = read_model(default_model())
    weights = dict(whole.weights)
    for name, array in change.items():
        if array is None:
            del weights[f"{CALIBRATION}{name}"]
        else:
            weights[f"{CALIBRATION}{name}"] = array
    write_model(tmp_path / "odd", replace(whole, weights=weights))
    with pytest.raises(ModelError, match=message) as raised:
        read_model(tmp_path / "odd")
    assert "\n" not in str(raised.value)
    assert "model.safetensors" in str(raised.value)


# Events


def stripes(frame: Frame, rng: np.random.Generator) -> Frame:
    return frame + 6 * spread(frame) * (np.arange(frame.shape[1]) % 50 == 0)


def waves(frame: Frame, rng: np.random.Generator) -> Frame:
    return frame + 3 * spread(frame) * np.sin(np.arange(frame.shape[1]) / 3)


def blocks(frame: Frame, rng: np.random.Generator) -> Frame:
    """Every square of 25 x 25 pixels with an offset of its own, as when calibration is lost."""
    n_y, n_x = frame.shape
    offset = rng.normal(0, 5 * spread(frame), (n_y // 25 + 1, n_x // 25 + 1))
    return frame + np.kron(offset, np.ones((25, 25)))[:n_y, :n_x]


def clouds(frame: Frame, rng: np.random.Generator) -> Frame:
    noise = gaussian_filter(rng.normal(size=frame.shape), 3)
    return np.median(frame) + 10 * spread(frame) * noise


def even_noise(frame: Frame, rng: np.random.Generator) -> Frame:
    return rng.uniform(0, 2 * np.median(frame), frame.shape)


def rings(frame: Frame, rng: np.random.Generator) -> Frame:
    """Ice: the model knows it from calibration, and it is not unlike."""
    y, x = np.indices(frame.shape)
    radius = np.hypot(y - frame.shape[0] / 2, x - frame.shape[1] / 2)
    light = sum(np.exp(-0.5 * ((radius - r) / 1.5) ** 2) for r in (300, 430, 600))
    return frame + rng.poisson(800 * light / GAIN) * GAIN


def dark(frame: Frame, rng: np.random.Generator) -> Frame:
    """Little light is no reason to keep a frame."""
    photons = np.clip(np.rint(frame / GAIN), 0, None).astype(np.int64)
    return rng.binomial(photons, 0.003) * GAIN + rng.normal(0, 0.2 * GAIN, frame.shape)


def spread(frame: Frame) -> float:
    return float(frame[600:800, 300:500].std())


GAIN = 20.0
UNLIKE = (stripes, waves, blocks, clouds, even_noise)
NOT_UNLIKE = (rings, dark)


@pytest.fixture(scope="module")
def run() -> Run:
    """Simulated events; blanks take the place of those that the next fixture spoils."""
    return simulate_run("photosystem-i-8kev", n_events=24, hit_rate=0.3, seed=77)


@pytest.fixture(scope="module")
def spoilt(run: Run) -> tuple[Run, dict[str, int]]:
    """The run in memory, with one odd frame of each kind in place of a blank, and where."""
    assert run.truth is not None
    detector = replace(run.detector, adu_per_photon=GAIN)
    frames = run.source.read(range(run.n_events)).pixels.copy()
    frames = frames.reshape(run.n_events, *run.detector.frame_shape)
    blanks = np.flatnonzero(run.truth.n_crystals.values == 0)
    assert blanks.size > len(UNLIKE) + len(NOT_UNLIKE)
    rng, lowest = np.random.default_rng(5), np.iinfo(frames.dtype)
    places = {}
    for event, spoil in zip(blanks.tolist(), (*UNLIKE, *NOT_UNLIKE), strict=False):
        made = spoil(frames[event].reshape(frames.shape[-2:]).astype(np.float64), rng)
        frames[event] = np.clip(np.rint(made), lowest.min, lowest.max).reshape(frames[event].shape)
        places[spoil.__name__] = event
    source = ArrayFrames(frames=frames, detector=detector)
    return replace(run, source=source, columns=run.columns), places


def test_odd_events_are_undecided_and_usual_ones_are_not_flagged(
    spoilt: tuple[Run, dict[str, int]],
) -> None:
    run, places = spoilt
    plan = plan_filter(
        run,
        FilterSettings(scorer=CnnScorer(default_model()), drift=False, audit_share=0.0),
        pool=SerialPool(),
    )
    unlike = np.flatnonzero(plan.decisions.reason & Reason.OUT_OF_DISTRIBUTION).tolist()
    # A hit by its first tiles is not looked at any further, and has no reason.
    hits = np.flatnonzero(plan.decisions.decision == Decision.HIT).tolist()
    spoiled = {places[spoil.__name__] for spoil in UNLIKE}
    assert set(unlike) <= spoiled <= {*unlike, *hits}
    assert len(unlike) >= len(UNLIKE) - 1
    assert not (plan.decisions.decision[unlike] == Decision.REJECT).any()
    assert plan.decisions.decision[places["dark"]] == Decision.REJECT


def test_devices_batches_and_rounds_tell_the_same(spoilt: tuple[Run, dict[str, int]]) -> None:
    run, places = spoilt
    events = sorted(places.values())
    scorer = CnnScorer(default_model())
    detector = as_seen(run).source.detector
    window = scorer.window(detector)
    pixels = run.source.read(events, window).pixels
    together = scorer.classify(pixels, detector)
    assert np.count_nonzero(together.reason) == len(UNLIKE)
    alone = [scorer.classify(pixels[n : n + 1], detector).reason[0] for n in range(len(events))]
    np.testing.assert_array_equal(alone, together.reason)
    device = device_scorer(
        read_model(default_model()), DeviceSettings(device="cpu", tiles=50, n_threads=2)
    )
    feed = Feed.of(
        pixels,
        good=window.good(detector),
        adu_per_photon=detector.adu_per_photon,
        window=window,
    )
    np.testing.assert_array_equal(device.score(feed).reason, together.reason)


def test_no_event_is_unlike_through_a_window_of_no_calibration(
    spoilt: tuple[Run, dict[str, int]],
) -> None:
    run, places = spoilt
    scorer = CnnScorer(default_model(), looks_at="centre")
    pixels = run.source.read([places["waves"]], scorer.window(run.detector)).pixels
    assert not scorer.classify(pixels, run.detector).reason.any()


def test_a_model_without_it_flags_nothing(
    tmp_path: Path, spoilt: tuple[Run, dict[str, int]]
) -> None:
    run, places = spoilt
    write_model(tmp_path / "bare", read_model(default_model()).without_usual())
    scorer = CnnScorer(tmp_path / "bare")
    pixels = run.source.read([places["waves"]], scorer.window(run.detector)).pixels
    found = scorer.classify(pixels, run.detector)
    whole = CnnScorer(default_model()).classify(pixels, run.detector)
    assert not found.reason.any()
    assert whole.reason.all()
    np.testing.assert_array_equal(found.score, whole.score)


@pytest.mark.parametrize("what", ["independent_sim/dev.cxi", "thaumatin_grid"])
def test_no_independent_frame_is_taken_for_unlike(shared_data: Path, what: str) -> None:
    path = shared_data / what
    run = as_seen(open_run(sorted(path.glob("*.cbf.bz2"))) if path.is_dir() else open_run(path))
    scorer = CnnScorer(default_model())
    detector = run.source.detector
    pixels = run.source.read(range(run.n_events), scorer.window(detector)).pixels
    assert not scorer.classify(pixels, detector).reason.any()


def _candidates(*, noise: float, n: int) -> Candidates:
    places = np.arange(n, dtype=np.int16)
    return Candidates(
        tile=np.zeros(n, np.int32),
        y=places,
        x=places,
        scale=np.ones(n, np.uint8),
        prominence=np.full(n, 5.0, np.float32),
        noise_photons=np.full(n, noise, np.float32),
        patch=np.zeros((n, 9, 9), np.float16),
    )


def test_too_few_candidates_are_usual_in_the_dark_alone() -> None:
    window = Window.tiled(Detector.centred("camera", (350, 350)))
    few = _candidates(noise=2.0, n=1)
    assert event_traits(few, window, n_events=1)[0, 0] > 1.0
    assert np.isnan(event_traits(few, window, n_events=1)[0, 1:]).all()
    assert event_traits(_candidates(noise=0.5, n=1), window, n_events=1)[0, 0] == 0.0
    assert event_traits(_candidates(noise=2.0, n=4), window, n_events=1)[0, 0] == 0.0
    none = event_traits(_candidates(noise=2.0, n=0), window, n_events=2)
    assert none.shape == (2, N_TRAITS)
    assert np.isnan(none).all()
    usual = Usual(mean=np.ones(N_TRAITS), whitening=np.eye(N_TRAITS), limit=1.0)
    assert not usual.is_unlike(none).any()
