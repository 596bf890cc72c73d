"""What a run said about its detector is stored with the output, and cannot change unseen."""

from __future__ import annotations

import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import ArrayFrames, BrightestPixel

from sfxreduce.cluster import Pool
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.describe import describe_run
from sfxreduce.pipeline.filter import Outputs, filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.pipeline.verify.output import verify_run
from sfxreduce.quality.bad_pixels import noisy_pixels
from sfxreduce.quality.conditions import Conditioned, Conditions, background_of, conditions_of_run
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector, PixelFlag
from sfxreduce.run.run import Run

GAIN = 20.0
SIDE = 320
NOISY = (np.array([40, 100, 205]), np.array([250, 60, 131]))
HOT = (np.array([17, 222]), np.array([33, 300]))


def photons_at(radius: np.ndarray) -> np.ndarray:
    return 8.0 - radius / 40


def run_with_faults(*, n_events: int = 24, seed: int = 0) -> Run:
    """Background that falls from the beam, two hot pixels, three noisy ones, and moving peaks."""
    rng = np.random.default_rng(seed)
    detector = Detector.centred("camera", (SIDE, SIDE))
    frames = GAIN * rng.poisson(photons_at(detector.radius()), (n_events, SIDE, SIDE))
    frames = frames + rng.normal(0, 4, frames.shape)
    for number, frame in enumerate(frames):
        y, x = rng.integers(0, SIDE, (2, 20))
        frame[y, x] += 3000
        frame[NOISY] += rng.normal(0, 900, NOISY[0].size)
        frame[HOT] += 2000
        frame[8 * (number % 4) + 4, 160] += 3000  # one place, lit on a quarter of the frames
    pixels = np.rint(frames).astype(np.int16)
    return Run(
        source=ArrayFrames(frames=pixels, detector=detector), columns=event_columns(n_events)
    )


def filtered(run: Run, out: Path, pool: Pool, *, needs_conditions: bool = True) -> Path:
    scorer = replace(BrightestPixel(), needs_conditions=needs_conditions)
    filter_run(
        run,
        settings=FilterSettings(scorer=scorer, drift=False),
        outputs=Outputs(store=out),
        pool=pool,
    )
    return out


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def faulty() -> Run:
    return run_with_faults()


@pytest.fixture(scope="module")
def found(faulty: Run) -> Conditions:
    return conditions_of_run(faulty)


def test_background_and_gain_are_those_that_were_planted(faulty: Run, found: Conditions) -> None:
    radius = faulty.detector.radius()
    assert found.adu_per_photon == pytest.approx(GAIN, rel=0.1)
    assert found.background.adu == pytest.approx(GAIN * np.median(photons_at(radius)), rel=0.03)
    assert found.background_photons == found.background.adu / found.adu_per_photon
    known = np.isfinite(found.background.ring_adu)
    assert known[1:-1].all()
    expected = GAIN * photons_at(found.background.ring_radius_px)
    np.testing.assert_allclose(found.background.ring_adu[known], expected[known], rtol=0.08)


def test_noisy_pixels_are_found_and_peaks_are_not(faulty: Run, found: Conditions) -> None:
    assert found.noisy_index.tolist() == np.ravel_multi_index(NOISY, (SIDE, SIDE)).tolist()
    hot = np.ravel_multi_index(HOT, (SIDE, SIDE))
    assert set(hot) <= set(found.hot_index)
    mask = Conditioned(source=faulty.source, found=found).detector.mask.reshape(-1)
    assert (mask[found.noisy_index] & PixelFlag.NOISY).all()
    assert (mask[found.hot_index] & PixelFlag.HOT).all()
    assert set(np.flatnonzero(mask)) == {*found.hot_index, *found.noisy_index}


