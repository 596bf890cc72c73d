"""The peak finder: planted peaks, what never counts, and real frames."""

from __future__ import annotations

import csv
from pathlib import Path

import fabio
import h5py
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plain_peaks import plain_peaks

from sfxreduce.errors import SchemaError, UsageError
from sfxreduce.scorers.peaks.finder import MIN_PEAKS, PeakFinder, Peaks

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DTYPES = ["i2", "u2", "i4", "u4", "i8", "f4", "f8", ">i2", ">f4"]
FIELDS = ("panel", "y", "x", "intensity", "max_intensity", "snr", "n_pixels")
SPOT = np.array([[8, 20, 8], [20, 60, 20], [8, 20, 8]])

seeds = st.integers(0, 2**32 - 1)


def distances(shape: tuple[int, ...], y0: float, x0: float) -> NDArray[np.float64]:
    """Distance of every pixel from a beam at (y0, x0), the same on every panel."""
    y, x = np.indices(shape[-2:])
    return np.broadcast_to(np.hypot(y - y0, x - x0), shape).copy()


def centred(shape: tuple[int, ...]) -> NDArray[np.float64]:
    return distances(shape, (shape[-2] - 1) / 2, (shape[-1] - 1) / 2)


def everywhere(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.ones(shape, bool)


def assert_same(one: Peaks, other: Peaks) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def noisy(rng: np.random.Generator, shape: tuple[int, ...], *, spots: int) -> NDArray[np.int32]:
    """Photons on a sloping background, with spots of any size and some blotches."""
    slope = 1 + 20 / (1 + centred(shape) / 8)
    frame = rng.poisson(slope).astype(np.int32)
    for _ in range(spots):
        y, x = rng.integers(0, shape[-2]), rng.integers(0, shape[-1])
        height, width = rng.integers(1, 5, 2)
        panel = (int(rng.integers(0, shape[0])),) if len(shape) == 3 else ()
        frame[(*panel, slice(y, y + height), slice(x, x + width))] += rng.integers(10, 300)
    return frame


@given(
    seed=seeds,
    dtype=st.sampled_from(DTYPES),
    place=st.tuples(st.integers(0, 2), st.integers(1, 46), st.integers(1, 54)),
    photons=st.sampled_from(["poisson", "gaussian"]),
    stacked=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_planted_peak_is_found_where_it_was_planted(
    seed: int, dtype: str, place: tuple[int, int, int], photons: str, stacked: bool
) -> None:
    panel, y, x = place if stacked else (0, *place[1:])
    # So near the beam a ring has few pixels: the spot would be a part of its own background.
    assume(np.hypot(y - 23.5, x - 27.5) > 12)
    shape = (3, 48, 56) if stacked else (48, 56)
    rng = np.random.default_rng(seed)
    background = rng.poisson(9.0, shape) if photons == "poisson" else rng.normal(50, 3, shape)
    frame = background.astype(np.dtype(dtype))
    frame.reshape(-1, 48, 56)[panel, y - 1 : y + 2, x - 1 : x + 2] += (3 * SPOT).astype(dtype)
    found = PeakFinder().find(frame, everywhere(shape), centred(shape))
    near = (found.panel == panel) & (np.hypot(found.y - y, found.x - x) < 0.4)
    assert near.sum() == 1
    # The corners of the spot may drown in the noise; the rest of it must be there.
    assert 0.7 < found.intensity[near] / (3 * SPOT.sum()) < 1.2
    assert 5 <= found.n_pixels[near] <= 9


@given(seed=seeds, share=st.floats(0.0, 0.9))
@settings(max_examples=40, deadline=None)
def test_no_value_of_a_masked_pixel_changes_anything(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    shape = (2, 40, 50)
    frame = noisy(rng, shape, spots=12).astype(np.float64)
    good = rng.random(shape) >= share
    found = PeakFinder().find(frame, good, centred(shape))
    odd = rng.choice([np.nan, np.inf, -np.inf, -1.0, 0.0, 1e300, 65535.0], shape)
    assert_same(found, PeakFinder().find(np.where(good, frame, odd), good, centred(shape)))


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_a_pixel_that_is_not_finite_counts_as_a_masked_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (40, 50)
    frame = noisy(rng, shape, spots=12).astype(np.float32)
    bad = rng.random(shape) < 0.1
    frame[bad] = rng.choice([np.nan, np.inf, -np.inf], int(bad.sum()))
    # One ring, because the widths of rings follow the mask and not the values.
    radius = np.zeros(shape)
    found = PeakFinder(min_snr=3.0).find(frame, everywhere(shape), radius)
    assert_same(found, PeakFinder(min_snr=3.0).find(frame, ~bad, radius))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0, 1, 16383])
def test_a_constant_frame_has_no_peaks(dtype: str, value: int) -> None:
    frame = np.full((60, 70), value, dtype)
    assert len(PeakFinder().find(frame, everywhere(frame.shape), centred(frame.shape))) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.1, -3.7, 1e30, 1e300])
