"""Frames of the simulator: the same bytes for the same event, and the detector's own statistics."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfxreduce.errors import UsageError
from sfxreduce.run.columns import EVENT_COLUMNS
from sfxreduce.run.detector import PixelFlag
from sfxreduce.run.window import Window
from sfxreduce.simulate import EXPERIMENTS, Kind, SimulatedFrames, simulate_run
from sfxreduce.simulate.random import key_of
from sfxreduce.simulate.render import expected_photons
from sfxreduce.simulate.shot import shoot

SMALL = (120, 130)


def source_of(
    experiment: str = "lysozyme-8kev",
    *,
    n_events: int = 200,
    hit_rate: float = 0.5,
    seed: int = 3,
    frame_shape: tuple[int, int] | None = SMALL,
) -> SimulatedFrames:
    return SimulatedFrames(
        experiment=experiment,
        n_events=n_events,
        hit_rate=hit_rate,
        seed=seed,
        frame_shape=frame_shape,
    )


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_an_event_has_the_same_bytes_in_any_order_and_batch(order: list[int], batch: int) -> None:
    source = source_of("photosystem-i-8kev")
    whole = source.read(range(12)).pixels
    for start in range(0, 12, batch):
        events = order[start : start + batch]
        assert np.array_equal(source.read(events).pixels, whole[events])


def test_a_pickled_source_is_small_and_renders_the_same_bytes() -> None:
    source = source_of()
    sent = pickle.dumps(source)
    assert len(sent) < 500
    assert np.array_equal(pickle.loads(sent).read([5]).pixels, source.read([5]).pixels)


def test_other_seeds_and_events_give_other_bytes() -> None:
    one, other = source_of(seed=1).read([0, 1]).pixels, source_of(seed=2).read([0]).pixels
    assert not np.array_equal(one[0], one[1])
    assert not np.array_equal(one[0], other[0])


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    short, long = (simulate_run("lysozyme-8kev", n_events=n, frame_shape=SMALL) for n in (5, 9))
    assert np.array_equal(short.frames.values, long.frames[:5].values)
    assert short.columns.equals(long.columns.isel(event=slice(5)))
    assert short.truth is not None
    assert long.truth is not None
    assert np.array_equal(short.truth.n_peaks, long.truth.n_peaks[:5])


def test_runs_that_differ_have_different_paths() -> None:
    sources = [source_of(), source_of(seed=4), source_of(hit_rate=0.1), source_of(frame_shape=None)]
    assert len({source.path for source in sources}) == len(sources)


@pytest.mark.parametrize("name", ["thaumatin-eiger", "pyp-cspad"])
def test_a_window_shows_the_pixels_of_the_whole_frame(name: str) -> None:
    source, event = source_of(name, frame_shape=None), 2
    window = Window.centre(source.detector, tile_shape=(90, 70))
    index = window.gather(source.detector)
    seen = source.read([event], window).pixels[0]
    whole = source.read([event]).pixels[0].ravel()
    assert seen.dtype == source.dtype
    assert np.array_equal(seen, np.where(index < 0, 0, whole[index]))


@pytest.mark.parametrize("hit_rate", [0.0, 0.03, 0.5, 1.0])
def test_the_share_of_events_with_a_crystal_is_the_hit_rate(hit_rate: float) -> None:
    n = 4000
    experiment = EXPERIMENTS["lysozyme-8kev"]
    hits = sum(
        bool(shoot(experiment, hit_rate=hit_rate, seed=1, event=event).crystals)
        for event in range(n)
    )
    assert abs(hits - n * hit_rate) <= 4 * np.sqrt(n * hit_rate * (1 - hit_rate))


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_every_experiment_delivers_frames_of_its_detector(name: str) -> None:
    run = simulate_run(name, n_events=3, hit_rate=1.0)
    camera = EXPERIMENTS[name].camera
    frame = run.frames[1].values
    assert frame.dtype == camera.dtype
    assert frame.shape == run.detector.frame_shape == run.detector.mask.shape
    assert frame.max() <= camera.saturation_adu
    assert run.source.n_bytes == 3 * frame.nbytes
    assert set(run.columns) == {column.name for column in EVENT_COLUMNS}
    energy = run.columns.photon_energy_ev.values
    assert energy == pytest.approx(EXPERIMENTS[name].beam.photon_energy_ev, rel=0.01)
    assert len(set(energy)) == 3
    assert len(set(run.columns.event_id.values)) == 3


def test_pixels_in_gaps_and_under_the_beamstop_see_no_photon() -> None:
    source = source_of("thaumatin-eiger", hit_rate=1.0, frame_shape=None)
    blind = (source.detector.mask & (PixelFlag.GAP | PixelFlag.SHADOWED | PixelFlag.DEAD)) != 0
    assert blind.mean() > 0.02
    assert not source.read([0]).pixels[0][blind].any()


def test_photon_counters_deliver_counts_without_sentinels() -> None:
    source = source_of("thaumatin-eiger", frame_shape=(400, 400))
    frame = source.read([1]).pixels[0]
    assert frame.dtype == np.uint16
    assert np.median(frame[source.detector.good()]) < 10


def test_the_panels_of_a_detector_do_not_overlap() -> None:
    for name in ("photosystem-ii-jungfrau", "pyp-cspad"):
        detector = source_of(name, frame_shape=None).detector
        assert len(detector.panels) > 1
        picture = detector.assembly()
        # Rounding to whole pixels hides single pixels of turned panels; an overlap hides rows.
        assert np.count_nonzero(picture >= 0) > 0.99 * detector.mask.size
        assert (picture < 0).mean() > 0.02


def blank_event(source: SimulatedFrames) -> int:
    run = simulate_run(
        source.experiment, n_events=40, hit_rate=0.0, seed=source.seed, frame_shape=SMALL
    )
    assert run.truth is not None
    return int(np.flatnonzero(run.truth.kind.values == Kind.BLANK)[0])


@pytest.mark.parametrize("name", ["lysozyme-8kev", "thaumatin-eiger", "receptor-lcp"])
def test_a_blank_region_has_the_mean_and_variance_of_its_photons(name: str) -> None:
    source = source_of(name, hit_rate=0.0, seed=1)
    event = blank_event(source)
    setup, camera = source.stage, EXPERIMENTS[name].camera
    key = key_of("event", name, source.seed, event)
    shot = shoot(setup.experiment, hit_rate=0.0, seed=source.seed, event=event)
    expected = expected_photons(shot, setup, key)[0]
    good = source.detector.good()
    photons = source.read([event]).pixels[0] / camera.adu_per_photon
    difference = (photons - expected)[good]
    # Photons, readout noise, rounding to ADU; drifts and pedestals are the same over a chip.
    variance = expected[good].mean() + (camera.readout_adu**2 + 1 / 12) / camera.adu_per_photon**2
    n = difference.size
    drift = 5 * (camera.pedestal_adu + camera.common_mode_adu) / camera.adu_per_photon
    assert abs(difference.mean()) < 5 * np.sqrt(variance / n) + drift
    assert difference.var() == pytest.approx(variance, rel=0.1)


def test_readings_never_exceed_the_full_scale() -> None:
    source = source_of(hit_rate=1.0, n_events=40, frame_shape=(400, 400))
    bright = max(int(source.read([event]).pixels.max()) for event in range(12))
    assert bright == EXPERIMENTS["lysozyme-8kev"].camera.saturation_adu


@pytest.mark.parametrize("name", ["photosystem-ii-jungfrau", "pyp-cspad"])
def test_a_detector_of_panels_cannot_be_cut(name: str) -> None:
    with pytest.raises(UsageError, match="expected the centre of one panel"):
        source_of(name, frame_shape=(350, 350))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiment": "unobtainium"}, "'unobtainium' is not known; expected one of"),
        ({"n_events": -1}, "expected 0 or more events"),
        ({"hit_rate": 1.5}, "a hit rate from 0 to 1"),
        ({"frame_shape": (3000, 100)}, "leave the frame shape out"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    values = {"experiment": "lysozyme-8kev", "n_events": 1, "hit_rate": 0.1, **options}
    with pytest.raises(UsageError, match=message):
        SimulatedFrames(seed=0, **values)  # type: ignore[arg-type]


def test_a_cut_frame_is_the_centre_of_the_whole_detector() -> None:
    whole, part = source_of(frame_shape=None).detector, source_of(frame_shape=SMALL).detector
    y0, x0 = (1750 - SMALL[0]) // 2, (1750 - SMALL[1]) // 2
    centre = (slice(y0, y0 + SMALL[0]), slice(x0, x0 + SMALL[1]))
    assert np.array_equal(part.mask, whole.mask[centre])
    assert np.array_equal(part.radius(), whole.radius()[centre])


def test_a_run_may_have_no_events() -> None:
    run = simulate_run("lysozyme-8kev", n_events=0, frame_shape=SMALL)
    assert run.truth is not None
    assert run.source.read([]).pixels.shape == (0, *SMALL)
    assert dict(run.truth.sizes) == {"event": 0, "peak": 0}
