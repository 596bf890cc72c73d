"""What is odd about pixels and parts is told by compiled loops just as by the plain rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sfxreduce.errors import SchemaError
from sfxreduce.quality.events import MANY_NONFINITE, MANY_SATURATED, inspect_pixels
from sfxreduce.quality.panels import Parts, _median, inspect_parts, parts_of
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.window import Window

DTYPES = [f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)] + ["f2", "f4", "f8"]
DTYPES += [f">{kind}" for kind in ("i2", "u2", "i4", "f4", "f8")]
SATURATIONS = (math.nan, math.inf, -math.inf, -1e300, -5.0, 0.0, 6.5, 7.0, 200.0, 255.5, 16383.0)
SATURATIONS += (32767.0, 65535.0, 65535.5, 2.0**31, 2.0**53 + 2, 2.0**63, 2.0**64, 1e300)
ALL_TO_SEE = 256


def _plain_condition(event: np.ndarray, good: np.ndarray, saturation_adu: float) -> Reason:
    values = event[good]
    found = Reason(0)
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        n_bad = values.size - int(np.count_nonzero(finite))
        if n_bad:
            many = n_bad / values.size >= MANY_NONFINITE
            found |= Reason.MANY_NONFINITE if many else Reason.FEW_NONFINITE
            values = values[finite]
    if values.size == 0 or np.all(values == values[0]):
        found |= Reason.CONSTANT
    if not math.isnan(saturation_adu):
        with np.errstate(over="ignore"):
            n_full = int(np.count_nonzero(np.greater_equal(values, saturation_adu)))
        if n_full > MANY_SATURATED * values.size:
            found |= Reason.SATURATED
    return found


def _members(parts: Parts) -> list[np.ndarray]:
    return np.split(parts.members, parts.starts[1:-1])


def _plain_parts(event: np.ndarray, parts: Parts, saturation_adu: float) -> Reason:
    members = [event[places] for places in _members(parts)]
    seen = event[parts.sample]
    found = Reason(0)
    constant = np.all(seen == seen[:, :1], axis=1)
    lost = np.isfinite(seen).mean(axis=1) < 0.5
    if lost.any() or any(np.all(members[p] == members[p][0]) for p in np.flatnonzero(constant)):
        found |= Reason.PANELS_MISSING
    middle = np.median(np.nan_to_num(seen.astype(np.float64), posinf=0, neginf=0), axis=1)
    hot = bool(np.any(middle >= 0.9 * saturation_adu))
    for first, last in parts.families:
        own = middle[first:last]
        if own.size >= 4:
            usual = float(np.median(own))
            spread = float(np.quantile(own, 0.75, method="lower")) - usual
            least = max(0.25 * abs(usual), 1.0)
            hot |= bool(np.any(own > usual + 10 * max(spread, least)))
    return found | Reason.PANEL_HOT if hot else found


def _in_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """Cut off what the type does not reach; integers have no NaN."""
    if np.dtype(dtype).kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    limits = np.iinfo(dtype)
    lowest, highest = float(limits.min), float(limits.max)
    inside = np.clip(np.nan_to_num(values, posinf=highest, neginf=lowest), lowest, highest)
    # The largest integers of 64 bits have no neighbour among floats.
    full = inside == highest
    whole = np.where(full, 0, inside).astype(dtype)
    whole[full] = limits.max
    return whole


_VALUES = (math.nan, math.inf, -math.inf, -7.0, -0.0, 0.0, 6.0, 7.0, 8.0, 255.0, 16383.0, 16384.0)
VALUES = st.sampled_from((*_VALUES, 32767.0, 65535.0, 2.0**31, 2.0**53, 1e300))


@st.composite
def _events(draw: st.DrawFn, sizes: st.SearchStrategy[int], dtype: str) -> np.ndarray:
    """Events that are nearly one value, or noise, with odd pixels sprinkled over them."""
    n_pixels = draw(sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    events = np.empty((draw(st.integers(0, 3)), n_pixels))
    for event in events:
        event[:] = draw(VALUES)
        if draw(st.booleans()):
            event += rng.integers(0, 3, n_pixels)
        for value in draw(st.lists(VALUES, max_size=3)):
            share = draw(st.sampled_from((0.0, 0.009, 0.01, 0.011, 0.3)))
            n_odd = max(round(share * n_pixels), 1)
            event[rng.choice(n_pixels, min(n_odd, n_pixels), replace=False)] = value
    return _in_dtype(events, dtype)


@st.composite
def _masks(draw: st.DrawFn, n_pixels: int) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random(n_pixels) < draw(st.sampled_from((0.0, 0.02, 0.5, 0.9, 1.0)))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)
@given(data=st.data(), saturation_adu=st.sampled_from(SATURATIONS))
def test_the_condition_is_that_of_the_plain_rule(
    dtype: str, data: st.DataObject, saturation_adu: float
) -> None:
    sizes = st.sampled_from((1, 2, 100, 101, 1000, 4096, 4097, 12289))
    events = data.draw(_events(sizes, dtype))
    good = data.draw(_masks(events.shape[1]))
    found = inspect_pixels(events, good, saturation_adu=saturation_adu)
    assert found.dtype == np.uint32
    assert found.tolist() == [_plain_condition(event, good, saturation_adu) for event in events]


@pytest.mark.parametrize(
    ("dtype", "n_bad", "n_full", "saturation_adu", "expected"),
    [
        ("f4", 3, 0, 300.0, Reason.FEW_NONFINITE),
        ("f4", 4, 0, 300.0, Reason.MANY_NONFINITE),
        ("f4", 100, 3, 300.0, Reason.MANY_NONFINITE),
        ("f4", 100, 4, 300.0, Reason.MANY_NONFINITE | Reason.SATURATED),  # of 300 pixels
        ("f4", 400, 0, 300.0, Reason.MANY_NONFINITE | Reason.CONSTANT),
        ("i2", 0, 4, 32767.0, Reason(0)),
        ("i2", 0, 5, 32767.0, Reason.SATURATED),
        ("i2", 0, 5, 32766.5, Reason.SATURATED),
        ("i2", 0, 5, 32767.5, Reason(0)),
        ("i2", 0, 0, 195.5, Reason(0)),
        ("i2", 0, 0, 194.5, Reason.SATURATED),
        ("i2", 0, 0, -40000.0, Reason.SATURATED),
        ("i2", 0, 400, math.nan, Reason.CONSTANT),
    ],
)
def test_shares_are_those_of_the_good_pixels_that_are_finite(
    dtype: str, n_bad: int, n_full: int, saturation_adu: float, expected: Reason
) -> None:
    pixels = np.arange(-200.0, 200.0)
    pixels[:n_full] = 32767
    pixels[400 - n_bad :] = np.nan
    good = np.ones((4, 100), bool)
    event = _in_dtype(pixels, dtype).reshape(1, 4, 100)
    assert inspect_pixels(event, good, saturation_adu=saturation_adu).tolist() == [expected]
    assert _plain_condition(event[0], good, saturation_adu) == expected


@pytest.mark.parametrize(("saturation_adu", "full"), [(-9.0, True), (-8.0, False), (-1e9, True)])
def test_full_scale_may_lie_below_zero(saturation_adu: float, full: bool) -> None:
    dark = np.arange(-400, -5, dtype=np.int16)[None]
    good = np.ones(dark.shape[1], bool)
    found = inspect_pixels(dark, good, saturation_adu=saturation_adu)
    assert found.tolist() == [Reason.SATURATED if full else 0]


@pytest.mark.parametrize("dtype", ["i2", "u2", "f4"])
@pytest.mark.parametrize("n_full", range(4))
def test_pixels_that_do_not_count_are_never_looked_at(dtype: str, n_full: int) -> None:
    pixels = np.arange(20000).reshape(1, 100, 200).astype(dtype)
    good = np.zeros((100, 200), bool)
    good[30:32, 10:110] = True  # 200 pixels: from 3 on there are too many
    pixels[0, ~good] = np.nan if dtype == "f4" else np.iinfo(dtype).max
    pixels[0, 31, 50 : 50 + n_full] = 30000
    found = inspect_pixels(pixels, good, saturation_adu=30000)
    assert found.tolist() == [Reason.SATURATED if n_full > 2 else 0]


@pytest.mark.parametrize("layout", ["every other event", "transposed", "read-only", "big-endian"])
def test_neither_layout_nor_byte_order_of_the_pixels_matters(layout: str) -> None:
    rng = np.random.default_rng(8)
    pixels = rng.poisson(5, (6, 40, 50)).astype(np.int16)
    pixels[2], pixels[4, :, 25:] = 7, 0
    pixels[5, 10:20] = 30000
    same = {
        "every other event": np.repeat(pixels, 2, axis=0)[::2],
        "transposed": np.ascontiguousarray(pixels.transpose(1, 2, 0)).transpose(2, 0, 1),
        "read-only": np.frombuffer(pixels.tobytes(), np.int16).reshape(pixels.shape),
        "big-endian": pixels.astype(">i2"),
    }[layout]
    good = rng.random((40, 50)) < 0.9
    parts = parts_of(Detector.centred("camera", (40, 50)), None)
    for seen in (pixels, same):
        found = inspect_pixels(seen, good, saturation_adu=30000)
        assert found.tolist() == [0, 0, Reason.CONSTANT, 0, 0, Reason.SATURATED]
        found = inspect_parts(seen, parts, saturation_adu=30000)
        assert found.tolist() == [0, 0, Reason.PANELS_MISSING, 0, 0, 0]


@st.composite
def _parts(draw: st.DrawFn) -> Parts:
    """Parts that overlap, in one or two families, and a few that are in none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.sampled_from((1, 64, 255, 256, 700)), max_size=12))
    members = [np.sort(rng.choice(1000, size, replace=False)) for size in sizes]
    spread = [m[np.linspace(0, m.size - 1, ALL_TO_SEE).astype(int)] for m in members]
    ends = sorted(draw(st.tuples(*[st.integers(0, len(sizes))] * 2)))
    return Parts(
        members=np.concatenate([np.zeros(0, np.int64), *members]),
        starts=np.cumsum([0, *sizes]),
        sample=np.array(spread, np.int64).reshape(-1, ALL_TO_SEE),
        families=np.array([[0, ends[0]], ends]),
        n_pixels=1000,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)
