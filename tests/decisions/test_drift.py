"""The checks of a run alarm for what matters, not for the hit rate, and what did not run failed."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfxreduce.decisions.assurance import Check
from sfxreduce.decisions.drift import (
    FEWEST_FRAMES,
    FEWEST_PEAKS,
    FEWEST_SCORES,
    FEWEST_SHOWING,
    MOST_FRAMES,
    MOST_OUTSIDE,
    conditions_check,
    opinion_check,
    range_check,
    sampled_events,
    shape_check,
    shape_distance,
    shape_limit,
    usual_shape,
    window_check,
)
from sfxreduce.quality.bad_pixels import FEWEST_FRAMES_FOR_HOT
from sfxreduce.quality.frame_statistics import QUANTITIES, envelope_of, frame_statistics
from sfxreduce.scorers.calibration.record import Reference
from sfxreduce.scorers.cnn.folder import read_model, write_model
from sfxreduce.scorers.cnn.model import Model, ModelConfig

RNG = np.random.default_rng(5)
BLANKS = RNG.gamma(2.0, 1.0, 20_000).astype(np.float32)
HITS = (8 + 3 * RNG.standard_normal(20_000)).astype(np.float32)
STATISTICS = np.tile([5.0, 2.3, 0.0, 0.9, 100.0], (MOST_FRAMES, 1))
KNOWN = Reference(
    hit_scores=HITS,
    blank_scores=BLANKS,
    envelope=envelope_of(STATISTICS),
    peaks=np.array([[0.5, 2.5], [4.0, 150.0]]),
)


def scores_of(n: int, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the hits and the blanks of a run like the calibrated ones."""
    rng = np.random.default_rng(seed)
    hit = rng.random(n) < rate
    return 8 + 3 * rng.standard_normal(int(hit.sum())), rng.gamma(2.0, 1.0, int((~hit).sum()))


def shape(scores: object, *, known: Reference = KNOWN, hits: int = 5, rejected: int = 9) -> Check:
    return shape_check(known, scores, n_hits=hits, n_rejected=rejected)  # type: ignore[arg-type]


def conditions(statistics: np.ndarray, *, gain: float = 20.0) -> Check:
    return conditions_check(KNOWN, statistics, adu_per_photon=gain)


# Shape of the scores


@given(
    rate=st.floats(0, 1),
    n=st.sampled_from([FEWEST_SCORES, 40, 500, 5_000]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_a_change_of_the_hit_rate_alone_is_no_alarm(rate: float, n: int, seed: int) -> None:
    found = shape(np.concatenate(scores_of(n, rate, seed)))
    assert found.passed
    assert found.n == n
    assert found.value is not None
    assert found.limit is not None
    assert found.value <= found.limit


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.1])
def test_blanks_that_score_higher_are_an_alarm(rate: float) -> None:
    hits, blanks = scores_of(20_000, rate, seed=3)
    found = shape(np.concatenate([hits, 1.3 * blanks]))
    assert found.ran
    assert not found.passed
    assert found.value is not None
    assert found.value > shape_limit(20_000, HITS.size, BLANKS.size)
    (alarm,) = found.alarms
    for word in (f"{found.value:.3f}", f"{found.limit:.3f}", "sfxreduce audit draw"):
        assert word in alarm


@pytest.mark.parametrize("n", [0, 1, FEWEST_SCORES - 1])
def test_too_few_scores_have_not_passed(n: int) -> None:
    scores = np.concatenate([*scores_of(n, 0.3, 1), np.full(100, np.nan)])
    found = shape(scores)
    assert (found.ran, found.passed, found.n, found.value) == (False, False, n, None)
    assert found.saves
    assert str(FEWEST_SCORES) in found.alarms[0]


def test_with_so_few_scores_chance_is_as_large_as_an_effect() -> None:
    """The least number of scores is where chance alone is 0.3: what its constant says."""
    large = 10**9
    assert shape_limit(FEWEST_SCORES, large, large) - 0.02 == pytest.approx(0.3, abs=0.005)


@pytest.mark.parametrize(("hits", "rejected"), [(0, 50), (50, 0)])
def test_without_hits_or_without_rejects_there_is_no_mixture(hits: int, rejected: int) -> None:
    found = shape(np.concatenate(scores_of(50, 0.3, 1)), hits=hits, rejected=rejected)
    assert not found.passed
    assert found.alarms
    assert not found.saves


@pytest.mark.parametrize("name", ["hit_scores", "blank_scores"])
def test_without_stored_scores_the_shape_has_not_passed(name: str) -> None:
    bare = replace(KNOWN, **{name: np.zeros(0, np.float32)})  # type: ignore[arg-type]
    found = shape(np.concatenate(scores_of(50, 0.3, 1)), known=bare)
    assert not found.passed
    assert found.alarms


