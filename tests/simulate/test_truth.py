"""Truth of simulated runs: where the peaks are, how strong, and what kind of event it is."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sfxreduce.simulate import EXPERIMENTS, Kind, SimulatedFrames, simulate_run, simulate_truth
from sfxreduce.simulate.render import bragg_spots
from sfxreduce.simulate.shot import Shot, shoot
from sfxreduce.simulate.spots import Spots, add_spots, signal_to_noise
from sfxreduce.simulate.stage import Stage, stage


def source_of(
    experiment: str,
    *,
    n_events: int = 60,
    hit_rate: float = 0.5,
    frame_shape: tuple[int, int] | None = None,
) -> SimulatedFrames:
    return SimulatedFrames(
        experiment=experiment,
        n_events=n_events,
        hit_rate=hit_rate,
        seed=7,
        frame_shape=frame_shape,
    )


def join(parts: list[xr.Dataset]) -> xr.Dataset:
    """Blocks of truth as one, variable by variable along its own dimension."""
    return xr.Dataset(
        {
            name: xr.concat([part[name] for part in parts], variable.dims[0])
            for name, variable in parts[0].items()
        }
    )


def hit_of(name: str) -> tuple[Shot, Stage, int]:
    """Event of an experiment with many peaks."""
    source = source_of(name, n_events=40, hit_rate=1.0)
    truth = simulate_truth(source, range(40))
    event = int(np.argmax(truth.n_peaks.values))
    setup = source.stage
    return shoot(setup.experiment, hit_rate=1.0, seed=7, event=event), setup, event


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 12))
def test_truth_of_blocks_joins_to_the_truth_of_the_run(step: int) -> None:
    source = source_of("photosystem-i-8kev", n_events=12, frame_shape=(350, 350))
    whole = simulate_truth(source, range(12))
    blocks = [simulate_truth(source, range(i, min(i + step, 12))) for i in range(0, 12, step)]
    assert join(blocks).equals(whole)


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_counts_and_kinds_agree_with_the_peak_list(name: str) -> None:
    run = simulate_run(name, n_events=60, hit_rate=0.6, seed=1)
    truth, detector = run.truth, run.detector
    assert truth is not None
    strong = truth.peak_event.values[truth.peak_snr.values >= 5]
    assert np.array_equal(np.bincount(strong, minlength=60), truth.n_peaks)
    assert np.all(np.diff(truth.peak_event) >= 0)
    assert truth.peak_snr.min() >= 3
    good = detector.good().reshape(-1, *detector.panel_shape)
    at = (
        truth.peak_panel.values,
        *(np.rint(truth[k].values).astype(int) for k in ("peak_y", "peak_x")),
    )
    assert good[at].all()
    kind, n, crystals = truth.kind.values, truth.n_peaks.values, truth.n_crystals.values
    assert np.array_equal(kind == Kind.MULTI, crystals > 1)
    assert np.array_equal(kind == Kind.HIT, (crystals == 1) & (n >= 10))
    assert np.array_equal(kind == Kind.WEAK, (crystals == 1) & (n < 10))
    assert not n[crystals == 0].any()
    assert truth.kind.attrs["flag_meanings"] == "blank hit weak multi artefact"
    assert truth.kind.attrs["flag_values"].tolist() == [0, 1, 2, 3, 4]


def test_all_kinds_of_events_occur() -> None:
    source = source_of("photosystem-i-8kev", n_events=400, frame_shape=(350, 350))
    kind = simulate_truth(source, range(400)).kind.values
    assert set(kind) == {k.value for k in Kind}


def test_a_large_cell_fills_the_centre_with_up_to_about_a_hundred_peaks() -> None:
    source = source_of("photosystem-i-8kev", n_events=400, frame_shape=(350, 350))
    truth = simulate_truth(source, range(400))
    n = truth.n_peaks.values[truth.n_crystals.values == 1]
    assert np.mean(n == 0) > 0.05
    assert 15 < np.median(n) < 60
    assert 60 < np.percentile(n, 90) < 150


def test_a_powder_whose_rings_miss_the_detector_leaves_the_event_blank() -> None:
    # Ice and salt diffract below 4 Å, which the centre of this camera does not reach.
    setup = stage("photosystem-i-8kev", (350, 350))
    assert setup.s_max < 1 / 4.0
    source = source_of("photosystem-i-8kev", n_events=300, hit_rate=0.0, frame_shape=(350, 350))
    kind = simulate_truth(source, range(300)).kind.values
    shots = [shoot(setup.experiment, hit_rate=0.0, seed=7, event=event) for event in range(300)]
    streaks = np.array([shot.streak.photons > 0 for shot in shots])
    assert any(shot.powder is not None for shot in shots)
    assert np.array_equal(kind == Kind.ARTEFACT, streaks)


@pytest.mark.parametrize("name", ["lysozyme-8kev", "pyp-cspad"])
def test_peaks_lie_where_braggs_law_puts_them(name: str) -> None:
    shot, setup, _ = hit_of(name)
    spots = bragg_spots(shot, setup)
    x, y = (axis.reshape(setup.response.area.shape) for axis in setup.detector.positions())
    pixel = (spots.panel, np.rint(spots.y).astype(int), np.rint(spots.x).astype(int))
    # Brute force: every lattice point within two hundredths of a reciprocal ångström of the
    # Ewald sphere, projected by hand.
    cell = setup.experiment.form.cell
    ends = [int(length * setup.s_max) + 1 for length in cell[:3]]
    hkl = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in ends), indexing="ij"), -1)
    predicted = []
    for crystal in shot.crystals:
        s = hkl.reshape(-1, 3) @ crystal.reciprocal
        out = s + np.array([0.0, 0.0, 1.0 / shot.wavelength_a])
        near = np.abs(np.linalg.norm(out, axis=1) * shot.wavelength_a - 1.0) < 0.005
        near &= (out[:, 2] > 0) & s.any(axis=1)
        predicted.append(setup.frame.distance * out[near][:, :2] / out[near][:, 2:])
    places = np.concatenate(predicted)
    for px, py in zip(x[pixel], y[pixel], strict=True):
        assert np.hypot(places[:, 0] - px, places[:, 1] - py).min() < 1.0


@pytest.mark.parametrize("name", ["lysozyme-8kev", "photosystem-ii-jungfrau", "thaumatin-eiger"])
def test_spots_put_all_their_photons_on_the_frame(name: str) -> None:
    shot, setup, _ = hit_of(name)
    spots = bragg_spots(shot, setup)
    n_y, n_x = setup.detector.panel_shape
    inside = (np.abs(spots.x - n_x / 2) < n_x / 2 - 40) & (np.abs(spots.y - n_y / 2) < n_y / 2 - 40)
    photons = np.zeros(setup.response.area.shape, np.float32)
    add_spots(photons, spots.take(inside))
    assert photons.sum(dtype=float) == pytest.approx(spots.photons[inside].sum(), rel=2e-3)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.15, 2.0),
    st.floats(0.15, 2.0),
    st.floats(1.0, 4.0),
    st.floats(0.01, 50.0),
    st.floats(0.0, 6.28),
)
def test_signal_to_noise_is_that_of_the_best_sum_of_rendered_pixels(
    long: float, short: float, magnitude: float, background: float, angle: float
) -> None:
    long, short = max(long, short), min(long, short)
    one, photons = np.ones(1), 10.0**magnitude
    spot = Spots(
        panel=np.zeros(1, np.int64),
        x=25.2 * one,
        y=24.9 * one,
        photons=photons * one,
        long=long * one,
        short=short * one,
        ux=np.cos(angle) * one,
        uy=np.sin(angle) * one,
    )
    pixels = np.zeros((1, 51, 51), np.float32)
    add_spots(pixels, spot)
    # Independent pixels of signal p and variance v add up to sum(p^2 / v), squared.
    best = np.sqrt(np.sum(pixels.astype(float) ** 2 / (pixels + background + 0.2**2)))
    assert signal_to_noise(spot, background * one, 0.2)[0] == pytest.approx(best, rel=0.25)


def test_rendered_peaks_hold_the_photons_of_the_truth() -> None:
    name = "lysozyme-8kev"
    run = simulate_run(name, n_events=6, hit_rate=1.0, seed=3)
    truth, camera = run.truth, EXPERIMENTS[name].camera
    assert truth is not None
    pulls = []
    for event in range(6):
        frame = run.source.read([event]).pixels[0] / camera.adu_per_photon
        mine = truth.isel(peak=truth.peak_event.values == event)
        x, y = mine.peak_x.values, mine.peak_y.values
        for i in np.flatnonzero((mine.peak_photons.values > 60) & (mine.peak_photons.values < 300)):
            near = np.sort(np.hypot(x - x[i], y - y[i]))
            row, column = round(float(y[i])), round(float(x[i]))
            if (near.size > 1 and near[1] < 40) or not (30 < row < 1720 and 30 < column < 1720):
                continue
            box = frame[row - 4 : row + 5, column - 4 : column + 5]
            around = frame[row - 14 : row + 15, column - 14 : column + 15]
            level = np.median(around) if np.median(around) > 3 else around.mean()
            noise = np.sqrt(float(mine.peak_photons[i]) + 81 * (level + 0.04))
            pulls.append((box.sum() - 81 * level - float(mine.peak_photons[i])) / noise)
    assert len(pulls) > 10
    assert abs(np.mean(pulls)) < 1.0
    assert np.std(pulls) < 2.5
