"""Python packages of others open what `filter` writes, without a warning."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import run as command
from planted import planted_run

from sfxreduce.cluster import SerialPool
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.run.run import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hits of three panels as CXI and NXmx."""
    place = tmp_path_factory.mktemp("nexus")
    ingest_run(planted_run(n_events=6, panels=3), out=place / "run.zarr", pool=SerialPool())
    words = ["--scorer", "peaks", "--threshold", 0, "--serial", "--sensor", "CdTe:1mm"]
    beside = ["--cxi", place / "hits.cxi", "--nxmx", place / "hits.nxs", "--adu-per-photon", 10]
    done = command(
        "filter", "--in", place / "run.zarr", "--out", place / "hits.zarr", *beside, *words
    )
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return open_run(folder / "hits.zarr")


def test_nxmx_finds_every_part_of_the_definition(folder: Path, run: Run) -> None:
    nxmx = pytest.importorskip("nxmx", reason="needs the package nxmx")
    with h5py.File(folder / "hits.nxs") as file:
        (entry,) = nxmx.NXmx(file).entries
        (instrument,), (sample,) = entry.instruments, entry.samples
        (detector,), (beam,) = instrument.detectors, instrument.beams
        assert entry.definition == "NXmx"
        assert sample.depends_on is None
        assert (detector.sensor_material, detector.sensor_thickness.to("mm").magnitude) == (
            "CdTe",
            1.0,
        )
        assert detector.distance.to("m").magnitude == run.detector.distance_m
        assert (detector.underload_value, detector.saturation_value) == (-32767, 32767)
        np.testing.assert_array_equal(
            np.asarray(detector.pixel_mask) != 0, run.detector.mask.reshape(120, 60) != 0
        )
        energy = 12398.419843320026 / beam.incident_wavelength.to("angstrom").magnitude
        assert energy == pytest.approx(8000.0)
        (data,) = entry.data
        frames = run.source.read(range(run.n_events)).pixels
        np.testing.assert_array_equal(data[data.signal][()], frames.reshape(-1, 120, 60))
        for panel, module in zip(run.detector.panels, detector.modules, strict=True):
            assert module.data_size.tolist() == [40, 60]
            chain = nxmx.get_dependency_chain(module.fast_pixel_direction.depends_on)
            corner = nxmx.get_cumulative_transformation(chain)[0, :3, 3]
            expected = [*(np.array(panel.corner) * 0.075), run.detector.distance_m * 1000]
            np.testing.assert_allclose(corner, expected, atol=1e-9)
            fast = module.fast_pixel_direction
            np.testing.assert_allclose(fast.vector[:2], panel.fast, atol=1e-12)


def test_silx_shows_the_frames_first(folder: Path, run: Run) -> None:
    nxdata = pytest.importorskip("silx.io.nxdata", reason="needs the package silx")
    io = pytest.importorskip("silx.io", reason="needs the package silx")
    with io.open(str(folder / "hits.nxs")) as file:
        shown = nxdata.get_default(file)
        assert shown.is_valid
        assert shown.signal.shape == (run.n_events, 120, 60)
    with io.open(str(folder / "hits.cxi")) as file:
        assert file["/entry_1/data_1/data"].shape == (run.n_events, 3, 40, 60)