@given(seed=st.integers(0, 1000), n=st.integers(1, 30))
@settings(deadline=None)
def test_the_distance_is_that_of_the_best_of_all_hit_rates(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    run, hits, blanks = rng.normal(1, 2, n), rng.normal(3, 1, 12), rng.normal(0, 1, 15)
    at = np.sort(np.concatenate([run, hits, blanks]))
    f_run, f1, f0 = (np.mean(of[:, None] <= at, axis=0) for of in (run, hits, blanks))
    tried = [np.abs(f_run - h * f1 - (1 - h) * f0).max() for h in np.linspace(0, 1, 2001)]
    assert shape_distance(run, hits, blanks) == pytest.approx(min(tried), abs=1e-3)


def test_experiments_that_differ_widen_what_is_usual() -> None:
    alike = usual_shape([HITS[:900], HITS[900:1800]], [BLANKS[:900], BLANKS[900:1800]])
    apart = usual_shape([HITS[:900], HITS[900:1800]], [BLANKS[:900], 5 * BLANKS[900:1800]])
    assert 2 * alike < apart
    assert usual_shape([HITS], [BLANKS]) == 0


# Conditions


def test_frames_outside_the_envelope_are_named_and_a_few_are_no_drift() -> None:
    assert conditions(STATISTICS).passed
    for column, quantity in enumerate(QUANTITIES):
        odd = STATISTICS.copy()
        odd[:, column] += 10 * (odd[:, column] + quantity.slack)
        found = conditions(odd)
        assert [alarm.startswith(quantity.name) for alarm in found.alarms] == [True]
        assert quantity.unit in found.alarms[0]
        assert (found.value, found.limit) == (1.0, MOST_OUTSIDE)
        odd[8:] = STATISTICS[8:]
        assert conditions(odd).passed


@pytest.mark.parametrize("n", [0, 1, FEWEST_FRAMES - 1, FEWEST_FRAMES_FOR_HOT - 1])
def test_too_few_frames_have_not_passed(n: int) -> None:
    found = conditions(STATISTICS[:n])
    assert not found.passed
    assert found.n == n
    assert found.ran == (n >= FEWEST_FRAMES)
    assert f"{n} readable frames" in found.alarms[0]


@pytest.mark.parametrize("column", range(len(QUANTITIES)))
def test_a_quantity_that_could_not_be_measured_has_not_passed(column: int) -> None:
    odd = STATISTICS.copy()
    odd[FEWEST_FRAMES:, column] = np.nan
    assert conditions(odd).passed
    odd[FEWEST_FRAMES - 1, column] = np.nan
    assert [QUANTITIES[column].name in alarm for alarm in conditions(odd).alarms] == [True]


@pytest.mark.parametrize("gain", [float("nan"), 0.0, -1.0, float("inf")])
def test_an_unknown_gain_and_an_unknown_envelope_are_named(gain: float) -> None:
    assert "gain" in conditions(STATISTICS, gain=gain).alarms[0]
    bare = replace(KNOWN, envelope=np.zeros((0, 2)))
    assert not conditions_check(bare, STATISTICS, adu_per_photon=20.0).passed


@pytest.mark.parametrize("gain", [1.0, 20.0])
def test_statistics_of_frames_are_those_of_their_photons(gain: float) -> None:
    photons = np.random.default_rng(1).poisson(6.0, (3, 2, 64, 80))
    good = np.ones((2, 64, 80), bool)
    good[0, :16] = False
    photons[:, 1, 30, 30] = 200
    found = frame_statistics(gain * photons, good, adu_per_photon=gain, saturation_adu=150 * gain)
    background, noise, full, usable, bright = found.mean(axis=0)
    assert background == pytest.approx(6, rel=0.05)
    assert noise == pytest.approx(6**0.5, rel=0.05)
    assert usable == pytest.approx(1 - 16 / 128)
    assert full == pytest.approx(1 / good.sum())
    assert bright == pytest.approx(1e6 / good.sum(), rel=0.5)
    assert np.isnan(frame_statistics(photons, ~good & False)[:, 0]).all()


def test_a_frame_smaller_than_a_cell_tells_nothing() -> None:
    found = frame_statistics(np.ones((2, 10, 12), np.int16), np.ones((10, 12), np.bool_))
    assert found.shape == (2, len(QUANTITIES))
    assert np.isnan(found[:, :3]).all()


def test_a_sample_is_even_and_bounded() -> None:
    for n in (0, 1, 31, 32, 33, 10**7):
        events = sampled_events(n)
        assert len(events) == len(set(events)) == min(n, MOST_FRAMES)
        assert not n or (events[0] == 0 and max(events) <= n - 1)


# Second opinion, window and range


@given(
    n_rejected=st.integers(0, 1000),
    n_looked=st.integers(0, 256),
    implied=st.floats(0, 1),
    most=st.floats(0.001, 0.5),
)
def test_a_second_opinion_counts_only_if_it_saw_enough(
    n_rejected: int, n_looked: int, implied: float, most: float
) -> None:
    found = opinion_check(
        n_looked=min(n_looked, n_rejected),
        n_rejected=n_rejected,
        n_called=int(implied > 0),
        implied_loss=implied,
        max_loss=most,
    )
    enough = n_looked >= min(MOST_FRAMES, n_rejected)
    assert found.ran == enough
    assert found.passed == (enough and implied <= most)
    assert bool(found.alarms) != found.passed
    assert (found.value, found.limit) == (implied, most)


@pytest.mark.parametrize(
    ("highest", "threshold", "passes"),
    [(None, 0.99, True), (0.0744, 0.0836, False), (0.5, 0.5, False), (0.5, 0.34, False),
     (0.5, 0.33, True), (0.9, 0.5, True), (1.0, 0.999, True)],
)  # fmt: skip
def test_the_highest_score_possible_has_to_clear_the_threshold(
    highest: float | None, threshold: float, passes: bool
) -> None:
    def check(*, calibrated: bool) -> Check:
        return window_check(
            n_tiles=1, is_calibrated=calibrated, highest=highest, threshold=threshold
        )

    found = check(calibrated=True)
    assert (found.ran, found.passed, found.n) == (True, passes, 1)
    assert all(f"{highest:.3g}" in alarm and "1 tile " in alarm for alarm in found.alarms)
    assert not check(calibrated=False).passed


def peaks_of(n: int, *, number: int = 20, width: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    return np.full(n, number, np.int16), np.full(n, width, np.float32)


@pytest.mark.parametrize(
    ("number", "width", "word"),
    [(20, 4.0, "width"), (20, 0.2, "width"), (400, 1.0, "number"), (20, 1.0, "")],
)
def test_peaks_unlike_the_calibrated_ones_are_named(number: int, width: float, word: str) -> None:
    usual, odd = peaks_of(12), peaks_of(5, number=number, width=width)
    none = np.zeros(500, np.int16), np.full(500, np.nan, np.float32)
    peaks, widths = (np.concatenate(of) for of in zip(usual, odd, none, strict=True))
    found = range_check(KNOWN, peaks=peaks, width_px=widths)
    assert found.n == 17
    assert [word in alarm for alarm in found.alarms] == [True] * bool(word)
    assert found.passed == (not word)
    few = range_check(KNOWN, peaks=np.delete(peaks, 12), width_px=np.delete(widths, 12))
    assert few.passed


@pytest.mark.parametrize("n", [0, FEWEST_SHOWING - 1])
def test_too_few_events_with_peaks_have_not_passed(n: int) -> None:
    uncounted = np.full(300, -1, np.int16), np.full(300, np.nan, np.float32)
    few = peaks_of(300, number=FEWEST_PEAKS - 1)
    for others in (uncounted, few):
        peaks, widths = (np.concatenate(of) for of in zip(peaks_of(n), others, strict=True))
        found = range_check(KNOWN, peaks=peaks, width_px=widths)
        assert (found.ran, found.passed, found.n) == (False, False, n)
        assert not found.saves
    bare = replace(KNOWN, peaks=np.zeros((0, 2)))
    assert not range_check(bare, peaks=peaks_of(9)[0], width_px=peaks_of(9)[1]).passed


def test_the_reference_is_stored_with_the_model(tmp_path: Path) -> None:
    bare = Model(config=ModelConfig(), weights={"w": np.zeros(3, np.float32)})
    assert not bare.reference.envelope.size
    assert not bare.reference.blank_scores.size
    assert not bare.reference.peaks.size
    arrays = {
        "calibration.hit_scores": HITS[:50],
        "calibration.blank_scores": BLANKS[:70],
        "calibration.usual_shape": np.float32([0.25]),
        "calibration.envelope": envelope_of(STATISTICS).astype(np.float32),
        "calibration.peaks": np.float32([[0.5, 4], [3, 99]]),
    }
    write_model(tmp_path / "model", replace(bare, weights={**bare.weights, **arrays}))
    found = read_model(tmp_path / "model").reference
    np.testing.assert_array_equal(found.blank_scores, BLANKS[:70])
    np.testing.assert_allclose(found.envelope, envelope_of(STATISTICS), rtol=1e-6)
    np.testing.assert_array_equal(found.peaks, [[0.5, 4], [3, 99]])
    assert (found.hit_scores.size, found.usual_shape) == (50, 0.25)


def test_every_command_and_option_that_an_alarm_names_exists() -> None:
    # One advised an option that there is not.
    from typer.main import get_command

    from sfxreduce_cli.main import app

    source = Path(inspect.getfile(range_check)).read_text(encoding="utf-8")
    commands = get_command(app).commands  # type: ignore[attr-defined]
    options = {o for c in commands.values() for p in c.params for o in p.opts}
    named = re.findall(r"'sfxreduce (\w+)", source)
    assert named
    assert set(named) <= set(commands)
    assert set(re.findall(r"--[a-z][a-z-]*", source)) <= options
