"""A device scores as the processor does, whatever the batches, the threads and the memory left."""

from __future__ import annotations

import json
import logging
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from planted import ArrayFrames
from poster import score_pixels

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import ClusterError, ModelError, SourceError
from sfxreduce.io.readers.zarr.run import open_zarr
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.batch import score_events
from sfxreduce.pipeline.stages.score import EVENTS_PER_STREAM
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Run
from sfxreduce.run.window import FULL, Window
from sfxreduce.scorers.cnn import on_torch as inference
from sfxreduce.scorers.cnn.folder import default_model
from sfxreduce.scorers.cnn.gpu import compile as _compiled
from sfxreduce.scorers.cnn.gpu import device as _seam
from sfxreduce.scorers.cnn.gpu.batches import Batches, assembled, batch_that_fits
from sfxreduce.scorers.cnn.gpu.device import CpuSeam, CudaSeam, Slot
from sfxreduce.scorers.cnn.gpu.overlap import overlap
from sfxreduce.scorers.cnn.gpu.transfer import as_numbers, pixels_in, wire_dtype
from sfxreduce.scorers.cnn.model import Model, ModelConfig
from sfxreduce.scorers.cnn.patches.candidates import CandidateFinder
from sfxreduce.scorers.cnn.patches.gpu import PatchesOnDevice
from sfxreduce.scorers.cnn.patches.network import PatchNetwork, patch_logits
from sfxreduce.scorers.cnn.patches.pooling import Pooling, class_of, event_features
from sfxreduce.scorers.cnn.patches.search_on_device import DeviceFinder
from sfxreduce.scorers.cnn.poster import gpu
from sfxreduce.scorers.cnn.poster._normalise_gpu import in_noise_units, least_variance
from sfxreduce.scorers.cnn.poster._space_to_depth import in_squares
from sfxreduce.scorers.cnn.poster.cpu import FusedNetwork
from sfxreduce.scorers.cnn.poster.gpu import DeviceSettings, Feed, PosterOnDevice
from sfxreduce.scorers.cnn.poster.network import TILE_SHAPE, HitNetwork
from sfxreduce.scorers.cnn.poster.normalise import Normalisation, normalise
from sfxreduce.scorers.cnn.scorer import CnnScorer, cuda_available

HOW = Normalisation()
ROUNDING = 1e-5
INTEGERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]
needs_cuda = pytest.mark.skipif(not cuda_available(), reason="no CUDA device")


def _poster(
    seed: int, settings: DeviceSettings, hook: Callable[..., None] | None = None
) -> PosterOnDevice:
    """Random weights, loud enough to spread the probabilities."""
    network = _network(HitNetwork, seed, loudness=2.4)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    fused = FusedNetwork.of(weights)
    poster = PosterOnDevice(network, fused=fused, how=HOW, settings=settings)
    if hook is not None:
        poster._eager._convolve[0].register_forward_pre_hook(hook)
    return poster


def _network(kind: type[Any], seed: int, loudness: float) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind().requires_grad_(requires_grad=False)
    for value in network.parameters():
        value.mul_(loudness)
    return network


def _pixels(seed: int, n_events: int, n_tiles: int = 1, dtype: str = "uint16") -> NDArray[Any]:
    """Photons of 20 ADU, brighter from event to event, with some peaks."""
    rng = np.random.default_rng(seed)
    level = np.geomspace(0.3, 20.0, n_events)[:, None, None, None]
    pixels = 20 * rng.poisson(level, (n_events, n_tiles, *TILE_SHAPE))
    for event in range(n_events):
        at = rng.integers(0, 350, (2, 5 * event))
        pixels[event, :, at[0], at[1]] += 600
    return pixels.astype(dtype)