def test_a_frame_of_one_floating_value_has_no_peaks(value: float) -> None:
    frame = np.full((60, 70), value)
    assert len(PeakFinder().find(frame, everywhere(frame.shape), centred(frame.shape))) == 0


def test_a_frame_without_good_pixels_has_no_peaks() -> None:
    frame = np.random.default_rng(3).poisson(5, (60, 70))
    assert len(PeakFinder().find(frame, ~everywhere(frame.shape), centred(frame.shape))) == 0
    nowhere = np.full(frame.shape, np.nan)
    assert len(PeakFinder().find(frame, everywhere(frame.shape), nowhere)) == 0


@given(seed=seeds, order=st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_permuting_panels_permutes_peaks(seed: int, order: list[int]) -> None:
    shape = (4, 32, 40)
    frame = noisy(np.random.default_rng(seed), shape, spots=16)
    radius = centred(shape) + 7 * np.arange(4).reshape(4, 1, 1)
    found = PeakFinder().find(frame, everywhere(shape), radius)
    moved = PeakFinder().find(frame[order], everywhere(shape), radius[order])
    back = np.array(order)[moved.panel]
    sort = np.lexsort((moved.x, moved.y, back))
    expected = np.lexsort((found.x, found.y, found.panel))
    np.testing.assert_array_equal(back[sort], found.panel[expected])
    for name in FIELDS[1:]:
        np.testing.assert_allclose(
            getattr(moved, name)[sort], getattr(found, name)[expected], rtol=1e-5
        )


@given(seed=seeds, y0=st.integers(0, 30), x0=st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_a_tile_shows_the_peaks_of_a_frame_masked_around_it(seed: int, y0: int, x0: int) -> None:
    frame = noisy(np.random.default_rng(seed), (60, 70), spots=20)
    radius = centred(frame.shape)
    tile = np.s_[y0 : y0 + 30, x0 : x0 + 30]
    only = ~everywhere(frame.shape)
    only[tile] = True
    on_frame = PeakFinder().find(frame, only, radius)
    on_tile = PeakFinder().find(frame[tile], only[tile], radius[tile])
    np.testing.assert_array_equal(on_tile.n_pixels, on_frame.n_pixels)
    np.testing.assert_array_equal(on_tile.snr, on_frame.snr)
    np.testing.assert_allclose(on_tile.y + y0, on_frame.y, atol=1e-4)
    np.testing.assert_allclose(on_tile.x + x0, on_frame.x, atol=1e-4)


@given(
    seed=seeds,
    min_snr=st.sampled_from([0.8, 3.0, 5.0]),
    min_pixels=st.integers(1, 3),
    local_radius=st.integers(1, 4),
    min_adc=st.sampled_from([0.0, 30.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_compiled_search_agrees_with_the_plain_one(
    seed: int, min_snr: float, min_pixels: int, local_radius: int, min_adc: float
) -> None:
    rng = np.random.default_rng(seed)
    shape = (2, 36, 44)
    frame = noisy(rng, shape, spots=10)
    good = rng.random(shape) > 0.05
    finder = PeakFinder(
        min_snr=min_snr,
        min_pixels=min_pixels,
        max_pixels=25,
        min_adc=min_adc,
        local_radius=local_radius,
    )
    found = finder.find(frame, good, centred(shape))
    rows = plain_peaks(frame, good, centred(shape), finder)
    assert len(found) == len(rows)
    for column, name in zip(rows.T, FIELDS, strict=True):
        np.testing.assert_allclose(getattr(found, name), column, rtol=1e-4, err_msg=name)


@given(seed=seeds, n_events=st.integers(0, 4))
@settings(max_examples=20, deadline=None)
def test_counts_are_the_numbers_of_peaks_found_again_and_again(seed: int, n_events: int) -> None:
    rng = np.random.default_rng(seed)
    frames = np.array([noisy(rng, (40, 40), spots=8) for _ in range(n_events)], np.int16)
    frames = frames.reshape(n_events, 40, 40)
    good, radius = everywhere((40, 40)), centred((40, 40))
    counts = PeakFinder().count(frames, good, radius)
    assert counts.dtype == np.int32
    found = [PeakFinder().find(frame, good, radius) for frame in frames]
    assert counts.tolist() == [len(peaks) for peaks in found]
    for frame, peaks in zip(frames, found, strict=True):
        assert_same(peaks, PeakFinder().find(frame, good, radius))


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_the_layout_of_a_frame_in_memory_does_not_matter(seed: int) -> None:
    frame = noisy(np.random.default_rng(seed), (40, 50), spots=10).astype(np.int16)
    good, radius = everywhere(frame.shape), centred(frame.shape)
    found = PeakFinder().find(frame, good, radius)
    strided = np.zeros((80, 100), np.int16)
    strided[::2, ::2] = frame
    locked = frame.copy()
    locked.setflags(write=False)
    for same in (strided[::2, ::2], np.asfortranarray(frame), frame.astype(">i2"), locked):
        assert_same(found, PeakFinder().find(same, good, radius))


@pytest.mark.parametrize("photons_per_pixel", [1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3])
@pytest.mark.parametrize("gain", [1.0, 20.0])
def test_single_photons_on_a_dark_frame_are_not_peaks(
    photons_per_pixel: float, gain: float
) -> None:
    rng = np.random.default_rng(11)
    shape = (500, 500)
    photons = rng.poisson(photons_per_pixel, shape)
    readout = 0 if gain == 1 else rng.normal(0, gain / 8, shape)
    frame = np.rint(gain * photons + readout).astype(np.int32)
    found = PeakFinder().find(frame, everywhere(shape), centred(shape), adu_per_photon=gain)
    assert len(found) == 0


@pytest.mark.parametrize("photons_per_pixel", [0.5, 1.0, 3.0, 30.0, 1000.0])
def test_false_alarms_are_as_rare_for_photons_as_for_gaussian_noise(
    photons_per_pixel: float,
) -> None:
    # One pixel in 31,574 of Gaussian noise lies above four standard deviations: 32 expected. A
    # threshold that ignores the skewness of photon counts shows 1100 at three photons a pixel.
    frame = np.random.default_rng(5).poisson(photons_per_pixel, (1000, 1000))
    found = PeakFinder(min_snr=4.0).find(frame, everywhere(frame.shape), centred(frame.shape))
    assert len(found) < 80


def test_a_bright_photon_on_a_dark_counting_detector_is_seen() -> None:
    frame = np.random.default_rng(2).poisson(0.01, (200, 200)).astype(np.uint16)
    frame[50, 60] = 12
    found = PeakFinder().find(frame, everywhere(frame.shape), centred(frame.shape))
    assert [(found.y[0], found.x[0])] == [(50, 60)]


def test_pixels_touch_across_corners_but_not_across_panels() -> None:
    frame = np.random.default_rng(4).poisson(4, (2, 30, 30))
    frame[0, 29, 10] = frame[1, 0, 10] = 90
    frame[0, 10, 10] = frame[0, 11, 11] = frame[0, 12, 10] = 90
    found = PeakFinder().find(frame, everywhere(frame.shape), centred(frame.shape))
    assert list(zip(found.panel.tolist(), found.n_pixels.tolist(), strict=True)) == [
        (0, 3),
        (0, 1),
        (1, 1),
    ]


def test_rows_do_not_wrap_around() -> None:
    frame = np.random.default_rng(4).poisson(4, (30, 30))
    frame[10, 29] = frame[11, 0] = 90
    found = PeakFinder().find(frame, everywhere(frame.shape), centred(frame.shape))
    assert found.n_pixels.tolist() == [1, 1]


@pytest.mark.parametrize(("low", "high", "sizes"), [(1, 200, [1, 4, 9]), (2, 8, [4]), (5, 9, [9])])
def test_a_peak_has_a_size_within_the_limits(low: int, high: int, sizes: list[int]) -> None:
    frame = np.full((60, 60), 3)
    for number, side in enumerate((1, 2, 3)):
        frame[10 : 10 + side, 10 + 15 * number : 10 + 15 * number + side] = 99
    finder = PeakFinder(min_pixels=low, max_pixels=high)
    found = finder.find(frame, everywhere(frame.shape), centred(frame.shape))
    assert found.n_pixels.tolist() == sizes


def test_too_many_peaks_leave_the_strongest_in_order() -> None:
    frame = np.random.default_rng(6).poisson(4, (90, 90))
    heights = np.random.default_rng(7).permutation(np.arange(100, 164))
    frame[5:85:10, 5:85:10] = heights.reshape(8, 8)
    good, radius = everywhere(frame.shape), centred(frame.shape)
    everything = PeakFinder().find(frame, good, radius)
    few = PeakFinder(max_peaks=10).find(frame, good, radius)
    strongest = np.sort(np.argsort(-everything.snr, kind="stable")[:10])
    np.testing.assert_array_equal(few.snr, everything.snr[strongest])


def test_a_step_between_panels_is_not_a_row_of_peaks() -> None:
    frame = np.random.default_rng(8).poisson(20, (300, 300))
    frame[150:] += 60
    found = PeakFinder().find(frame, everywhere(frame.shape), centred(frame.shape))
    assert len(found) == 0


def test_a_ring_of_ice_is_not_a_ring_of_peaks_even_off_centre() -> None:
    shape = (400, 400)
    ring = 60 * np.exp(-(((distances(shape, 200, 200) - 120) / 2) ** 2))
    frame = np.random.default_rng(9).poisson(10 + ring)
    for beam in (200, 190):
        found = PeakFinder().find(frame, everywhere(shape), distances(shape, beam, 200))
        assert len(found) <= 1


@pytest.mark.parametrize(
    ("settings_", "match"),
    [
        ({"min_snr": 0.0}, "positive min_snr .* found 0.0"),
        ({"min_snr": np.nan}, "positive min_snr"),
        ({"min_adc": np.inf}, "finite min_adc"),
        ({"min_pixels": 0}, "1 <= min_pixels"),
        ({"min_pixels": 5, "max_pixels": 4}, "found 5 and 4"),
        ({"local_radius": 0}, "local_radius"),
        ({"max_peaks": 0}, "max_peaks"),
    ],
)
def test_settings_no_peak_could_meet_are_refused(settings_: dict[str, float], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        PeakFinder(**settings_)  # type: ignore[arg-type]


def test_shapes_that_differ_are_refused() -> None:
    frame = np.zeros((10, 12), np.int16)
    with pytest.raises(SchemaError, match=r"found \(10, 12\), \(12, 10\) and \(10, 12\)"):
        PeakFinder().find(frame, everywhere((12, 10)), centred((10, 12)))
    with pytest.raises(SchemaError, match=r"all \(y, x\) or \(panel, y, x\)"):
        PeakFinder().count(frame, everywhere((12,)), np.zeros(12))


@pytest.mark.parametrize("dtype", [np.complex64, np.bool_, object])
def test_pixels_that_are_no_real_numbers_are_refused(dtype: type) -> None:
    frame: NDArray[np.generic] = np.zeros((10, 12), dtype)
    with pytest.raises(SchemaError, match="integer or floating pixels"):
        PeakFinder().find(frame, everywhere(frame.shape), centred(frame.shape))


@pytest.mark.skipif(not (DATA / "thaumatin_grid").exists(), reason="no shared/data/thaumatin_grid")
def test_frames_of_a_thaumatin_crystal_are_told_from_blanks() -> None:
    with (DATA / "thaumatin_grid" / "dials_spots.csv").open() as lines:
        spots = {int(row["frame"]): int(row["dials_strong_spots"]) for row in csv.DictReader(lines)}
    for number, dials in spots.items():
        frame = fabio.open(DATA / "thaumatin_grid" / f"thau_3_2_{number:04}.cbf.bz2").data
        good = (frame >= 0) & (frame < 1046527)
        # The header's beam centre, and the middle of the frame, 53 pixels off.
        for radius in (distances(frame.shape, 1306.46, 1261.11), centred(frame.shape)):
            found = len(PeakFinder().find(frame, good, radius))
            assert found >= 2 * MIN_PEAKS if dials > 10 else found <= MIN_PEAKS / 2


@pytest.mark.skipif(
    not (DATA / "independent_sim").exists(), reason="no shared/data/independent_sim"
)
def test_hits_of_another_simulation_are_told_from_blanks() -> None:
    with h5py.File(DATA / "independent_sim" / "dev.cxi") as file:
        frames = file["entry_1/instrument_1/detector_1/data"]
        kinds, true_peaks = file["truth/kind"][:], file["truth/n_peaks_snr5"][:]
        good, radius = everywhere(frames.shape[1:]), centred(frames.shape[1:])
        for event in np.flatnonzero((kinds == b"blank") | (true_peaks >= 10)):
            found = PeakFinder().find(frames[event], good, radius)
            if kinds[event] == b"blank":
                assert len(found) <= MIN_PEAKS / 2
            else:
                assert len(found) >= 1.5 * MIN_PEAKS
