"""The search by torch finds what the compiled search finds, up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sfxreduce.scorers.cnn.patches.candidates import CandidateFinder, Candidates
from sfxreduce.scorers.cnn.patches.search_on_device import DeviceFinder

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
KINDS = ["int16", "uint16", "int32", "uint32", "int64", "uint8", "float32", "float64", ">i2", ">u2"]


def _frames(rng: np.random.Generator, kind: str, photons: float, gain: float) -> NDArray[Any]:
    """Two events of three tiles of any shape with peaks, a plateau and broken pixels, in ADU."""
    shape = (2, 3, *rng.integers(1, 70, 2))
    frames = rng.poisson(photons, shape) * gain
    frames[rng.random(shape) > 0.99] += 40 * gain
    frames[..., 2:4, 5:9] += 30 * gain
    if np.dtype(kind).kind == "f":
        frames = frames + rng.normal(0, 0.2 * gain, shape)
        frames[rng.random(shape) > 0.99] = rng.choice([np.nan, np.inf, -np.inf, 65535, -1000])
    else:
        most = min(np.iinfo(kind).max, 65535)
        frames = np.clip(frames, 0, most)
        frames[rng.random(shape) > 0.99] = rng.choice([0, most])
    return frames.astype(kind)


def _by_place(found: Candidates) -> dict[tuple[int, ...], int]:
    places = zip(found.tile, found.scale, found.y, found.x, strict=True)
    return {tuple(map(int, place)): row for row, place in enumerate(places)}


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    photons=st.sampled_from([0.0, 0.03, 0.5, 4.0, 60.0, 2000.0]),
    gain=st.sampled_from([1.0, 3.0, 20.0]),
    share_good=st.sampled_from([1.0, 0.98, 0.5, 0.05]),
    radius=st.sampled_from([10, 3, 20]),
    coarse=st.sampled_from([1, 4, 3]),
)
def test_both_searches_find_the_same(
    device: str,
    seed: int,
    kind: str,
    photons: float,
    gain: float,
    share_good: float,
    radius: int,
    coarse: int,
) -> None:
    rng = np.random.default_rng(seed)
    frames = _frames(rng, kind, photons, gain)
    good = rng.random(frames.shape[1:]) < share_good
    finder = CandidateFinder(most_per_tile=10_000, radius=radius, coarse=coarse)
    compiled = finder(frames, good, adu_per_photon=gain)
    by_torch = DeviceFinder(finder=finder, device=device)(frames, good, adu_per_photon=gain)
    here, there = _by_place(compiled), _by_place(by_torch)
    # What only one has is prominent by a rounding.
    for only, found in (
        (here.keys() - there.keys(), compiled),
        (there.keys() - here.keys(), by_torch),
    ):
        rows = {**here, **there}
        prominence = [found.prominence[rows[place]] for place in only]
        np.testing.assert_allclose(prominence, finder.least_prominence, rtol=1e-4)
    both = sorted(here.keys() & there.keys())
    rows = [here[place] for place in both], [there[place] for place in both]
    for name, tolerance in (("prominence", 1e-4), ("noise_photons", 1e-4), ("patch", 4e-3)):
        pair = (
            getattr(c, name)[r].astype(float)
            for c, r in zip((compiled, by_torch), rows, strict=True)
        )
        np.testing.assert_allclose(*pair, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("coarse", [1, 4])
def test_the_same_ones_are_taken_in_the_same_order(device: str, coarse: int) -> None:
    """Where no two are alike: pixels of a Gaussian background, more tiles than fit into a part."""
    rng = np.random.default_rng(2)
    frames = rng.normal(50, 7, (30, 3, 60, 75)).astype(np.float32)
    good = rng.random((3, 60, 75)) > 0.02
    finder = CandidateFinder(least_prominence=1.5, most_per_tile=7, coarse=coarse)
    compiled = finder(frames, good, adu_per_photon=5.0)
    by_torch = DeviceFinder(finder=finder, device=device)(frames, good, adu_per_photon=5.0)
    assert len(compiled) > 7 * 90 * 0.9
    for name in ("tile", "scale", "y", "x"):
        np.testing.assert_array_equal(getattr(compiled, name), getattr(by_torch, name))


@pytest.mark.parametrize("n_events", [0, 1])
def test_nothing_is_found_where_nothing_is(n_events: int) -> None:
    finder = DeviceFinder(finder=CandidateFinder(coarse=4), device="cpu")
    found = finder(np.zeros((n_events, 2, 40, 40), np.int16), np.ones((2, 40, 40), bool))
    assert len(found) == 0
    assert found.patch.shape == (0, 9, 9)