def _feed(pixels: NDArray[Any], masked: float = 0.1, window: Window | None = None) -> Feed:
    good = np.random.default_rng(7).random(pixels.shape[1:]) >= masked
    return Feed.of(pixels, good=good, adu_per_photon=20.0, window=window)


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the scorers wrote to the log."""
    return [r.message for r in caplog.records if r.name.startswith("sfxreduce")]


def _by_cpu(poster: PosterOnDevice, feed: Feed) -> NDArray[np.float32]:
    pixels = feed.pixels(range(feed.n_events))
    return score_pixels(
        poster.fused, pixels, feed.good, adu_per_photon=feed.adu_per_photon, how=HOW
    )


CPU = DeviceSettings(device="cpu", tiles=4, n_threads=2)


# Pixels on the device


@given(data=st.data(), kind=st.sampled_from(INTEGERS), order=st.sampled_from("<>"))
@settings(max_examples=60, deadline=None)
def test_every_integer_survives_the_way_to_the_device(
    data: st.DataObject, kind: str, order: str
) -> None:
    limits = np.iinfo(kind)
    values = data.draw(st.lists(st.integers(int(limits.min), int(limits.max)), max_size=20))
    pixels = np.array([int(limits.min), int(limits.max), 0, 1, *values], f"{order}{kind}")
    host, dtype = np.zeros(pixels.nbytes, np.uint8), wire_dtype(pixels.dtype)
    pixels_in(host, pixels.shape, dtype)[...] = pixels
    found = as_numbers(torch.from_numpy(host), dtype).numpy()
    assert dtype.itemsize == pixels.dtype.itemsize
    np.testing.assert_array_equal(found, pixels.astype(np.float32))


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4", "longdouble"])
def test_floating_pixels_survive_too(kind: str) -> None:
    pixels = np.array([0.0, -1.5, 3e4, np.nan, np.inf, -np.inf]).astype(kind)
    dtype = wire_dtype(pixels.dtype)
    host = np.zeros(pixels.size * dtype.itemsize, np.uint8)
    pixels_in(host, pixels.shape, dtype)[...] = pixels[::-1]
    found = as_numbers(torch.from_numpy(host), dtype).numpy()
    np.testing.assert_array_equal(found, pixels.astype(np.float32)[::-1])


def _seen_by_device(
    pixels: NDArray[Any], good: NDArray[np.bool_], how: Normalisation, gain: float
) -> NDArray[np.float32]:
    values = torch.from_numpy(pixels.astype(np.float32))
    mask, least = torch.from_numpy(good), least_variance(how, gain)
    seen = [in_noise_units(event, mask, how, least=least).numpy() for event in values]
    return np.stack(seen)


@given(
    seed=st.integers(0, 999),
    radius=st.integers(2, 30),
    masked=st.floats(0, 0.9),
    passes=st.integers(1, 3),
    photons=st.floats(0.01, 100),
    gain=st.sampled_from([float("nan"), 1.0, 20.0, 37.3]),
    pedestal=st.sampled_from([0, 1000, -300]),
)
@settings(max_examples=25, deadline=None)
def test_normalised_on_the_device_as_on_the_processor(
    seed: int,
    radius: int,
    masked: float,
    passes: int,
    photons: float,
    gain: float,
    pedestal: int,
) -> None:
    rng = np.random.default_rng(seed)
    level = photons * (0.5 + np.linspace(0, 1, 90))[:, None]
    counts = rng.poisson(level, (2, 2, 90, 70)) * (20.0 if np.isnan(gain) else gain) + pedestal
    counts[..., rng.integers(0, 90, 9), rng.integers(0, 70, 9)] += 4000
    pixels, good = np.rint(counts).astype(np.int32), rng.random((2, 90, 70)) >= masked
    how = Normalisation(radius=radius, passes=passes)
    expected = normalise(pixels, good, adu_per_photon=gain, how=how)
    off = np.abs(_seen_by_device(pixels, good, how, gain) - expected)
    assert off.max() < 1e-2
    assert np.quantile(off, 0.99) < 1e-3


def test_a_steep_background_costs_no_more_than_the_tolerance() -> None:
    # Sums of squares cancel where the background is far from the tile's median, in its sigmas.
    rng = np.random.default_rng(1)
    y, x = np.indices(TILE_SHAPE)
    level = 50 + 6000 * np.exp(-(np.hypot(y - 175, x - 175) ** 2) / 80**2)
    pixels = rng.poisson(level, (1, 1, *TILE_SHAPE)).astype(np.uint16)
    assert (level.max() - np.median(level)) / np.sqrt(level.max()) > 60
    good = np.ones((1, *TILE_SHAPE), bool)
    expected = normalise(pixels, good, adu_per_photon=1.0, how=HOW)
    off = np.abs(_seen_by_device(pixels, good, HOW, 1.0) - expected)
    assert off.max() < 1e-2
    assert np.quantile(off, 0.99) < 1e-3


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e9, -1e9])
def test_what_a_masked_pixel_holds_changes_nothing_on_the_device(junk: float) -> None:
    rng = np.random.default_rng(2)
    pixels = rng.poisson(4.0, (1, 1, 60, 60)).astype(np.float32)
    good = rng.random((1, 60, 60)) >= 0.2
    spoilt = np.where(good, pixels, np.float32(junk))
    expected = _seen_by_device(pixels, good, HOW, 1.0)
    np.testing.assert_array_equal(_seen_by_device(spoilt, good, HOW, 1.0), expected)
    assert not expected[:, ~good].any()
    nothing = _seen_by_device(spoilt, np.zeros_like(good), HOW, 1.0)
    assert not nothing.any()


def test_an_unmasked_sentinel_leaves_other_boxes_alone() -> None:
    pixels = np.random.default_rng(3).poisson(4.0, (1, 1, 80, 80)).astype(np.int32)
    pixels[0, 0, 5, 5] = 2**31 - 1
    good = np.ones((1, 80, 80), bool)
    off = _seen_by_device(pixels, good, HOW, 1.0) - normalise(
        pixels, good, adu_per_photon=1.0, how=HOW
    )
    assert np.abs(off).max() < 1e-2


# The poster's network


@pytest.mark.parametrize("n_tiles", [1, 3])
@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", ">u2"])
def test_the_device_says_what_the_processor_says(n_tiles: int, dtype: str) -> None:
    poster, feed = _poster(1, CPU), _feed(_pixels(1, 4, n_tiles, dtype))
    found, expected = poster.score(feed), _by_cpu(poster, feed)
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(found.score, expected, atol=ROUNDING)
    assert found.score.dtype == np.float32
    assert (found.halvings, found.on_cpu, int(found.kind.max())) == (0, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", [1, 4])
def test_numbers_of_16_bits_keep_within_their_tolerance(
    seed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_half_dtype", lambda layers, largest: dtype)
    half = DeviceSettings(device="cpu", half=True, tiles=4, n_threads=1)
    poster, feed = _poster(seed, half), _feed(_pixels(seed, 6))
    expected = _by_cpu(poster, feed)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(poster.score(feed).score, expected, atol=poster.tolerance)
    assert poster.tolerance == gpu.TOLERANCE["half"] > _poster(seed, CPU).tolerance


def test_the_finer_half_is_taken_only_where_no_sum_can_overflow() -> None:
    first, second = torch.nn.Conv2d(1, 4, 7), torch.nn.Conv2d(4, 4, 7)
    layers = torch.nn.Sequential(first, torch.nn.ReLU(), second).requires_grad_(requires_grad=False)
    for value in layers.parameters():
        value.fill_(0.1)
    assert gpu._half_dtype(layers, 16.0) == torch.float16
    largest = float(np.finfo(np.float16).max)
    first.weight.fill_(1.01 * largest / (16 * 49))
    assert gpu._half_dtype(layers[:2], 16.0) == torch.bfloat16
    # The second layer's sums count, not only the first one's.
    first.weight.fill_(10.0)
    assert gpu._half_dtype(layers[:2], 16.0) == torch.float16
    assert gpu._half_dtype(layers, 16.0) == torch.bfloat16


@given(tiles=st.integers(1, 12), n_threads=st.integers(1, 3), n_slots=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_scores_and_decisions_do_not_depend_on_the_batches(
    tiles: int, n_threads: int, n_slots: int
) -> None:
    feed = _feed(_pixels(3, 7))
    poster = _poster(4, CPU)
    expected = poster.score(feed).score
    other = _poster(
        4, DeviceSettings(device="cpu", tiles=tiles, n_threads=n_threads, n_slots=n_slots)
    )
    found = other.score(feed).score
    np.testing.assert_allclose(found, expected, atol=ROUNDING)
    for threshold in np.quantile(expected, [0.1, 0.5, 0.9]):
        far = np.abs(expected - threshold) > ROUNDING
        assert far.sum() >= 5
        np.testing.assert_array_equal(found[far] >= threshold, expected[far] >= threshold)


def test_decisions_of_16_bits_agree_away_from_the_threshold() -> None:
    half = DeviceSettings(device="cpu", half=True, tiles=8, n_threads=1)
    poster, feed = _poster(4, half), _feed(_pixels(4, 12))
    found, expected = poster.score(feed).score, _by_cpu(poster, feed)
    for threshold in np.linspace(expected.min(), expected.max(), 9):
        far = np.abs(expected - threshold) > poster.tolerance
        np.testing.assert_array_equal(found[far] >= threshold, expected[far] >= threshold)


def test_no_events_give_no_scores() -> None:
    assert _poster(4, CPU).score(_feed(_pixels(0, 0))).score.shape == (0,)


def test_pixels_that_do_not_fit_are_refused() -> None:
    good = np.ones((1, *TILE_SHAPE), bool)
    with pytest.raises(ModelError, match=r"expected pixels of shape \('event', 1, 350, 350\)"):
        Feed.of(np.zeros((3, 2, *TILE_SHAPE), np.int16), good=good)
    small = Feed.of(np.zeros((1, 1, 40, 40)), good=np.ones((1, 40, 40), bool))
    with pytest.raises(ModelError, match="expected tiles of"):
        _poster(4, CPU).score(small)


@pytest.mark.parametrize("device", ["abacus", "cuda"])
def test_a_device_that_is_not_there_is_one_line(device: str) -> None:
    if device == "cuda" and cuda_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ClusterError, match="--device"):
        _poster(4, DeviceSettings(device=device))


# Squares of pixels, and compiling


@given(
    n_in=st.integers(1, 3),
    n_out=st.integers(1, 3),
    kernel=st.integers(1, 8),
    side=st.integers(1, 6),
    y=st.integers(13, 40),
    x=st.integers(13, 40),
)
@settings(max_examples=40, deadline=None)
def test_squares_give_what_convolution_and_pooling_give(
    n_in: int, n_out: int, kernel: int, side: int, y: int, x: int
) -> None:
    layers = [torch.nn.Conv2d(n_in, n_out, kernel), torch.nn.MaxPool2d(side), torch.nn.ReLU()]
    pictures = torch.randn(2, n_in, y, x)
    with torch.inference_mode():
        expected = torch.nn.Sequential(*layers)(pictures)
        found = in_squares(layers)(pictures)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)


def test_only_convolutions_with_poolings_are_written_in_squares() -> None:
    with pytest.raises(TypeError, match="expected a convolution and a pooling"):
        in_squares([torch.nn.Conv2d(1, 1, 3), torch.nn.ReLU(), torch.nn.ReLU()])


def test_one_mask_of_finite_pixels_is_counted_once_with_the_same_result() -> None:
    rng = np.random.default_rng(5)
    values = torch.from_numpy(rng.poisson(3.0, (3, 90, 70)).astype(np.float32))
    good = torch.from_numpy(rng.random((1, 90, 70)) >= 0.3)
    found = in_noise_units(values, good, HOW, least=0.25, finite=True)
    torch.testing.assert_close(found, in_noise_units(values, good, HOW, least=0.25), rtol=0, atol=0)


@pytest.mark.parametrize("error", [RuntimeError, FileNotFoundError, subprocess.SubprocessError])
def test_where_torch_cannot_compile_the_scorer_says_so_once_and_does_without(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Other tests' libraries may have set up logging for themselves.
    caplog.set_level(logging.WARNING, logger=_compiled.__name__)
    monkeypatch.setattr(logging.getLogger(_compiled.__name__), "disabled", False)
    asked: list[bool] = []

    def compile_nothing(module: torch.nn.Module, *, dynamic: bool) -> Callable[..., torch.Tensor]:
        def fail(*arguments: object) -> torch.Tensor:
            asked.append(dynamic)
            raise error("no compiler here")

        return fail

    monkeypatch.setattr(torch, "compile", compile_nothing)
    compiled = DeviceSettings(device="cpu", compiled=True, tiles=2, n_threads=1)
    poster, feed = _poster(4, compiled), _feed(_pixels(4, 5))
    np.testing.assert_allclose(poster.score(feed).score, _by_cpu(poster, feed), atol=ROUNDING)
    assert asked == [False]
    assert _said(caplog) == [
        "device scorer: torch cannot compile here, so it is slower: no compiler here"
    ]


def test_a_compiled_network_that_does_not_fit_is_no_compiler_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, forgotten: list[int]
) -> None:
    sizes: list[int] = []

    def compile_small(module: torch.nn.Module, *, dynamic: bool) -> Callable[..., torch.Tensor]:
        def call(values: torch.Tensor, *more: object) -> torch.Tensor:
            sizes.append(values.numel() // (350 * 350))
            if sizes[-1] > 2:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            found: torch.Tensor = module(values, *more)
            return found

        return call

    monkeypatch.setattr(torch, "compile", compile_small)
    poster = _poster(4, DeviceSettings(device="cpu", compiled=True, tiles=4, n_threads=1))
    feed = _feed(_pixels(4, 5))
    found = poster.score(feed)
    assert sizes == [4, 2, 2, 2]  # always as many tiles, whatever the feed has left
    assert (found.halvings, len(forgotten)) == (1, 1)
    np.testing.assert_allclose(found.score, _by_cpu(poster, feed), atol=ROUNDING)


# Memory


class Full:
    """Lets a layer run out of memory with more items than `most`, and notes what was asked."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.asked: list[int] = []

    def __deepcopy__(self, _: object) -> Full:
        return self  # a copied network reports to the same place

    def __call__(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.asked.append(len(inputs[0]))
        if len(inputs[0]) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every time that the device's kept memory was given back."""
    calls: list[int] = []
    monkeypatch.setattr(CpuSeam, "forget", lambda self: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("most", "asked"),
    [(8, [8, 8]), (3, [8, 4, *[2] * 5]), (1, [8, 4, 2, *[1] * 10]), (0, [8, 4, 2, 1])],
)
def test_a_batch_that_does_not_fit_is_halved_and_then_left_to_the_processor(
    most: int, asked: list[int], forgotten: list[int]
) -> None:
    full, ten = Full(most), DeviceSettings(device="cpu", tiles=10, n_threads=1)
    feed = _feed(_pixels(5, 10))
    poster = _poster(4, ten, hook=full)
    found = poster.score(feed)
    assert full.asked == asked
    assert found.halvings == len([size for size in set(asked) if size > max(most, 1)])
    assert found.on_cpu == (10 if most == 0 else 0)
    assert len(forgotten) == (1 if asked[0] > most else 0)
    np.testing.assert_allclose(found.score, _by_cpu(poster, feed), atol=ROUNDING)
    if most == 0:
        np.testing.assert_array_equal(found.score, _by_cpu(poster, feed))


def test_once_it_is_small_a_batch_stays_small(forgotten: list[int]) -> None:
    full = Full(2)
    poster = _poster(4, DeviceSettings(device="cpu", tiles=4, n_threads=1), hook=full)
    feed = _feed(_pixels(6, 4, n_tiles=3))  # an event of three tiles may be divided
    found = poster.score(feed)
    assert full.asked == [3, *[1] * 12]
    assert (found.halvings, len(forgotten)) == (1, 1)
    np.testing.assert_allclose(found.score, _by_cpu(poster, feed), atol=ROUNDING)


@given(n=st.integers(0, 40), size=st.integers(1, 16), most=st.integers(0, 16))
@settings(max_examples=60, deadline=None)
def test_every_item_is_answered_once_whatever_fits(n: int, size: int, most: int) -> None:
    forgotten: list[int] = []
    batches = Batches(size=size, forget=lambda: forgotten.append(1))

    def on_device(start: int, size: int) -> Callable[[], NDArray[np.float32]]:
        if size > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return lambda: np.arange(start, start + size, dtype=np.float32)

    def on_cpu(start: int, stop: int) -> NDArray[np.float32]:
        return -np.arange(start, stop, dtype=np.float32)

    values = assembled(batches.run(n, on_device=on_device, on_cpu=on_cpu), n)
    np.testing.assert_array_equal(np.abs(values), np.arange(n))
    assert batches.on_cpu == (n if most == 0 else 0)
    assert len(forgotten) == (n > 0 and size > most)


def test_a_slot_that_does_not_fit_costs_the_device_and_no_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: object, n_bytes: int) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(_seam._HostSlot, "sent", full)
    poster, feed = _poster(4, CPU), _feed(_pixels(5, 6))
    found = poster.score(feed)
    assert found.on_cpu == 6
    np.testing.assert_array_equal(found.score, _by_cpu(poster, feed))


