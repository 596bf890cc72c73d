"""What stands out is found wherever it lies, whatever the gain, and what is masked never is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plain_candidates import plain_candidates

from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.patches.candidates import PATCH, CandidateFinder, Candidates
from sfxreduce.scorers.cnn.patches.pooling import Pooling, count_peaks

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


def _frame(rng: np.random.Generator, kind: str, photons: float, gain: float) -> NDArray[Any]:
    """Tile of any shape with peaks, a plateau and broken pixels, in ADU."""
    shape = tuple(rng.integers(1, 50, 2))
    frame = rng.poisson(photons, shape) * gain
    frame[rng.random(shape) > 0.98] += 40 * gain
    frame[2:4, 5:9] += 30 * gain
    if kind.startswith("f"):
        frame = frame + rng.normal(0, 0.2 * gain, shape) * rng.integers(0, 2)
        frame[rng.random(shape) > 0.99] = rng.choice([np.nan, np.inf, -np.inf, 65535, -1000])
    else:
        most = min(np.iinfo(kind).max, 65535)
        frame = np.clip(frame, 0, most)
        frame[rng.random(shape) > 0.99] = rng.choice([0, most])
    return frame.astype(kind)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["int16", "uint16", "int32", "uint8", "float32", "float64"]),
    photons=st.sampled_from([0.0, 0.03, 0.5, 4.0, 60.0, 2000.0]),
    gain=st.sampled_from([1.0, 3.0, 20.0]),
    share_good=st.sampled_from([1.0, 0.98, 0.5, 0.05]),
    least=st.sampled_from([4.0, 1.0]),
    most=st.sampled_from([32, 2, 0]),
    radius=st.sampled_from([10, 3, 1, 20]),
    coarse=st.sampled_from([1, 4, 3]),
)
def test_compiled_and_plain_search_agree(
    seed: int,
    kind: str,
    photons: float,
    gain: float,
    share_good: float,
    least: float,
    most: int,
    radius: int,
    coarse: int,
) -> None:
    rng = np.random.default_rng(seed)
    tile = _frame(rng, kind, photons, gain)
    good = rng.random(tile.shape) < share_good
    finder = CandidateFinder(
        least_prominence=least, most_per_tile=most, radius=radius, coarse=coarse
    )
    found = finder(tile[None, None], good[None], adu_per_photon=gain)
    plain = plain_candidates(tile, good, finder, gain)
    np.testing.assert_array_equal(found.y, plain["y"])
    np.testing.assert_array_equal(found.x, plain["x"])
    np.testing.assert_array_equal(found.scale, plain["scale"])
    np.testing.assert_allclose(found.prominence, plain["prominence"], rtol=1e-5)
    np.testing.assert_allclose(found.noise_photons, plain["noise_photons"], rtol=1e-5)
    if len(found):
        np.testing.assert_allclose(found.patch, plain["patch"], rtol=2e-3, atol=1e-5)


def _assert_equal(some: Candidates, other: Candidates) -> None:
    for name in ("y", "x", "scale", "prominence", "noise_photons", "patch"):
        np.testing.assert_array_equal(getattr(some, name), getattr(other, name))


@pytest.mark.parametrize("coarse", [1, 4])
@pytest.mark.parametrize("most", [32, 700])
def test_a_tile_is_looked_at_for_itself(most: int, coarse: int) -> None:
    finder = CandidateFinder(most_per_tile=most, least_prominence=2.0, coarse=coarse)
    rng = np.random.default_rng(1)
    frames = rng.poisson(rng.choice([0.1, 5, 300], (50, 2, 1, 1)), (50, 2, 40, 50)).astype(np.int16)
    good = rng.random((2, 40, 50)) > 0.1
    together = finder(frames, good, adu_per_photon=1.0)
    assert len(set(together.tile)) > 50
    for tile in range(100):
        alone = finder(frames[tile // 2][None, tile % 2, None], good[tile % 2, None])
        own = together.tile == tile
        columns = {name: getattr(together, name)[own] for name in together.__slots__}
        _assert_equal(Candidates(**columns), alone)


@pytest.mark.parametrize("kind", ["u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">i2", ">f4"])
def test_the_dtype_of_whole_numbers_changes_nothing(kind: str) -> None:
    frame = _background(2, photons=30.0).astype(np.int16)
    good = np.ones((1, 80, 80), bool)
    _assert_equal(FIND(frame, good), FIND(frame.astype(kind), good))


@pytest.mark.parametrize("kind", ["int64", "float32", "float64"])
def test_a_broken_pixel_spoils_its_cell_no_more_where_it_comes_first(kind: str) -> None:
    # Sums were counted from it in single precision, and the noise of its cell was rounded away.
    first = _background(4).astype(kind)
    first[0, 0, 28, 28], first[0, 0, 16, 16] = 70, 2**31 - 1
    second = first.copy()
    second[0, 0, 16, 16], second[0, 0, 17, 17] = first[0, 0, 17, 17], first[0, 0, 16, 16]
    good = np.ones((1, 80, 80), bool)
    peaks = []
    for frame in (first, second):
        found = FIND(frame, good, adu_per_photon=1.0)
        own = (found.y == 28) & (found.x == 28)
        peaks.append((found.prominence[own], found.noise_photons[own]))
    assert peaks[0][0].size == 1
    np.testing.assert_allclose(peaks[0], peaks[1], rtol=1e-5)


@pytest.mark.parametrize("coarse", [1, 4])
def test_candidates_are_few_and_in_order(coarse: int) -> None:
    frames = np.random.default_rng(0).poisson(3.0, (3, 2, 100, 90))
    finder = replace(FIND, coarse=coarse)
    found = finder(frames, np.ones((2, 100, 90), bool), adu_per_photon=1.0)
    assert (np.diff(found.tile) >= 0).all()
    assert np.bincount(found.tile, minlength=6).max() <= finder.most_of_tile
    for tile in range(6):
        own = found.take(found.tile == tile)
        assert (np.diff(own.scale.astype(int)) >= 0).all()
        assert set(own.scale) <= {1, coarse}
        assert max(np.bincount(own.scale)) <= finder.most_per_tile


@pytest.mark.parametrize("value", [0, 7, np.nan, np.inf, -np.inf, 16383])
def test_flat_and_broken_frames_have_no_candidates(value: float) -> None:
    frame = np.full((1, 1, 64, 64), value)
    assert len(FIND(frame, np.ones((1, 64, 64), bool))) == 0


def _of_tiles(
    tile: Sequence[int] | NDArray[np.integer],
    scale: Sequence[int] | NDArray[np.integer],
    *,
    y: Sequence[int] | NDArray[np.integer] = (),
    x: Sequence[int] | NDArray[np.integer] = (),
) -> Candidates:
    """Candidates of which only where they are, and on what scale, matters; bright ones."""
    n = len(tile)
    return Candidates(
        tile=np.array(tile, np.int32),
        y=np.array(y, np.int16) if len(y) else np.zeros(n, np.int16),
        x=np.array(x, np.int16) if len(x) else np.zeros(n, np.int16),
        scale=np.array(scale, np.uint8),
        prominence=np.zeros(n, np.float32),
        noise_photons=np.full(n, 100, np.float32),
        patch=np.full((n, PATCH, PATCH), 16, np.float16),
    )


FRAME = Window.tiled(Detector.centred("camera", (1750, 1750)))


def _at(row: NDArray[np.floating], column: NDArray[np.floating]) -> Candidates:
    """Candidates of one event at places of a frame of 25 tiles, seen on single pixels."""
    place = {origin: tile for tile, origin in enumerate(FRAME.origins)}
    rows, columns = (np.asarray(of).astype(int) for of in (row, column))
    tile = [
        place[r // 350 * 350, c // 350 * 350]
        for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    order = np.argsort(tile, kind="stable")
    return _of_tiles(
        np.array(tile)[order], np.ones(len(tile)), y=rows[order] % 350, x=columns[order] % 350
    )


def _on_rings(
    rng: np.random.Generator, radii: Sequence[float], n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places on rings around the middle, n on each."""
    radius = np.repeat(radii, n) + rng.normal(0, 1.5, n * len(radii))
    angle = rng.uniform(0, 2 * np.pi, radius.size)
    return 875 + radius * np.sin(angle), 875 + radius * np.cos(angle)


