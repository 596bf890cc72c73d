"""A run tells its own gain and hot pixels; it never blames a crystal that stands still."""

from __future__ import annotations

import math

import numpy as np
import pytest
from planted import ArrayFrames

from sfxreduce.quality.bad_pixels import empty_pixels, hot_pixels, noisy_pixels
from sfxreduce.quality.conditions import Conditioned, Conditions, conditions_of_run
from sfxreduce.quality.frame_statistics import frame_statistics
from sfxreduce.quality.gain import estimate_gain
from sfxreduce.quality.panels import inspect_parts, parts_of
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.simulate.run import simulate_run

GOOD = np.ones((160, 160), bool)


def _frames(n: int, *, gain: float = 20.0, noise: float = 4.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    level = np.linspace(0.2, 6.0, 160)
    photons = rng.poisson(level, (n, 160, 160))
    return np.rint(gain * photons + rng.normal(30, noise, photons.shape)).astype(np.int32)


@pytest.mark.parametrize("gain", [1.0, 6.0, 20.0, 100.0])
def test_the_gain_is_found_within_a_twentieth(gain: float) -> None:
    frames = _frames(6, gain=gain, noise=0.2 * gain)
    assert estimate_gain(frames, GOOD) == pytest.approx(gain, rel=0.05)


def test_peaks_on_every_frame_do_not_move_the_gain() -> None:
    frames = _frames(6)
    rng = np.random.default_rng(1)
    for frame in frames:
        y, x = rng.integers(0, 160, (2, 10))
        frame[y, x] += 4000
    assert estimate_gain(frames, GOOD) == pytest.approx(20.0, rel=0.1)


@pytest.mark.parametrize("value", [0, 500])
def test_constant_frames_tell_no_gain(value: int) -> None:
    assert math.isnan(estimate_gain(np.full((4, 160, 160), value), GOOD))


def test_no_frames_tell_nothing() -> None:
    none = np.zeros((0, 160, 160), np.int32)
    assert math.isnan(estimate_gain(none, GOOD))
    assert not hot_pixels(none, GOOD).any()


def test_hot_pixels_are_found_and_moving_peaks_are_not() -> None:
    frames = _frames(24)
    hot = (np.array([5, 40, 155]), np.array([7, 150, 80]))
    frames[:, hot[0], hot[1]] += 900
    for number, frame in enumerate(frames):
        frame[20 + number * 5, 60] += 3000
    found = hot_pixels(frames, GOOD, adu_per_photon=20.0)
    assert found[hot].all()
    assert not found[20 : 20 + 24 * 5 : 5, 60].any()
    assert found.sum() <= 3 + 5


def test_a_seam_of_larger_pixels_is_found_and_a_slope_is_not() -> None:
    rng = np.random.default_rng(5)
    level = np.broadcast_to(np.linspace(0.2, 6.0, 160), (160, 160)).copy()
    level[79:81] *= 2
    frames = np.rint(20.0 * rng.poisson(level, (24, 160, 160))).astype(np.int32)
    found = hot_pixels(frames, GOOD, adu_per_photon=20.0)
    assert found[79:81].mean() > 0.9
    assert np.delete(found, [79, 80], axis=0).mean() < 0.005


def test_few_frames_accuse_no_pixel() -> None:
    frames = _frames(19)
    frames[:, 50, 50] += 5000
    assert not hot_pixels(frames, GOOD, adu_per_photon=20.0).any()


@pytest.mark.parametrize("shape", [(8, 8), (15, 200), (3, 8, 64), (1, 1)])
@pytest.mark.parametrize("value", [5.0, np.nan])
def test_nobody_is_accused_where_nothing_can_be_told(shape: tuple[int, ...], value: float) -> None:
    frames, good = np.full((24, *shape), value, np.float32), np.ones(shape, bool)
    assert not noisy_pixels(frames, good).any()
    assert not hot_pixels(frames, good).any()
    assert np.isnan(frame_statistics(frames, good)[:, 0]).all()
    nothing = np.full((24, 64, 64), np.nan, np.float32)
    assert not noisy_pixels(nothing, np.ones((64, 64), bool)).any()


@pytest.mark.parametrize("dtype", ["i2", "u2", "i4", "f2", "f4", "f8"])
def test_byte_order_changes_no_statistics_and_no_pixel(dtype: str) -> None:
    native = _frames(24, gain=4.0).clip(0).astype(dtype)
    native[:, 40, 50] += 90
    swapped = native.astype(f">{dtype}")
    assert np.array_equal(frame_statistics(native, GOOD), frame_statistics(swapped, GOOD))
    for accuse in (hot_pixels, noisy_pixels):
        assert np.array_equal(accuse(native, GOOD), accuse(swapped, GOOD))
    assert hot_pixels(swapped, GOOD)[40, 50]


def test_a_crystal_that_stands_still_is_no_detector_fault() -> None:
    frames = _frames(24)
    frames[:, ::8, ::8] += 3000  # more than one pixel in a hundred
    assert not hot_pixels(frames, GOOD, adu_per_photon=20.0).any()


def test_a_known_gain_is_not_questioned_and_the_mask_only_grows() -> None:
    run = simulate_run("lysozyme-8kev", n_events=24, frame_shape=(350, 350), seed=3)
    found = conditions_of_run(run)
    assert (found.adu_per_photon, found.frames) == (20.0, 24)
    seen = Conditioned(source=run.source, found=found)
    assert not (seen.detector.good() & ~run.detector.good()).any()
    np.testing.assert_array_equal(seen.read([2]).pixels, run.source.read([2]).pixels)
    assert (seen.path, seen.n_events, seen.dtype) == (run.path, 24, run.source.dtype)
    assert (seen.n_bytes, seen.inputs) == (run.source.n_bytes, run.source.inputs)


def test_nothing_found_leaves_the_mask_as_it_is() -> None:
    run = simulate_run("lysozyme-8kev", n_events=1, frame_shape=(64, 64))
    seen = Conditioned(source=run.source, found=Conditions())
    np.testing.assert_array_equal(seen.detector.mask, run.detector.mask)
    assert math.isnan(seen.detector.adu_per_photon)


def test_corners_of_an_assembled_picture_are_gaps_and_dark_places_are_not() -> None:
    rng = np.random.default_rng(3)
    frames = rng.poisson(0.5, (24, 400, 400)).astype(np.int16)
    frames[:, :150, :200] = 0
    frames[:, 300:320, 300:320] = 0  # a small area may be chance, or dead pixels
    empty = empty_pixels(frames, np.ones((400, 400), bool))
    assert empty[:150, :200].all()
    assert not empty[160:].any()
    assert not empty[:, 208:].any()
    assert not empty_pixels(frames[:19], np.ones((400, 400), bool)).any()


def test_a_frame_with_empty_corners_is_whole_and_one_that_loses_more_is_not() -> None:
    rng = np.random.default_rng(4)
    frames = rng.poisson(3, (24, 700, 700)).astype(np.int16)
    frames[:, :350, :350] = 0
    frames[5, 350:, 350:] = 0
    detector = Detector.centred("camera", (700, 700))
    run = Run(
        source=ArrayFrames(frames=frames, detector=detector), columns=event_columns(len(frames))
    )
    seen = Conditioned(source=run.source, found=conditions_of_run(run))
    before, after = (
        inspect_parts(frames, parts_of(known, None)) for known in (detector, seen.detector)
    )
    assert (before == Reason.PANELS_MISSING).all()
    assert np.flatnonzero(after).tolist() == [5]