@given(free=st.integers(0, 10**11), item=st.floats(1.0, 1e9), most=st.integers(1, 4096))
def test_a_batch_takes_at_most_half_of_what_is_free(free: int, item: float, most: int) -> None:
    size = batch_that_fits(free, bytes_per_item=item, most=most)
    assert 1 <= size <= most
    assert size == 1 or size * item <= free / 2
    assert size == most or (size + 1) * item > free / 2


def test_batches_begin_with_what_the_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Full(99)
    tile_bytes, slots_bytes = 10_000_000, 12 * 350 * 350 * 2  # one sub-batch, so one slot
    monkeypatch.setattr(CpuSeam, "free_bytes", lambda self: slots_bytes + 11 * tile_bytes)

    def measure(self: CpuSeam, action: Callable[[], object]) -> int:
        action()
        return full.asked[-1] * tile_bytes

    monkeypatch.setattr(CpuSeam, "peak_bytes", measure)
    poster = _poster(4, DeviceSettings(device="cpu", tiles=12, n_threads=1), hook=full)
    feed = _feed(_pixels(5, 12))
    for _ in range(2):
        poster.score(feed)
    # Four blank tiles are measured, once; then five go together.
    assert full.asked == [4, *[5] * 3, *[5] * 3]
    tight = _poster(4, DeviceSettings(device="cpu", tiles=12, n_threads=1), hook=Full(2))
    assert tight.score(feed).on_cpu == 0  # not even the trial fitted


