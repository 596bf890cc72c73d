"""The fused scorer says what the network says, event by event."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from poster import score_pixels

from sfxreduce.errors import ModelError
from sfxreduce.scorers.cnn.poster.cpu import FusedNetwork
from sfxreduce.scorers.cnn.poster.network import TILE_SHAPE, HitNetwork
from sfxreduce.scorers.cnn.poster.normalise import Normalisation, normalise

DTYPES = st.sampled_from(["uint16", "int16", "int32", "float32"])


def _network(seed: int, loudness: float = 1.0) -> tuple[HitNetwork, FusedNetwork]:
    """The same random weights twice; louder ones spread the probabilities from 0 to 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = HitNetwork().requires_grad_(requires_grad=False)
    for value in network.parameters():
        value.mul_(loudness)
    return network, FusedNetwork.of({k: v.numpy() for k, v in network.state_dict().items()})


def _pixels(seed: int, n_events: int, n_tiles: int, dtype: str = "int16") -> NDArray[Any]:
    """A few photons everywhere, and some bright pixels."""
    rng = np.random.default_rng(seed)
    pixels = 20 * rng.poisson(3.0, (n_events, n_tiles, *TILE_SHAPE))
    pixels[..., rng.integers(0, 350, 60), rng.integers(0, 350, 60)] += rng.integers(100, 4000, 60)
    return pixels.astype(dtype)


def _outputs(network: HitNetwork, seen: NDArray[np.float32]) -> NDArray[np.float32]:
    """What torch says about every tile, shape (event, tile, 2)."""
    outputs = network.trunk(torch.from_numpy(seen.reshape(-1, 1, *TILE_SHAPE)))
    return np.asarray(outputs.reshape(*seen.shape[:2], 2).numpy(), np.float32)


def _assert_outputs(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    # Sums of thousands of terms cancel: what rounds is as large as the largest output.
    largest = float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * largest)


def _probability(network: HitNetwork, seen: NDArray[np.float32]) -> NDArray[np.float32]:
    """What torch says about every event."""
    return np.asarray(network(torch.from_numpy(seen)).softmax(dim=1)[:, 1].numpy(), np.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    n_tiles=st.sampled_from([1, 3]),
    loudness=st.floats(0.5, 2.5),
    dtype=DTYPES,
    masked=st.floats(0, 0.5),
    gain=st.sampled_from([float("nan"), 20.0]),
)
@settings(max_examples=12, deadline=None)
def test_detector_pixels_get_the_networks_probability(
    seed: int, n_tiles: int, loudness: float, dtype: str, masked: float, gain: float
) -> None:
    network, fused = _network(seed, loudness)
    pixels = _pixels(seed, 2, n_tiles, dtype)
    good = np.random.default_rng(seed).random(pixels.shape[1:]) >= masked
    how = Normalisation()
    seen = normalise(pixels, good, adu_per_photon=gain, how=how)
    found = score_pixels(fused, pixels, good, adu_per_photon=gain, how=how)
    assert found.dtype == np.float32
    assert found.shape == (2,)
    np.testing.assert_allclose(found, _probability(network, seen), rtol=1e-4)
    _assert_outputs(fused.outputs(seen, np.ones_like(good)), _outputs(network, seen))


@given(
    seed=st.integers(0, 2**32 - 1),
    n_tiles=st.sampled_from([1, 3]),
    dtype=DTYPES,
    scale=st.floats(1e-3, 0.1),
    offset=st.floats(-5, 5),
)
@settings(max_examples=8, deadline=None)
def test_a_normalisation_of_one_line_needs_no_pass_of_its_own(
    seed: int, n_tiles: int, dtype: str, scale: float, offset: float
) -> None:
    network, fused = _network(seed)
    pixels = _pixels(seed, 2, n_tiles, dtype)
    good = np.random.default_rng(seed).random(pixels.shape[1:]) >= 0.1
    seen = np.where(good, pixels * np.float32(scale) + np.float32(offset), 0).astype(np.float32)
    found = fused.outputs(pixels, good, scale=scale, offset=offset)
    _assert_outputs(found, _outputs(network, seen))


