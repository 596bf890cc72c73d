"""A pixel is measured against its own surroundings, whatever the detector's units."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sfxreduce.scorers.cnn.poster.normalise import Normalisation, normalise

SHAPE = (40, 50)
GOOD = np.ones((1, *SHAPE), bool)


def _frame(seed: int, *, photons: float = 4.0, peak: int = 300) -> NDArray[np.int32]:
    """One event of one tile: a slope of photons with a few peaks."""
    rng = np.random.default_rng(seed)
    level = photons * (0.5 + np.linspace(0, 1, SHAPE[0]))[:, None] * np.ones(SHAPE)
    counts = rng.poisson(level)
    y, x = rng.integers(2, 38, (2, 5))
    counts[y, x] += peak
    return counts[None, None].astype(np.int32)


def _brute_force(
    frame: NDArray[np.int32], good: NDArray[np.bool_], how: Normalisation, least: float
) -> NDArray[np.float64]:
    """The same, pixel by pixel and box by box."""

    def box(of: NDArray[np.float64], use: NDArray[np.bool_], y: int, x: int) -> NDArray[np.float64]:
        region = np.s_[
            max(y - how.radius, 0) : y + how.radius + 1, max(x - how.radius, 0) : x + how.radius + 1
        ]
        return of[region][use[region]]

    value = frame.astype(np.float64)
    use = good.copy()
    mean, variance = value.copy(), np.full(value.shape, least)
    for done in range(how.passes):
        if done:
            use = good & ((value - mean) ** 2 <= how.reject_sigma**2 * variance)
        for y, x in np.ndindex(*value.shape):
            inside = box(value, use, y, x)
            if inside.size >= how.fewest_pixels:
                mean[y, x] = inside.mean()
                variance[y, x] = max(inside.var(ddof=1), least)
    sigmas = np.where(good, (value - mean) / np.sqrt(variance), 0.0)
    return np.clip(sigmas, how.lowest, how.highest)


@given(
    seed=st.integers(0, 99),
    radius=st.integers(2, 30),
    share=st.floats(0, 0.9),
    passes=st.integers(1, 3),
    # With the brighter ones, sums of squares do not fit into 32 bits.
    peak=st.sampled_from([300, 5_000, 300_000]),
    dtype=st.sampled_from([np.int32, np.uint32, np.float32]),
)
@settings(max_examples=25, deadline=None)
def test_running_sums_equal_boxes_counted_one_by_one(
    seed: int, radius: int, share: float, passes: int, peak: int, dtype: type[np.number]
) -> None:
    frame = _frame(seed, peak=peak).astype(dtype)
    good = np.random.default_rng(seed).random(SHAPE) >= share
    how = Normalisation(radius=radius, passes=passes)
    found = normalise(frame, good[None], adu_per_photon=1.0, how=how)
    expected = _brute_force(frame[0, 0], good, how, 0.25)
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-4)


@given(seed=st.integers(0, 99), gain=st.integers(2, 60), offset=st.integers(-500, 500))
@settings(max_examples=20, deadline=None)
def test_gain_and_offset_change_nothing(seed: int, gain: int, offset: int) -> None:
    photons = _frame(seed)
    how = Normalisation()
    plain = normalise(photons, GOOD, adu_per_photon=1.0, how=how)
    adu = normalise(photons * gain + offset, GOOD, adu_per_photon=float(gain), how=how)
    np.testing.assert_allclose(plain, adu, atol=1e-4)


@given(seed=st.integers(0, 99), junk=st.sampled_from([-1, -(2**31), 1046527, 2**31 - 1]))
@settings(max_examples=20, deadline=None)
def test_what_a_masked_pixel_holds_changes_nothing(seed: int, junk: int) -> None:
    frame = _frame(seed)
    good = np.random.default_rng(seed).random(GOOD.shape) > 0.2
    spoilt = np.where(good, frame, junk).astype(np.int32)
    how = Normalisation()
    expected = normalise(frame, good, how=how)
    np.testing.assert_array_equal(normalise(spoilt, good, how=how), expected)
    assert not expected[0, ~good].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
def test_every_integer_dtype_gives_the_same_picture(dtype: type[np.integer]) -> None:
    frame = np.minimum(_frame(3), 255)
    how = Normalisation()
    np.testing.assert_array_equal(
        normalise(frame.astype(dtype), GOOD, how=how), normalise(frame, GOOD, how=how)
    )


def test_one_unmasked_sentinel_leaves_distant_pixels_alone() -> None:
    frame = _frame(5)
    spoilt = frame.copy()
    spoilt[0, 0, 5, 5] = 2**31 - 1
    how = Normalisation(radius=5)
    plain, seen = (normalise(f, GOOD, how=how)[0, 0] for f in (frame, spoilt))
    # A box reaches 5 pixels; what it left out reaches 5 further in the next pass.
    reach = 5 + 5 * how.passes + 1
    np.testing.assert_allclose(seen[reach:], plain[reach:], atol=1e-3)
    np.testing.assert_allclose(seen[:, reach:], plain[:, reach:], atol=1e-3)


def test_single_photons_on_a_dark_frame_stay_below_a_peak() -> None:
    dark = np.random.default_rng(0).poisson(0.005, (1, 1, *SHAPE)) * 20
    assert normalise(dark, GOOD, adu_per_photon=20.0, how=Normalisation()).max() < 2.5


def test_pixels_that_are_no_number_count_as_masked() -> None:
    frame = _frame(1).astype(np.float32)
    frame[0, 0, :9, 3] = np.nan
    seen = normalise(frame, GOOD, how=Normalisation())
    assert np.isfinite(seen).all()
    assert not seen[0, 0, :9, 3].any()