@given(
    level=st.floats(0.02, 30),
    noise=st.floats(0.05, 3),
    jitter=st.floats(0, 0.5),
    lit=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_no_quiet_pixel_is_accused(
    level: float, noise: float, jitter: float, lit: int, seed: int
) -> None:
    # Whatever the light, however it changes from shot to shot, and where crystals often scatter.
    rng = np.random.default_rng(seed)
    pulse = np.exp(rng.normal(0, jitter, (24, 1, 1)))
    fall = np.linspace(1, 3, 96)
    frames = rng.poisson(level * pulse * fall, (24, 96, 96)) + rng.normal(0, noise, (24, 96, 96))
    frames[rng.permutation(24)[:lit], 10:90:9, 10:90:7] += 300
    assert not noisy_pixels(frames, np.ones((96, 96), bool), adu_per_photon=1.0).any()


def test_few_frames_and_a_noisy_detector_accuse_no_pixel() -> None:
    rng = np.random.default_rng(2)
    good = np.ones((64, 64), bool)
    frames = rng.normal(100, 3, (24, 64, 64))
    frames[:, 5, 5] = rng.normal(100, 90, 24)
    assert np.flatnonzero(noisy_pixels(frames, good)).tolist() == [5 * 64 + 5]
    assert not noisy_pixels(frames[:19], good).any()
    frames[:, ::8, ::8] = rng.normal(100, 90, (24, 8, 8))  # more than one pixel in a hundred
    assert not noisy_pixels(frames, good).any()


def test_less_than_a_photon_is_not_rounded_to_none() -> None:
    frames = np.random.default_rng(3).poisson(0.2, (24, 160, 160))
    radius = Detector.centred("camera", (160, 160)).radius()
    background = background_of(frames, np.ones((160, 160), bool), radius=radius)
    assert background.adu == pytest.approx(0.2, rel=0.05)
    assert background.ring_adu.size == background.ring_radius_px.size == 8
    dark = background_of(frames, np.zeros((160, 160), bool), radius=radius)
    assert math.isnan(dark.adu)
    assert math.isnan(background_of(frames[:0], np.ones((160, 160), bool), radius=radius).adu)


def test_workers_make_the_amended_detector_once_even_if_the_gain_is_unknown(faulty: Run) -> None:
    # NaN equals no NaN: the mask was once copied again for each task.
    unknown = Conditions(hot=np.int64([3]).tobytes(), frames=24)
    sent = [pickle.loads(pickle.dumps(unknown)) for _ in range(2)]
    detectors = [Conditioned(source=faulty.source, found=one).detector for one in sent]
    assert detectors[0] is detectors[1]
    assert len(pickle.dumps(conditions_of_run(faulty))) < 10_000


def test_the_group_holds_what_was_found_and_is_part_of_the_output(
    faulty: Run, found: Conditions, tmp_path: Path, serial: Pool
) -> None:
    out = filtered(faulty, tmp_path / "hits.zarr", serial)
    with xr.open_zarr(out, group="conditions", consolidated=False) as table:
        np.testing.assert_array_equal(table.hot_index, found.hot_index)
        np.testing.assert_array_equal(table.noisy_index, found.noisy_index)
        np.testing.assert_array_equal(table.ring_radius_px, found.background.ring_radius_px)
        np.testing.assert_array_equal(table.ring_background_adu, found.background.ring_adu)
        assert table.hot_index.dtype == table.noisy_index.dtype == "int64"
        assert table.attrs == {
            "adu_per_photon": found.adu_per_photon,
            "background_adu": found.background.adu,
            "background_photons": found.background_photons,
            "frames": 24,
        }
    for _, array in zarr.open_group(str(out), path="conditions", mode="r").arrays():
        assert "crc32c" in str(array.metadata.to_dict()["codecs"])
    assert verify_run(out, against=faulty, pool=serial).ok
    told = describe_run(open_run(out))
    assert (told.hot_pixels, told.noisy_pixels) == (found.hot_index.size, 3)
    assert (told.adu_per_photon, told.background_adu) == (
        found.adu_per_photon,
        found.background.adu,
    )
    np.testing.assert_array_equal(open_run(out).detector.mask, faulty.detector.mask)


def test_a_byte_that_changed_and_a_group_that_is_gone_are_seen(
    faulty: Run, tmp_path: Path, serial: Pool
) -> None:
    out = filtered(faulty, tmp_path / "hits.zarr", serial)
    stored = sorted(name for name in tree(out) if name.startswith("conditions/"))
    assert sum(name.endswith("zarr.json") for name in stored) == 1 + 5
    assert len(stored) == 1 + 2 * 5 - 1  # nothing is empty in this run
    for number, name in enumerate(stored):
        hurt = tmp_path / f"hurt{number}.zarr"
        shutil.copytree(out, hurt)
        data = bytearray((hurt / name).read_bytes())
        data[len(data) // 2] ^= 4
        (hurt / name).write_bytes(data)
        found = verify_run(hurt, against=faulty, pool=serial)
        assert found.damaged_files == (name,)
        describe_run(open_run(hurt))
    shutil.rmtree(out / "conditions")
    assert not verify_run(out, against=faulty, pool=serial).ok
    assert describe_run(open_run(out)).hot_pixels is None


def test_serial_and_cluster_store_the_same_conditions(
    faulty: Run, tmp_path: Path, serial: Pool, cluster: Pool
) -> None:
    ingest_run(faulty, out=tmp_path / "run.zarr", pool=serial)
    for name, pool in (("serial", serial), ("cluster", cluster)):
        filtered(open_run(tmp_path / "run.zarr"), tmp_path / name, pool)
    assert tree(tmp_path / "serial") == tree(tmp_path / "cluster")
    assert any(name.startswith("conditions/noisy_index/c") for name in tree(tmp_path / "serial"))


def test_what_is_unknown_is_null_and_a_scorer_that_does_not_adapt_stores_nothing(
    tmp_path: Path, serial: Pool
) -> None:
    detector = Detector.centred("camera", (64, 64))
    frames = np.random.default_rng(0).normal(100, 5, (3, 64, 64)).astype(np.int16)
    run = Run(source=ArrayFrames(frames=frames, detector=detector), columns=event_columns(3))
    out = filtered(run, tmp_path / "hits.zarr", serial)
    with xr.open_zarr(out, group="conditions", consolidated=False) as table:
        assert table.hot_index.size == table.noisy_index.size == 0
        assert table.attrs["adu_per_photon"] is table.attrs["background_photons"] is None
        assert table.attrs["background_adu"] == pytest.approx(99.5, abs=1)
    assert verify_run(out, against=run, pool=serial).ok
    plain = filtered(run, tmp_path / "plain.zarr", serial, needs_conditions=False)
    assert not (plain / "conditions").exists()
    assert describe_run(open_run(plain)).adu_per_photon is None


def test_conditions_cost_one_read_of_the_sampled_frames(faulty: Run) -> None:
    asked = []

    class Counting(ArrayFrames):
        def read(self, events, window=None):  # type: ignore[no-untyped-def]
            asked.append(len(events))
            return super().read(events, window)

    source = faulty.source
    assert isinstance(source, ArrayFrames)
    conditions_of_run(
        replace(faulty, source=Counting(frames=source.frames, detector=source.detector))
    )
    assert asked == [24]