def test_groups_of_the_plain_path_are_halved_too(forgotten: list[int]) -> None:
    network = _network(HitNetwork, 4, 2.4)
    seen = np.random.default_rng(1).normal(size=(9, 1, *TILE_SHAPE)).astype(np.float32)
    expected = inference.hit_probability(network, seen)
    for most in (3, 0):
        full = Full(most)
        hook = network.trunk[0].register_forward_pre_hook(full)
        if most:
            np.testing.assert_allclose(
                inference.hit_probability(network, seen), expected, atol=ROUNDING
            )
            assert full.asked == [8, 4, *[2] * 5]
        hook.remove()
    assert len(forgotten) == 1


# Several things at once


class CountingSlot:
    """A slot that knows who may touch it."""

    def __init__(self) -> None:
        self.host = np.zeros(8, np.uint8)
        self.state = "free"

    def wait(self) -> None:
        assert self.state == "free"
        self.state = "waited for"

    def sent(self, n_bytes: int) -> torch.Tensor:
        assert self.state in ("staged", "sent")
        self.state = "sent"
        return torch.from_numpy(self.host)

    def release(self) -> None:
        assert self.state == "sent"
        self.state = "free"


class Counting:
    """Work that counts how many sub-batches are where."""

    def __init__(self, n_events: int) -> None:
        self.lock = threading.Lock()
        self.in_memory = self.most_in_memory = 0
        self.begun: list[range] = []
        self.staged = self.launched = 0
        self.most_ahead = 0
        self.found = np.full(n_events, -1)

    def load(self, events: range) -> range:
        with self.lock:
            self.begun.append(events)
            self.in_memory += 1
            self.most_in_memory = max(self.most_in_memory, self.in_memory)
        time.sleep(0.0005 * (events.start % 3))
        return events

    def stage(self, slot: Slot, loaded: range) -> int:
        assert isinstance(slot, CountingSlot)
        assert slot.state == "waited for"
        slot.state = "staged"
        slot.host.view(np.int64)[0] = loaded.start
        with self.lock:
            self.staged += 1
            self.most_ahead = max(self.most_ahead, self.staged - self.launched)
        return loaded.start

    def launch(self, slot: Slot, staged: int) -> int:
        time.sleep(0.001)
        with self.lock:
            self.launched += 1
            self.in_memory -= 1
        there = slot.sent(8)
        assert int(there.view(torch.int64)) == staged
        return staged

    def finish(self, events: range, launched: int) -> None:
        assert events.start == launched
        assert self.found[events.start] == -1
        self.found[events.start : events.stop] = events


