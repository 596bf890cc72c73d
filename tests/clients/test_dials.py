"""DIALS reads what `filter --nxmx` writes: every event, where its pixels lie, and the spots."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run as command
from planted import ArrayFrames

from sfxreduce.cluster import SerialPool
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector, Panel, PixelFlag
from sfxreduce.run.run import Run

pytestmark = pytest.mark.skipif(
    shutil.which("dials.import") is None, reason="needs DIALS: apt-get install dials"
)

SYSTEM_PYTHON = "/usr/bin/python3"
"""Debian's packages are of its own Python."""

GAIN = 20.0
EVENTS = 12
BLANKS = 4
HITS = 5
SPOTS = 40
BACKGROUND_PHOTONS = 10.0

READ = """
import json, sys
from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentListFactory

experiments = ExperimentListFactory.from_json_file("imported.expt", check_format=False)
strong = flex.reflection_table.from_file("strong.refl")
numbers, panels = list(strong["id"]), list(strong["panel"])
x, y, _ = (list(part) for part in strong["xyzobs.px.value"].parts())
read = []
for number, experiment in enumerate(experiments):
    corners = []
    for panel in experiment.detector:
        nx, ny = panel.get_image_size()
        ends = [(0, 0), (nx, 0), (0, ny), (nx, ny)]
        places = [tuple(a * b for a, b in zip(end, panel.get_pixel_size())) for end in ends]
        corners.append([panel.get_lab_coord(place) for place in places])
    read.append({
        "file": experiment.imageset.paths()[0],
        "event": experiment.imageset.indices()[0],
        "wavelength": experiment.beam.get_wavelength(),
        "sensor": [experiment.detector[0].get_material(), experiment.detector[0].get_thickness()],
        "trusted": experiment.detector[0].get_trusted_range(),
        "corners": corners,
        "spots": [(panels[i], x[i], y[i]) for i, of in enumerate(numbers) if of == number],
    })
json.dump(read, sys.stdout)
"""


@dataclass(frozen=True)
class InDials:
    """What DIALS made of files: its words, and a row for each event."""

    imported: str
    rows: list[dict[str, Any]]

    def of(self, name: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if Path(row["file"]).name == name]