@pytest.mark.parametrize("seed", range(20))
def test_grains_of_powder_count_for_nothing_and_a_crystal_behind_them_for_all_it_shows(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    grains = _on_rings(rng, (220.0, 310.0, 480.0), 12)
    crystal = rng.uniform(100, 1650, 15), rng.uniform(100, 1650, 15)
    both = tuple(np.concatenate(of) for of in zip(grains, crystal, strict=True))

    def peaks(places: tuple[NDArray[np.float64], ...], window: Window | None = FRAME) -> int:
        return int(count_peaks(_at(*places), n_events=1, n_tiles=25, window=window).number[0])

    assert peaks(grains, window=None) == 36
    assert peaks(grains) <= 4  # those at the edge of a ring
    assert peaks(crystal) == 15
    assert peaks(both) >= 9  # some of them lie on the rings


@pytest.mark.parametrize("n_peaks", [10, 30, 100, 400])
@pytest.mark.parametrize("reach", [180, 400, 900])
def test_the_peaks_of_a_crystal_are_no_powder_however_many_they_are(
    n_peaks: int, reach: int
) -> None:
    # Peaks that are thrown at random over a disc: near the beam, or over the whole frame.
    rng = np.random.default_rng(n_peaks + reach)
    shares = []
    for _ in range(40):
        radius = reach * np.sqrt(rng.uniform(0, 1, n_peaks))
        angle = rng.uniform(0, 2 * np.pi, n_peaks)
        row, column = (np.clip(875 + radius * of(angle), 0, 1749) for of in (np.sin, np.cos))
        counts = count_peaks(_at(row, column), n_events=1, n_tiles=25, window=FRAME)
        shares.append(counts.number[0] / n_peaks)
    assert min(shares) > 0.3
    assert np.mean(shares) > 0.8


@given(
    logits=st.lists(st.floats(-20, 20), min_size=0, max_size=60),
    n_tiles=st.integers(1, 30),
    coarse=st.integers(0, 2**32 - 1),
)
def test_evidence_is_capped_and_never_falls_with_a_candidate(
    logits: list[float], n_tiles: int, coarse: int
) -> None:
    pooling = Pooling()
    tile = [n % n_tiles for n in range(len(logits))]
    scale = [4 if coarse >> n % 32 & 1 else 1 for n in range(len(logits))]

    def pooled(logits: list[float], tile: list[int], scale: list[int]) -> float:
        of_tiles = pooling.evidence(
            np.array(logits), _of_tiles(tile, scale), n_events=1, n_tiles=n_tiles
        )
        assert of_tiles.shape == (1, n_tiles)
        return float(pooling.pooled(of_tiles, n_tiles=n_tiles)[0])

    evidence = pooled(logits, tile, scale)
    for more in (1, 4):
        most = pooled([*logits, 9.0], [*tile, 0], [*scale, more])
        assert 0 <= evidence <= most <= pooling.cap(n_tiles) * n_tiles * (1 + 1e-9)
    score = pooling.probability(np.array([evidence]))[0]
    assert 0 <= score <= pooling.highest(n_tiles, n_tiles=n_tiles) * (1 + 1e-6) <= 1 + 1e-6


def test_what_both_scales_see_of_a_tile_counts_once() -> None:
    pooling = Pooling(doubt=0.0)
    once = pooling.evidence(np.full(3, 9.0), _of_tiles([0] * 3, [1] * 3), n_events=1, n_tiles=1)
    both = pooling.evidence(
        np.full(5, 9.0), _of_tiles([0] * 5, [1, 1, 1, 4, 4]), n_events=1, n_tiles=1
    )
    apart = pooling.evidence(
        np.full(5, 9.0), _of_tiles([0, 0, 0, 1, 1], [1, 1, 1, 4, 4]), n_events=1, n_tiles=2
    )
    assert once == both
    assert apart.sum() > once.sum()


@pytest.mark.parametrize("photons", [0.1, 3.0, 40.0])
@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.5, 4.0])
def test_peaks_of_any_width_are_counted_and_their_width_is_told(
    sigma: float, photons: float
) -> None:
    rng = np.random.default_rng(int(10 * sigma + photons))
    y, x = np.mgrid[:200, :200]
    frames = rng.poisson(photons, (4, 1, 200, 200)).astype(np.float64)
    places = [(40, 50), (40, 140), (100, 90), (160, 45), (155, 150)]
    for event, n in enumerate((0, 1, 3, 5)):
        for row, column in places[:n]:
            shape = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 2 / sigma**2)
            frames[event, 0] += rng.poisson(25 * (1 + photons**0.5) * shape)
    found = replace(FIND, coarse=4)(
        frames.astype(np.int32), np.ones((1, 200, 200), bool), adu_per_photon=1.0
    )
    counts = count_peaks(found, n_events=4, n_tiles=1)
    # A broad peak has a few highest pixels where light is scarce.
    for number, n in zip(counts.number.tolist(), (0, 1, 3, 5), strict=True):
        assert n <= number <= 3 * n
    assert np.isnan(counts.width_px[0])
    # A patch is cut off at its highest value: what is bright looks broader than it is.
    assert (counts.width_px[1:] > sigma / 2.5).all()
    assert (counts.width_px[1:] < sigma * 2.5).all()