PARTS = [range(n, n + 2) for n in range(0, 60, 2)]


@pytest.mark.parametrize(("n_threads", "n_slots"), [(1, 1), (1, 3), (4, 2), (8, 3)])
def test_results_keep_their_order_and_few_sub_batches_are_under_way(
    n_threads: int, n_slots: int
) -> None:
    work = Counting(60)
    slots = [CountingSlot() for _ in range(n_slots)]
    overlap(PARTS, work, slots=slots, n_threads=n_threads)
    np.testing.assert_array_equal(work.found, np.arange(60))
    assert work.most_in_memory <= n_threads + n_slots
    assert work.most_ahead <= n_slots
    assert all(slot.state == "free" for slot in slots)


def test_threads_read_while_the_device_works() -> None:
    # Two readers and the caller meet: whoever took turns would never get past this.
    together = threading.Barrier(3)

    class Meeting(Counting):
        def load(self, events: range) -> range:
            if events.start in (2, 4):
                together.wait(timeout=30)
            return super().load(events)

        def launch(self, slot: Slot, staged: int) -> int:
            if staged == 0:
                together.wait(timeout=30)
            return super().launch(slot, staged)

    work = Meeting(60)
    overlap(PARTS, work, slots=[CountingSlot() for _ in range(2)], n_threads=2)
    np.testing.assert_array_equal(work.found, np.arange(60))


