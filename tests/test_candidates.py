"""What stands out is found wherever it lies, whatever the gain, and what is masked never is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sfxreduce.scorers.candidates import PATCH, CandidateFinder
from sfxreduce.scorers.pooling import Pooling

FIND = CandidateFinder()


def _background(seed: int, *, photons: float = 10.0, side: int = 80) -> NDArray[np.int32]:
    return np.random.default_rng(seed).poisson(photons, (1, 1, side, side)).astype(np.int32)


@settings(max_examples=30, deadline=None)
@given(
    y=st.integers(0, 79),
    x=st.integers(0, 79),
    photons=st.floats(0.01, 50),
    gain=st.floats(0.5, 100),
    offset=st.integers(-50, 500),
)
def test_a_bright_pixel_is_the_first_candidate(
    y: int, x: int, photons: float, gain: float, offset: int
) -> None:
    frame = _background(3, photons=photons)
    frame[0, 0, y, x] += 60 + 12 * int(photons)
    seen = np.rint(frame * gain) + offset
    found = FIND(seen, np.ones((1, 80, 80), bool), adu_per_photon=gain)
    assert (found.y[0], found.x[0]) == (y, x)
    assert found.patch[0, PATCH // 2, PATCH // 2] == FIND.highest


def test_gain_and_offset_change_nothing() -> None:
    frame = _background(5)
    frame[0, 0, 20:60:10, 33] += 40
    good = np.ones((1, 80, 80), bool)
    plain = FIND(frame, good, adu_per_photon=1.0)
    other = FIND(frame * 16 + 300, good, adu_per_photon=16.0)
    np.testing.assert_array_equal(plain.y, other.y)
    np.testing.assert_allclose(plain.patch.astype(float), other.patch.astype(float), atol=0.02)
    np.testing.assert_allclose(plain.noise_photons, other.noise_photons, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_masked_pixels_have_no_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = _background(seed)
    good = rng.random((1, 80, 80)) > 0.2
    wild = np.where(good, frame, rng.integers(-(10**6), 10**6, frame.shape))
    calm, odd = FIND(frame, good, adu_per_photon=1.0), FIND(wild, good, adu_per_photon=1.0)
    for name in ("y", "x", "prominence", "noise_photons", "patch"):
        np.testing.assert_array_equal(getattr(calm, name), getattr(odd, name))
    assert good[0, calm.y, calm.x].all()


def test_candidates_are_few_and_in_order() -> None:
    frames = np.random.default_rng(0).poisson(3.0, (3, 2, 100, 90))
    found = FIND(frames, np.ones((2, 100, 90), bool), adu_per_photon=1.0)
    assert (np.diff(found.tile) >= 0).all()
    assert np.bincount(found.tile, minlength=6).max() <= FIND.most_per_tile


@pytest.mark.parametrize("value", [0, 7, np.nan, np.inf, 16383])
def test_flat_and_broken_frames_have_no_candidates(value: float) -> None:
    frame = np.full((1, 1, 64, 64), value)
    assert len(FIND(frame, np.ones((1, 64, 64), bool))) == 0


@given(
    logits=st.lists(st.floats(-20, 20), min_size=0, max_size=60),
    n_tiles=st.integers(1, 9),
)
def test_evidence_is_capped_and_never_falls_with_a_candidate(
    logits: list[float], n_tiles: int
) -> None:
    pooling = Pooling()
    tile = np.arange(len(logits)) % n_tiles
    evidence = pooling.evidence(np.array(logits), tile, n_events=1, n_tiles=n_tiles)[0]
    more = pooling.evidence(
        np.array([*logits, 9.0]), np.array([*tile, 0]), n_events=1, n_tiles=n_tiles
    )[0]
    assert 0 <= evidence <= more <= pooling.most_per_tile * n_tiles
    assert 0 <= pooling.probability(np.array([evidence]))[0] <= 1