@given(data=st.data(), parts=_parts(), saturation_adu=st.sampled_from(SATURATIONS))
def test_parts_are_judged_as_by_the_plain_rule(
    dtype: str, data: st.DataObject, parts: Parts, saturation_adu: float
) -> None:
    events = data.draw(_events(st.just(1000), dtype)).astype("f8")
    members = _members(parts)
    values = st.sampled_from((math.nan, -math.inf, -1e308, 0.0, 9.0, 12.0, 40.0, 120.0, 1.7e308))
    for event in events:
        for part in data.draw(st.lists(st.integers(0, 11), max_size=4)):
            where = members[part % len(members)]
            event[where[:: data.draw(st.integers(1, 3))]] = data.draw(values)
    events = _in_dtype(events, dtype)
    found = inspect_parts(events, parts, saturation_adu=saturation_adu)
    assert found.dtype == np.uint32
    with np.errstate(over="ignore"):
        assert found.tolist() == [_plain_parts(event, parts, saturation_adu) for event in events]


def _four_parts(middles: tuple[float, ...]) -> tuple[np.ndarray, Parts]:
    """An event of four parts, each one of 1000 pixels that are nearly one value."""
    event = np.repeat(middles, 1000)
    event[::1000] += 1
    places = np.arange(4000).reshape(4, 1000)
    parts = Parts(
        members=places.ravel(),
        starts=np.arange(0, 4001, 1000),
        sample=places[:, np.linspace(0, 999, ALL_TO_SEE).astype(int)],
        families=np.array([[0, 0], [0, 4]]),
        n_pixels=4000,
    )
    return event, parts