@pytest.mark.parametrize("step", ["load", "stage", "launch", "finish"])
@pytest.mark.parametrize("n_threads", [1, 4])
def test_an_error_anywhere_reaches_the_caller_and_leaves_no_thread(
    step: str, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Counting(60)
    original = getattr(work, step)

    def failing(*arguments: Any) -> Any:
        if work.launched >= 3:
            raise SourceError(f"{step}: gone")
        return original(*arguments)

    monkeypatch.setattr(work, step, failing)
    slots = [CountingSlot() for _ in range(2)]
    with pytest.raises(SourceError, match=f"{step}: gone"):
        overlap(PARTS, work, slots=slots, n_threads=n_threads)
    assert not [t for t in threading.enumerate() if t.name.startswith("sfxreduce-decode")]
    assert len(work.begun) < len(PARTS)


def test_an_event_that_cannot_be_read_stops_the_scorer_with_its_own_error() -> None:
    pixels = _pixels(1, 6)

    def read(events: range, there: NDArray[Any]) -> None:
        if 4 in events:
            raise SourceError("event 4 cannot be read")
        there[...] = pixels[events.start : events.stop]

    good = np.ones((1, *TILE_SHAPE), bool)
    feed = Feed(read=read, n_events=6, dtype=pixels.dtype, good=good)
    with pytest.raises(SourceError, match="event 4 cannot be read"):
        _poster(1, CPU).score(feed)


def test_a_stream_of_a_run_store_is_scored_as_batches_of_it_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = _pixels(8, 12, 2, dtype="int16").reshape(12, *WIDE.frame_shape)
    run = Run(source=ArrayFrames(frames=frames, detector=WIDE), columns=event_columns(12))
    ingest_run(run, out=tmp_path / "run.zarr", pool=SerialPool())
    largest = max((tmp_path / "run.zarr" / "frames").rglob("*"), key=lambda f: f.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # one event cannot be read
    largest.write_bytes(damaged)
    source = open_zarr(tmp_path / "run.zarr").source
    batches = score_events(source, CnnScorer(default_model()), range(12))
    # As on a card, but on the processor.
    monkeypatch.setattr("sfxreduce.pipeline.stages.batch.needs_gpu", lambda scorer: True)
    stream = score_events(source, CnnScorer(default_model()), range(12))
    assert np.isnan(batches["score"]).sum() == 1
    assert np.ptp(batches["score"][~np.isnan(batches["score"])]) > 0.05
    np.testing.assert_allclose(stream["score"], batches["score"], atol=ROUNDING)
    for name in ("reason", "tiles", "class"):
        np.testing.assert_array_equal(stream[name], batches[name])


def test_by_default_as_many_threads_as_processors() -> None:
    assert 1 <= DeviceSettings().threads <= 16
    assert DeviceSettings(n_threads=5).threads == 5


# The card's side of the seam, as far as it shows without a card


class Recorder:
    """Stands in for streams and events, and writes down who waits for whom."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def stream(self, name: str) -> Any:
        recorder = self

        class Stream:
            def wait_event(self, event: Any) -> None:
                recorder.log.append(f"{name} waits for {event.name}")

            def synchronize(self) -> None:
                recorder.log.append(f"{name} is idle")

        return Stream()

    def event(self, name: str) -> Any:
        recorder = self

        class Event:
            def __init__(self) -> None:
                self.name = name

            def record(self, _: Any) -> None:
                recorder.log.append(f"{name} recorded")

            def synchronize(self) -> None:
                recorder.log.append(f"caller waits for {name}")

        return Event()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    work, copies = recorder.stream("work"), recorder.stream("copies")
    names: Iterator[str] = iter(["copied", "used"] * 9)
    monkeypatch.setattr(_seam, "_event", lambda: recorder.event(next(names)))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copies)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    empty = torch.empty

    def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        recorder.log += ["pinned"] * pin_memory
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", unpinned)
    return recorder


def test_copies_and_work_wait_for_each_other(recorder: Recorder) -> None:
    with CudaSeam(torch.device("cpu")).slots(1, 4) as (slot,):
        for value in (7, 9):
            slot.wait()
            slot.host[:] = value
            assert slot.sent(4).tolist() == [value] * 4
            assert slot.sent(4).tolist() == [value] * 4  # not copied again
            slot.release()
    once = ["copies waits for used", "copied recorded", "work waits for copied", "used recorded"]
    assert recorder.log == [
        "pinned",
        "caller waits for copied",
        "used recorded",  # memory that earlier work may still read
        *once,
        "caller waits for copied",
        *once,
        "copies is idle",
    ]


def test_only_what_was_staged_is_copied(recorder: Recorder) -> None:
    with CudaSeam(torch.device("cpu")).slots(1, 4) as (slot,):
        slot.host[:] = 1
        slot.sent(4)
        slot.release()
        slot.host[:] = 2
        assert slot.sent(2).tolist() == [2, 2, 1, 1]


# The patch network


def _patches(
    settings: DeviceSettings, hook: Callable[..., None] | None = None, *, classes: bool = True
) -> PatchesOnDevice:
    network = _network(PatchNetwork, 2, 3.0)
    network.head[-1].bias.add_(3.0)  # some candidates are taken for peaks, some are not
    if hook is not None:
        network.trunk[0].register_forward_pre_hook(hook)
    rng = np.random.default_rng(1)
    head = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    scorer = PatchesOnDevice(
        network,
        finder=CandidateFinder(most_per_tile=8),
        pooling=Pooling(most_per_tile=99.0, doubt=0.0, offset=-3.0, slope=2.0),
        class_head=head if classes else None,
        settings=settings,
    )
    scorer.on_cpu.trunk[0]._forward_pre_hooks.clear()  # the processor has memory enough
    return scorer


WIDE = Detector.centred("wide", (700, 350), adu_per_photon=20.0)
WINDOW = Window.tiled(WIDE)


def _patch_feed(n_events: int) -> Feed:
    return _feed(_pixels(8, n_events, len(WINDOW.origins)), window=WINDOW)


def _patches_by_cpu(
    scorer: PatchesOnDevice, feed: Feed
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    n_events, n_tiles = feed.n_events, len(feed.good)
    found = scorer.finder(feed.pixels(range(n_events)), feed.good, adu_per_photon=20.0)
    logits = patch_logits(scorer.on_cpu, found)
    evidence = scorer.pooling.evidence(
        logits, found, n_events=n_events, n_tiles=n_tiles, window=WINDOW
    )
    pooled = scorer.pooling.pooled(evidence, n_tiles=n_tiles)
    features = event_features(logits, found, WINDOW, n_events=n_events)
    assert scorer.class_head is not None
    return scorer.pooling.probability(pooled), class_of(features, *scorer.class_head)


@pytest.mark.parametrize("tiles", [1, 7, 99])
def test_patches_are_scored_as_by_the_processor(tiles: int) -> None:
    feed = _patch_feed(7)
    scorer = _patches(DeviceSettings(device="cpu", tiles=tiles, n_threads=2))
    found = scorer.score(feed)
    score, kind = _patches_by_cpu(scorer, feed)
    assert np.ptp(score) > 0.05
    assert len(set(kind.tolist())) > 1
    np.testing.assert_allclose(found.score, score, atol=ROUNDING)
    np.testing.assert_array_equal(found.kind, kind)
    assert (found.halvings, found.on_cpu) == (0, 0)
    plain = _patches(DeviceSettings(device="cpu", n_threads=1), classes=False)
    assert not plain.score(feed).kind.any()


def test_the_device_may_search_as_well() -> None:
    feed = _patch_feed(7)
    host, device = (
        _patches(DeviceSettings(device="cpu", tiles=7, n_threads=2, search_on_device=on))
        for on in (False, True)
    )
    assert isinstance(device.finder, DeviceFinder)
    by_host, by_device = host.score(feed), device.score(feed)
    assert np.ptp(by_host.score) > 0.05
    np.testing.assert_allclose(by_device.score, by_host.score, atol=device.tolerance)
    np.testing.assert_array_equal(by_device.peaks, by_host.peaks)
    np.testing.assert_array_equal(by_device.kind, by_host.kind)


@pytest.mark.parametrize("most", [20, 1, 0])
def test_patches_that_do_not_fit_are_halved_too(most: int, forgotten: list[int]) -> None:
    feed, full = _patch_feed(4), Full(most)
    scorer = _patches(DeviceSettings(device="cpu", tiles=99, n_threads=1), hook=full)
    found = scorer.score(feed)
    room = 4 * len(WINDOW.origins) * 8
    assert full.asked[:2] == [room, room // 2]
    assert found.halvings == len({size for size in full.asked if size > max(most, 1)})
    assert len(forgotten) == 1
    assert (found.on_cpu == 0) == (most > 0)
    np.testing.assert_allclose(found.score, _patches_by_cpu(scorer, feed)[0], atol=ROUNDING)


def test_blank_events_have_no_patches() -> None:
    blank = np.full((3, len(WINDOW.origins), *TILE_SHAPE), 7, np.int16)
    found = _patches(CPU).score(_feed(blank, window=WINDOW))
    assert len(set(found.score.tolist())) == 1
    assert _patches(CPU).score(_patch_feed(0)).score.shape == (0,)


# From a model


@pytest.mark.parametrize("architecture", ["poster", "patches"])
def test_a_model_becomes_a_device_scorer(architecture: str) -> None:
    network = _network(HitNetwork if architecture == "poster" else PatchNetwork, 1, 1.0)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    model = Model(config=ModelConfig(architecture=architecture, window=FULL), weights=weights)
    scorer = inference.device_scorer(model, CPU)
    score = scorer.score(_patch_feed(3)).score
    assert score.shape == (3,)
    assert ((score >= 0) & (score <= 1)).all()


# The benchmark


BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
RUN_BARE = """
import os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
optional = ("dask", "google_crc32c", "h5py", "numcodecs", "safetensors", "scipy", "xarray", "zarr")
sys.modules.update(dict.fromkeys(optional))
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def _figures(path: Path, *options: str, bare: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Figures of a small run on the processor, by their names."""
    program = ["-c", RUN_BARE, str(BENCHMARK)] if bare else [str(BENCHMARK)]
    small = ["--device", "cpu", "--small", "--threads", "1", "--json", str(path), *options]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARK.parents[1])}
    subprocess.run(
        [sys.executable, *program, *small], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    document = json.loads(path.read_text())
    assert document["failures"] == []
    assert document["machine"]["gpu"] is None
    named: dict[str, list[dict[str, Any]]] = {}
    for figure in document["figures"]:
        named.setdefault(figure["what"], []).append(figure)
    return named


def test_the_benchmark_measures_or_says_why_not(tmp_path: Path) -> None:
    found = _figures(tmp_path / "figures.json")
    flat = [figure for figures in found.values() for figure in figures]
    assert all((figure["value"] is None) == bool(figure["reason"]) for figure in flat)
    unmeasured = {figure["what"] for figure in flat if figure["value"] is None}
    copies = {"host to device", "copy limit", "share of the smaller limit"}
    compiled = {figure["what"] for figure in flat if figure["of"].get("mode") == "compiled"}
    assert unmeasured == copies | compiled
    differences = found["largest difference of a probability"]
    eager = [f["value"] for f in differences if f["of"]["mode"] == "eager"]
    assert eager[0] <= gpu.TOLERANCE["float32"]
    assert eager[1] <= gpu.TOLERANCE["half"]


def test_the_benchmark_runs_with_torch_numpy_and_numba_alone(tmp_path: Path) -> None:
    found = _figures(tmp_path / "figures.json", bare=True)
    assert found["device, decoding excluded"][0]["value"] > 0
    assert "codec cannot be loaded" in found["decode, one core"][0]["reason"]
    assert "patch network cannot be loaded" in found["patches, decoding excluded"][0]["reason"]


def test_a_task_is_as_long_in_the_benchmark_as_in_a_run() -> None:
    text = BENCHMARK.read_text()
    assert f"EVENTS_PER_TASK = {EVENTS_PER_STREAM}  # as `sfxreduce.pipeline.stages.score`" in text


def test_the_page_of_figures_is_that_of_the_kept_figures() -> None:
    results = BENCHMARK.parents[1] / "docs" / "results"
    make = runpy.run_path(str(BENCHMARK.with_name("gpu_page.py")))["page"]
    found = json.loads((results / "gpu.json").read_text())
    assert (results / "gpu.md").read_text() == make(found)
    assert found["failures"] == []


# With a card


@needs_cuda
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("tiles", [3, 64])
def test_a_card_says_what_the_processor_says(half: bool, tiles: int) -> None:
    cuda = DeviceSettings(device="cuda", half=half, tiles=tiles, n_threads=3)
    poster, feed = _poster(1, cuda), _feed(_pixels(1, 40, 2))
    found = poster.score(feed)
    np.testing.assert_allclose(found.score, _by_cpu(poster, feed), atol=poster.tolerance)
    assert found.on_cpu == 0


@needs_cuda
@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_a_card_compiles_or_not_and_says_the_same(
    dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    feed = _feed(_pixels(3, 20, dtype=dtype))
    plain, compiled = (
        _poster(4, DeviceSettings(device="cuda", compiled=compiled, half=False, tiles=8))
        for compiled in (False, True)
    )
    found = compiled.score(feed).score
    np.testing.assert_allclose(found, plain.score(feed).score, atol=ROUNDING)
    assert not _said(caplog)  # and so it was compiled


@needs_cuda
def test_a_card_scores_patches_as_the_processor() -> None:
    scorer, feed = _patches(DeviceSettings(device="cuda", tiles=9)), _patch_feed(20)
    score, kind = _patches_by_cpu(scorer, feed)
    found = scorer.score(feed)
    np.testing.assert_allclose(found.score, score, atol=scorer.tolerance)
    assert np.mean(found.kind == kind) > 0.9


@needs_cuda
@pytest.mark.parametrize("kind", INTEGERS)
def test_every_integer_survives_on_a_card(kind: str) -> None:
    limits = np.iinfo(kind)
    pixels = np.array([limits.min, limits.max, 0, 1], kind)
    sent = torch.from_numpy(pixels.view(np.uint8)).cuda()
    found = as_numbers(sent, pixels.dtype).cpu().numpy()
    np.testing.assert_array_equal(found, pixels.astype(np.float32))


@needs_cuda
def test_a_full_card_halves_its_batches() -> None:
    poster = _poster(1, DeviceSettings(device="cuda", half=False, tiles=128))
    feed = _feed(_pixels(1, 128))
    expected = poster.score(feed).score
    poster._bytes_per_tile = 1.0  # so that the first batch is too large
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(400e6 / total)
        found = poster.score(feed)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found.halvings > 0
    np.testing.assert_allclose(found.score, expected, atol=poster.tolerance)


@needs_cuda
def test_the_copies_are_page_locked() -> None:
    with CudaSeam(torch.device("cuda")).slots(1, 1000) as (slot,):
        slot.host[:] = 5
        assert int(slot.sent(1000).sum()) == 5000
        assert slot._bytes.is_pinned()  # type: ignore[attr-defined]
