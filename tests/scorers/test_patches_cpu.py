"""The compiled patch network says what the network says, candidate by candidate."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sfxreduce.errors import ModelError
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.folder import default_model, read_model
from sfxreduce.scorers.cnn.on_torch import load_network
from sfxreduce.scorers.cnn.patches.candidates import PATCH, Candidates
from sfxreduce.scorers.cnn.patches.cpu import NOISE_FLOOR, PATCH_SCALE, FusedPatchNetwork
from sfxreduce.scorers.cnn.patches.network import PatchNetwork, patch_logits
from sfxreduce.simulate import simulate_run

Weights = Mapping[str, NDArray[np.float32]]


def _candidates(patch: NDArray[np.floating], noise: NDArray[np.floating]) -> Candidates:
    """Candidates of which only what the network sees matters."""
    n = len(patch)
    return Candidates(
        tile=np.zeros(n, np.int32),
        y=np.zeros(n, np.int16),
        x=np.zeros(n, np.int16),
        scale=np.ones(n, np.uint8),
        prominence=np.zeros(n, np.float32),
        noise_photons=noise.astype(np.float32),
        patch=patch.astype(np.float16),
    )


def _random_candidates(seed: int, n: int) -> Candidates:
    """Noise with a peak in the middle, a few values cut off, and backgrounds of all kinds."""
    rng = np.random.default_rng(seed)
    patch = rng.normal(0, 2, (n, PATCH, PATCH))
    patch[:, 3:6, 3:6] += rng.exponential(5, (n, 1, 1))
    return _candidates(np.clip(patch, -4, 16), rng.lognormal(0, 2, n))


def _weights(network: torch.nn.Module) -> Weights:
    return {name: value.numpy() for name, value in network.state_dict().items()}


def _network(seed: int, loudness: float = 1.0) -> tuple[PatchNetwork, FusedPatchNetwork]:
    """The same random weights twice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PatchNetwork().requires_grad_(requires_grad=False)
    for value in network.parameters():
        value.mul_(loudness)
    return network, FusedPatchNetwork.of(_weights(network))


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 21), loudness=st.floats(0.5, 4))
@settings(max_examples=60, deadline=None)
def test_candidates_get_the_networks_logits(seed: int, n: int, loudness: float) -> None:
    network, fused = _network(seed, loudness)
    found = _random_candidates(seed, n)
    expected, logits = patch_logits(network, found), fused.logits(found)
    assert logits.shape == (n,)
    assert logits.dtype == np.float32
    # Sums cancel: what rounds is as large as the largest logit.
    largest = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * largest)


def test_candidates_of_simulated_tiles_get_the_default_models_logits() -> None:
    model = read_model(default_model())
    run = simulate_run("lysozyme-8kev", n_events=4, hit_rate=0.5, seed=3, frame_shape=(700, 700))
    window = Window.tiled(run.detector)
    pixels, gain = run.source.read(range(4), window).pixels, run.detector.adu_per_photon
    found = model.config.candidates(pixels, window.good(run.detector), adu_per_photon=gain)
    assert len(found) > 100
    expected = patch_logits(load_network(model), found)  # type: ignore[arg-type]
    assert expected.min() < -5 < 5 < expected.max()
    logits = FusedPatchNetwork.of(model.weights).logits(found)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@given(order=st.permutations(range(13)), n=st.integers(1, 13))
@settings(max_examples=40, deadline=None)
def test_a_logit_is_the_same_to_the_last_bit_whatever_is_beside_it(
    order: list[int], n: int
) -> None:
    _, fused = _network(1)
    found = _random_candidates(1, 13)
    together = fused.logits(found)
    assert len(set(together.tolist())) == 13
    some = order[:n]
    part = _candidates(found.patch[some], found.noise_photons[some])
    np.testing.assert_array_equal(fused.logits(part), together[some])


def test_a_spoilt_candidate_spoils_no_other() -> None:
    _, fused = _network(2)
    found = _random_candidates(2, 5)
    expected = fused.logits(found)
    for i in range(5):
        for value in (np.nan, np.inf):
            patch = found.patch.copy()
            patch[i, 8, 8] = value
            logits = fused.logits(_candidates(patch, found.noise_photons))
            assert np.isnan(logits[i])
            np.testing.assert_array_equal(np.delete(logits, i), np.delete(expected, i))


def test_every_pixel_counts_once() -> None:
    network, _ = _network(5)
    for value in network.parameters():
        value.abs_()  # no ReLU hides what the pixel did
    patch = np.zeros((1 + PATCH * PATCH, PATCH, PATCH))
    patch[1:].reshape(PATCH * PATCH, -1)[np.diag_indices(PATCH * PATCH)] = 16
    found = _candidates(patch, np.ones(len(patch)))
    logits = FusedPatchNetwork.of(_weights(network)).logits(found)
    np.testing.assert_allclose(logits, patch_logits(network, found), rtol=1e-5)
    assert (logits[1:] > 1.001 * logits[0]).all()


def _seeing(value: str) -> FusedPatchNetwork:
    """A network whose logit is the pixel in the middle, or the logarithm of the noise."""
    weights = {name: np.zeros_like(v) for name, v in _weights(PatchNetwork()).items()}
    sign = np.array([1, -1])  # one path for each, as a ReLU lets only one of them pass
    weights["trunk.0.weight"][:2, 0, 1, 1] = sign / PATCH_SCALE
    weights["trunk.2.weight"][[0, 1], [0, 1], 1, 1] = 1
    weights["trunk.4.weight"][[0, 1], [0, 1], 2, 2] = 1
    if value == "pixel":
        weights["head.0.weight"][[0, 1], [0, 1]] = 1
    else:
        weights["head.0.weight"][:2, 16] = sign
    weights["head.2.weight"][0, :2] = sign
    return FusedPatchNetwork.of(weights)


def test_every_number_of_half_precision_is_read_exactly() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    patch = np.zeros((len(halves), PATCH, PATCH), np.float16)
    patch[:, 4, 4] = halves
    logits = _seeing("pixel").logits(_candidates(patch, np.ones(len(halves))))
    expected = np.where(np.isfinite(halves), halves, np.nan).astype(np.float32)
    np.testing.assert_array_equal(logits, expected)


def test_noise_is_seen_as_its_logarithm_above_a_floor() -> None:
    noise = np.array([-1, 0, 1e-30, NOISE_FLOOR, 0.5, 1, 300, 1e30, np.nan], np.float32)
    found = _candidates(np.zeros((len(noise), PATCH, PATCH)), noise)
    expected = np.log(np.maximum(noise, NOISE_FLOOR))
    np.testing.assert_allclose(_seeing("noise").logits(found), expected, rtol=1e-6, atol=1e-6)


def test_other_weights_are_refused_and_other_arrays_do_not_matter() -> None:
    network, fused = _network(0)
    weights = dict(_weights(network))
    found = _random_candidates(0, 3)
    more = weights | {"calibration.hit_scores": np.zeros(7, np.float32)}
    np.testing.assert_array_equal(FusedPatchNetwork.of(more).logits(found), fused.logits(found))
    with pytest.raises(ModelError, match=r"'patches', found \['trunk\.4\.weight'\]"):
        FusedPatchNetwork.of(weights | {"trunk.4.weight": np.zeros((16, 8, 3, 3), np.float32)})
    with pytest.raises(ModelError, match=r"head\.2\.bias.*train the model again"):
        FusedPatchNetwork.of({name: v for name, v in weights.items() if name != "head.2.bias"})


def test_torch_is_not_needed() -> None:
    code = "import sys, sfxreduce.scorers.cnn.patches.cpu; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