def dials(program: str, *words: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [program, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def four_panels() -> Detector:
    """Askew, upside down and mirrored panels around a hole, whose edges are masked."""
    c, s = math.cos(0.01), math.sin(0.01)
    panels = (
        Panel(name="a", corner=(-210.0, -205.0), fast=(c, s), slow=(-s, c)),
        Panel(name="b", corner=(15.0, -210.0)),
        Panel(name="c", corner=(-8.0, 205.0), fast=(-1.0, 0.0), slow=(0.0, -1.0)),
        Panel(name="d", corner=(206.0, 9.0), fast=(0.0, 1.0), slow=(-1.0, 0.0)),
    )
    mask = np.full((4, 192, 192), PixelFlag.BAD, np.uint32)
    mask[:, 1:-1, 1:-1] = 0
    mask[1, 40:60, 40:60] = PixelFlag.DEAD
    return Detector(
        name="jungfrau-toy",
        panel_shape=(192, 192),
        panels=panels,
        stacked=True,
        pixel_size_m=75e-6,
        distance_m=0.12,
        adu_per_photon=GAIN,
        saturation_adu=16000.0,
        mask=mask,
    )


def planted(rng: np.random.Generator) -> tuple[Run, np.ndarray]:
    """Frames with spots of signal to noise 6 and more; rows of (event, panel, x, y)."""
    detector = four_panels()
    photons = np.full((BLANKS + HITS, *detector.frame_shape), BACKGROUND_PHOTONS)
    j, i = np.mgrid[:192, :192]
    spots = []
    for event in range(BLANKS, BLANKS + HITS):
        for panel, row, column in rng.permutation(
            [(p, r, c) for p in range(4) for r in range(16, 176, 14) for c in range(16, 176, 14)]
        )[:SPOTS]:
            y, x = row + rng.uniform(-0.5, 0.5), column + rng.uniform(-0.5, 0.5)
            # So many that they stand out by this of the noise of nine pixels.
            snr = rng.uniform(6, 20)
            n = snr**2 / 2 + math.sqrt(snr**4 / 4 + 9 * BACKGROUND_PHOTONS * snr**2)
            shape = np.exp(-((i - x) ** 2 + (j - y) ** 2) / (2 * 0.6**2))
            photons[event, panel] += n * shape / shape.sum()
            if not detector.mask[panel, row - 3 : row + 4, column - 3 : column + 4].any():
                spots.append((event, panel, x, y))
    noise = rng.normal(0, 4, photons.shape)
    frames = np.rint(rng.poisson(photons) * GAIN + noise).astype(np.int16)
    n = len(frames)
    columns = event_columns(
        n,
        event_id=[f"event-{e}" for e in range(n)],
        timestamp_ns=10**18 + np.arange(n),
        photon_energy_ev=9000.0 + np.arange(n),
    )
    run = Run(source=ArrayFrames(frames=frames, detector=detector), columns=columns)
    return run, np.array(spots)


def kept_whole(run: Path, *words: object) -> None:
    """Filter a run in a way that keeps every event."""
    done = command("filter", "--in", run, "--scorer", "peaks", "--threshold", 0, "--serial", *words)
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated run on one panel and a planted one on four, as master and by itself."""
    place = tmp_path_factory.mktemp("dials")
    words = [
        "--events",
        EVENTS,
        "--hit-rate",
        0.5,
        "--seed",
        1,
        "--frame-shape",
        "900x900",
        "--serial",
    ]
    done = command(
        "simulate",
        "--out",
        place / "one.zarr",
        "--experiment",
        "photosystem-i-8kev",
        "--serial",
        *words,
    )
    assert done.exit_code == 0, done.output
    run, spots = planted(np.random.default_rng(1))
    ingest_run(run, out=place / "four.zarr", pool=SerialPool())
    np.save(place / "spots.npy", spots)
    for name, sensor in (("one", ["--sensor", "Si:500um"]), ("four", [])):
        source = place / f"{name}.zarr"
        linked = ["--cxi", place / f"{name}.cxi", "--nxmx", place / f"{name}_linked.nxs"]
        kept_whole(source, "--out", place / f"{name}_a.zarr", *linked, *sensor)
        alone = ["--nxmx", place / f"{name}_alone.nxs"]
        kept_whole(source, "--out", place / f"{name}_b.zarr", *alone, *sensor)
    return place


@pytest.fixture(scope="module")
def read(folder: Path) -> InDials:
    files = [f"{name}_{form}.nxs" for name in ("one", "four") for form in ("linked", "alone")]
    imported = dials("dials.import", *files, folder=folder)
    words = [f"gain={GAIN:g}", "min_spot_size=1", "nproc=1"]
    dials("dials.find_spots", "imported.expt", *words, folder=folder)
    return InDials(imported, json.loads(dials(SYSTEM_PYTHON, "-c", READ, folder=folder)))


FORMS = [("one", "linked"), ("one", "alone"), ("four", "linked"), ("four", "alone")]
forms = pytest.mark.parametrize(("name", "form"), FORMS)


@forms
def test_every_event_is_a_still_of_its_own(
    name: str, form: str, folder: Path, read: InDials
) -> None:
    run = open_run(folder / f"{name}.zarr")
    rows = read.of(f"{name}_{form}.nxs")
    assert [row["event"] for row in rows] == list(range(run.n_events))
    energies = 12398.419843320026 / np.array([row["wavelength"] for row in rows])
    np.testing.assert_allclose(energies, run.columns["photon_energy_ev"].values, rtol=1e-9)


def test_all_are_imported_as_stills(read: InDials) -> None:
    counts = dict(re.findall(r"(num images|sweep|num stills): +(\d+)", read.imported))
    n = 2 * (EVENTS + BLANKS + HITS)
    assert counts == {"num images": str(n), "sweep": "0", "num stills": str(n)}


@forms
def test_pixels_lie_where_crystfel_sees_them(
    name: str, form: str, folder: Path, read: InDials
) -> None:
    # A mirrored detector passes import and spot finding without a word.
    detector = open_run(folder / f"{name}.zarr").detector
    expected = []
    for panel in detector.placed():
        n_y, n_x = panel.rows[1] - panel.rows[0], panel.columns[1] - panel.columns[0]
        first, fast, slow = (np.array(v) for v in (panel.corner, panel.fast, panel.slow))
        ends = [first, first + n_x * fast, first + n_y * slow, first + n_x * fast + n_y * slow]
        expected.append(np.array(ends) * detector.pixel_size_m)
    for row in read.of(f"{name}_{form}.nxs"):
        # imgCIF's axes: x to the right seen along the beam, y up, z against the beam; in mm.
        corners = np.array(row["corners"]) * [-1, 1, -1] / 1000
        np.testing.assert_allclose(corners[..., :2], expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(corners[..., 2], detector.distance_m, rtol=0, atol=1e-9)


@forms
def test_sensor_and_trusted_values_arrive(
    name: str, form: str, folder: Path, read: InDials
) -> None:
    detector = open_run(folder / f"{name}.zarr").detector
    thickness_mm = {"one": 0.5, "four": 0.32}[name]
    for row in read.of(f"{name}_{form}.nxs"):
        assert row["sensor"] == ["Si", pytest.approx(thickness_mm)]
        assert row["trusted"] == [-32768.0, detector.saturation_adu]


@pytest.mark.parametrize("form", ["linked", "alone"])
def test_planted_spots_of_signal_to_noise_six_are_found(
    form: str, folder: Path, read: InDials
) -> None:
    rows = read.of(f"four_{form}.nxs")
    spots = np.load(folder / "spots.npy")
    assert len(spots) > 0.9 * HITS * SPOTS
    hit = [near(rows[int(event)]["spots"], panel, x, y) for event, panel, x, y in spots]
    assert np.mean(hit) >= 0.97
    assert max(len(row["spots"]) for row in rows[:BLANKS]) < 10


@pytest.mark.parametrize("form", ["linked", "alone"])
def test_simulated_peaks_of_signal_to_noise_six_are_found(
    form: str, folder: Path, read: InDials
) -> None:
    run = open_run(folder / "one.zarr")
    truth, detector = run.truth, run.detector
    assert truth is not None
    rows, frames = read.of(f"one_{form}.nxs"), run.source.read(range(run.n_events)).pixels
    hit = []
    for event, x, y, snr in zip(
        *(truth[n].values for n in ("peak_event", "peak_x", "peak_y", "peak_snr")), strict=True
    ):
        around = (
            slice(max(round(y) - 2, 0), round(y) + 3),
            slice(max(round(x) - 2, 0), round(x) + 3),
        )
        saturated = frames[event][around].max(initial=0) >= detector.saturation_adu
        if snr >= 6 and not saturated and not detector.mask[around].any():
            hit.append(near(rows[event]["spots"], 0, x, y))
    assert len(hit) > 400
    assert np.mean(hit) >= 0.97
    blanks = [row for row, kind in zip(rows, truth["kind"].values, strict=True) if kind == 0]
    assert len(blanks) > 4
    assert max(len(row["spots"]) for row in blanks) < 10


def near(spots: list[tuple[int, float, float]], panel: float, x: float, y: float) -> bool:
    """Whether a spot was found within a pixel; DIALS counts from a pixel's edge, not its centre."""
    return any(p == panel and math.hypot(a - x - 0.5, b - y - 0.5) <= 1 for p, a, b in spots)