@pytest.mark.parametrize(
    ("middles", "expected"),
    [
        ((7, 7, 7, 7), Reason(0)),
        # Between the two in the middle lies 2, and 2 above it the upper quartile: 22 is not far.
        ((0, 4, 22, 0), Reason(0)),
        ((0, 4, 23, 0), Reason.PANEL_HOT),
        # Parts that are alike differ by a quarter at least, or by one: 0 + 10, 40 + 100.
        ((0, 10, 0, 0), Reason(0)),
        ((0, 11, 0, 0), Reason.PANEL_HOT),
        ((40, 140, 40, 40), Reason(0)),
        ((40, 141, 40, 40), Reason.PANEL_HOT),
        ((900, 900, 900, 900), Reason.PANEL_HOT),  # nine tenths of full scale
        ((899, 899, 899, 899), Reason(0)),
    ],
)
def test_a_part_far_above_the_others_is_hot(middles: tuple[float, ...], expected: Reason) -> None:
    event, parts = _four_parts(middles)
    for dtype in ("i2", "u2", "f4"):
        found = inspect_parts(event[None].astype(dtype), parts, saturation_adu=1000.0)
        assert found.tolist() == [expected]
        assert _plain_parts(event.astype(dtype), parts, 1000.0) == expected


def test_one_pixel_that_differs_makes_a_part_whole_and_half_of_the_numbers_do() -> None:
    event, parts = _four_parts((7, 7, 7, 7))
    event[parts.sample[:, 0]] = 7
    for dtype in ("i2", "f4"):
        assert inspect_parts(event[None].astype(dtype), parts) == [Reason.PANELS_MISSING]
        lit = event.astype(dtype)
        lit[[1, 1001, 2001, 3001]] = 8  # none of them is in the sample
        assert not np.isin([1, 1001, 2001, 3001], parts.sample).any()
        assert inspect_parts(lit[None], parts) == [0]
    lost = np.repeat(lit[None], 2, axis=0)
    lost[0, parts.sample[2, 128:]] = np.nan
    lost[1, parts.sample[2, 127:]] = np.nan
    assert inspect_parts(lost, parts).tolist() == [0, Reason.PANELS_MISSING]


