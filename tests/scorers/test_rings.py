"""Background in rings: side by side, each ring is added up as it would be alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sfxreduce.scorers.peaks._lanes import LANES
from sfxreduce.scorers.peaks._rings import (
    CLIP_ROUNDS,
    PeakLimits,
    radial_bins,
    side_by_side,
    thresholds,
)


def alone(values: NDArray[np.float32], limits: PeakLimits) -> np.float32:
    """Threshold of one ring, its values added one after the other."""
    kept = [float(value) for value in values if math.isfinite(value)]
    mean = kept[0] if kept else 0.0
    sigma = excess = 0.0
    low, high = -math.inf, math.inf
    for _ in range(CLIP_ROUNDS):
        inside = [value for value in kept if low <= value <= high]
        if not inside:
            break
        one = two = three = 0.0
        for value in inside:
            off = value - mean
            one += off
            two += off * off
            three += off * off * off
        n = len(inside)
        shift = one / n
        variance = max(two / n - shift * shift, 0.0)
        third = three / n - 3 * shift * two / n + 2 * (shift * shift * shift)
        mean, sigma = mean + shift, math.sqrt(variance)
        excess = third / variance if variance > 0 else 0.0
        reach = limits.min_snr * max(sigma, limits.min_sigma)
        low, high = mean - reach, mean + reach
        if min(inside) >= low and max(inside) <= high:
            break
    share = max(limits.min_snr * limits.min_snr - 1, 0.0) / (6 * limits.min_snr)
    spread = max(sigma + share * max(excess, 0.0), limits.min_sigma)
    return np.float32(max(mean + limits.min_snr * spread, limits.min_adc))


@given(
    seed=st.integers(0, 2**32 - 1),
    n_rings=st.integers(1, 2 * LANES + 1),
    whole=st.booleans(),
    share_odd=st.sampled_from([0.0, 0.02, 1.0]),
    min_snr=st.sampled_from([0.8, 2.0, 5.5]),
)
@settings(max_examples=40, deadline=None)
def test_rings_side_by_side_have_to_the_bit_the_thresholds_of_each_alone(
    seed: int, n_rings: int, whole: bool, share_odd: float, min_snr: float
) -> None:
    rng = np.random.default_rng(seed)
    n_pixels = 400 * n_rings
    radius = rng.integers(0, n_rings, n_pixels) + 0.5
    good = rng.random(n_pixels) > 0.05
    frame = rng.gamma(0.5 + radius, 9.0).astype(np.float32)
    frame[rng.random(n_pixels) < 0.02] *= 40
    frame = np.rint(frame) if whole else frame
    odd = rng.random(n_pixels) < share_odd
    frame[odd] = rng.choice([np.nan, np.inf, -np.inf, 3e36, -3e36, -0.0], int(odd.sum()))
    limits = PeakLimits(min_snr, 0.5, 0.0, 1, 200, 3)

    bins, sizes = radial_bins(good, radius)
    waiting = np.zeros(n_pixels, np.bool_)
    padded = np.append(frame, np.float32(np.nan))
    found, n_waiting = thresholds(
        padded, side_by_side(bins, sizes, np.argsort(sizes)), limits, waiting
    )

    expected = [alone(frame[bins == ring], limits) for ring in range(sizes.size)]
    np.testing.assert_array_equal(found, np.array([*expected, np.inf], np.float32))
    np.testing.assert_array_equal(waiting, np.isfinite(frame) & (frame > found[bins]))
    assert n_waiting == waiting.sum()


@pytest.mark.parametrize("n_rings", [1, LANES - 1, LANES, LANES + 1, 100])
def test_every_good_pixel_has_one_place_in_the_lane_of_its_ring(n_rings: int) -> None:
    rng = np.random.default_rng(n_rings)
    radius = n_rings * np.sqrt(rng.random(1000 * n_rings))
    good = rng.random(radius.size) > 0.1
    bins, sizes = radial_bins(good, radius)
    rings = side_by_side(bins, sizes, np.argsort(sizes))
    np.testing.assert_array_equal(np.bincount(bins, minlength=rings.n_rings)[:-1], sizes)
    seen = np.zeros(radius.size, int)
    for group, lanes in enumerate(rings.ring):
        pixels = rings.pixel[rings.starts[group] : rings.starts[group + 1]].T
        for ring, pixel in zip(lanes, pixels, strict=True):
            there = pixel[pixel < radius.size]
            np.testing.assert_array_equal(there, np.sort(there))
            assert (pixel[len(there) :] == radius.size).all()
            assert (bins[there] == ring).all()
            seen[there] += 1
    np.testing.assert_array_equal(seen, good)
    # Rings of about one size share a group: little room is left empty.
    assert rings.pixel.size <= good.sum() + LANES * sizes.max()