@pytest.mark.parametrize("n_tiles", [1, 3])
def test_an_events_score_does_not_depend_on_its_neighbours(n_tiles: int) -> None:
    _, fused = _network(1, 2.0)
    pixels = _pixels(1, 11, n_tiles)
    good = np.random.default_rng(2).random(pixels.shape[1:]) >= 0.1
    how = Normalisation()
    together = score_pixels(fused, pixels, good, how=how)
    assert len(set(together.tolist())) == 11
    alone = [score_pixels(fused, pixels[i : i + 1], good, how=how) for i in range(11)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    order = np.random.default_rng(3).permutation(11)
    shuffled = score_pixels(fused, pixels[order], good, how=how)
    np.testing.assert_array_equal(shuffled, together[order])


def test_a_pixel_counts_where_the_network_looks_and_nowhere_else() -> None:
    # Random tiles hardly notice one wrong weight; a single bright pixel meets few of them.
    torch_network, _ = _network(5)
    for value in torch_network.parameters():
        value.abs_()  # no ReLU hides what the pixel did
    network = FusedNetwork.of({k: v.numpy() for k, v in torch_network.state_dict().items()})
    inside = [(0, 0), (0, 335), (335, 0), (335, 335), (6, 329), (329, 6), (171, 8), (8, 171)]
    outside = [(336, 9), (9, 336), (349, 349)]
    seen = np.zeros((1 + len(inside + outside), 1, *TILE_SHAPE), np.float32)
    for event, (y, x) in enumerate(inside + outside, start=1):
        seen[event, 0, y, x] = 1e3
    found = network.outputs(seen, np.ones(seen.shape[1:], bool))
    np.testing.assert_allclose(found, _outputs(torch_network, seen), rtol=1e-4)
    blank, counts = found[0, 0, 1], found[1 : 1 + len(inside), 0, 1]
    assert (counts > 1.001 * blank).all()
    np.testing.assert_array_equal(found[1 + len(inside) :, 0, 1], blank)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e9])
def test_what_a_masked_pixel_holds_changes_nothing(junk: float) -> None:
    _, fused = _network(2)
    pixels = _pixels(2, 2, 1, "float32")
    good = np.random.default_rng(2).random(pixels.shape[1:]) >= 0.1
    spoilt = np.where(good, pixels, np.float32(junk))
    np.testing.assert_array_equal(
        fused.outputs(spoilt, good, scale=0.1, offset=-5.0),
        fused.outputs(pixels, good, scale=0.1, offset=-5.0),
    )


def test_the_byte_order_of_a_file_changes_nothing() -> None:
    _, fused = _network(4)
    pixels, good = _pixels(4, 1, 1), np.ones((1, *TILE_SHAPE), bool)
    swapped = pixels.astype(">i2")
    np.testing.assert_array_equal(
        fused.outputs(swapped, good, scale=0.1), fused.outputs(pixels, good, scale=0.1)
    )


def test_no_events_give_no_scores() -> None:
    _, fused = _network(0)
    pixels, good = np.zeros((0, 1, *TILE_SHAPE), np.float32), np.ones((1, *TILE_SHAPE), bool)
    assert score_pixels(fused, pixels, good, how=Normalisation()).size == 0


def test_other_weights_and_other_windows_are_refused() -> None:
    network, fused = _network(0)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    with pytest.raises(ModelError, match=r"trunk\.9\.bias"):
        FusedNetwork.of({name: v for name, v in weights.items() if name != "trunk.9.bias"})
    with pytest.raises(ModelError, match=r"trunk\.0\.weight"):
        FusedNetwork.of(weights | {"trunk.0.weight": np.zeros((4, 1, 5, 5), np.float32)})
    with pytest.raises(ModelError, match="window of this model"):
        fused.outputs(np.zeros((1, 1, 40, 40), np.float32), np.ones((1, 40, 40), np.bool_))
    with pytest.raises(ModelError, match="mask of one event"):
        fused.outputs(
            np.zeros((1, 2, *TILE_SHAPE), np.float32), np.ones((1, *TILE_SHAPE), np.bool_)
        )


def test_torch_is_not_needed() -> None:
    code = "import sys, sfxreduce.scorers.cnn.poster.cpu; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