@pytest.mark.parametrize("n_panels", [1, 3, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_parts_of_a_detector_are_judged_as_by_the_plain_rule(n_panels: int, masked: bool) -> None:
    rng = np.random.default_rng(n_panels)
    detector = Detector.unplaced("slabs", (n_panels, 180, 400))
    if masked:
        detector = detector.with_mask((rng.random(detector.frame_shape) < 0.3).astype(np.uint32))
    frames = rng.poisson(20, (12, *detector.frame_shape)).astype(np.int16)
    frames[1:6, -1] *= np.array([0, 2, 4, 5, 60], np.int16)[:, None, None]
    frames[6, -1, -20:] = 3
    frames[7, 0, :175, 175:350] += 500
    for window in (None, Window.tiled(detector)):
        pixels = frames
        if window is not None:
            pixels = np.stack([window.take(frame, detector) for frame in frames])
        parts = parts_of(detector, window)
        good = detector.good() if window is None else window.good(detector)
        assert good.ravel()[parts.members].all()
        found = inspect_parts(pixels, parts, saturation_adu=1000.0)
        flat = pixels.reshape(len(pixels), -1)
        assert found.tolist() == [_plain_parts(event, parts, 1000.0) for event in flat]
        assert np.count_nonzero(found) >= 3


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float64,
        st.integers(1, 40),
        elements=st.one_of(
            st.integers(-3, 3).map(float), st.floats(allow_nan=False, allow_infinity=False)
        ),
    )
)
@example(np.array([1.7e308, 1.7e308]))
def test_the_median_is_that_of_numpy(values: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        assert _median(values) == np.median(values)


def test_pixels_of_another_window_are_refused() -> None:
    detector = Detector.centred("camera", (400, 400))
    pixels, parts = np.zeros((2, 100, 100)), parts_of(detector, None)
    with pytest.raises(SchemaError, match=r"mask of shape \(100, 100\), found \(400, 400\)"):
        inspect_pixels(pixels, detector.good())
    with pytest.raises(SchemaError, match=r"events of 160000 pixels, found \(100, 100\)"):
        inspect_parts(pixels, parts)


def test_parts_that_differ_by_single_photons_are_no_hot_panels() -> None:
    # Below a photon a pixel the middle value of a square is 0 or 1 photon, which was 20 ADU: 275 of
    # 300 events of an ordinary run were kept for it.
    detector = Detector.centred("camera", (700, 700))
    y, x = np.indices((700, 700)) - 349.5
    light = 1.2 * np.exp(-np.hypot(y, x) / 300)
    frames = 20 * np.random.default_rng(3).poisson(light, (3, 700, 700))
    parts = parts_of(detector, None)
    assert inspect_parts(frames, parts).any()
    assert not inspect_parts(frames, parts, adu_per_photon=20.0).any()
