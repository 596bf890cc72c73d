"""Small per-event data come along, from the file to the hits; the rest is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from archived import Call

from sfxreduce.io.open import open_run

N = 6
SMALL: dict[str, tuple[str, Any]] = {
    "/LCLS/fiducial": ("fiducial", np.arange(N, dtype="u4") * 3),
    "/LCLS/detector_1/EncoderValue": ("encoder_value", np.linspace(-450, -449, N)),
    "/entry_1/trainId": ("train_id", np.arange(N, dtype="u8") + 2**40),
    "/entry_1/pulseId": ("pulse_id", np.arange(N, dtype="u8") % 4),
    "/entry_1/cellId": ("cell_id", np.arange(N, dtype="u2")),
    "/beam/stage": ("stage", np.arange(3.0 * N).reshape(N, 3)),
    "/beam/is_on": ("is_on", np.arange(N) % 2 == 0),
    "/beam/laser": ("laser", np.array([f"état {i}" for i in range(N)], object)),
    "/beam/score": ("beam_score", np.arange(N, dtype="f4")),
}
LARGE = {
    "/beam/spectrum": np.zeros((N, 200)),
    "/beam/pairs": np.zeros(N, [("a", "i4"), ("b", "f4")]),
}
OTHER = {"/beam/setting": 3.0, "/beam/table": np.zeros((N + 1, 2))}


def write_run(path: Path, *, without: str = "") -> Path:
    rng = np.random.default_rng(3)
    frames = rng.normal(0, 3, (N, 40, 50)).astype("i2")
    frames[1::2, 5::9, 5::9] += 900
    detector = "/entry_1/instrument_1/detector_1"
    with h5py.File(path, "w") as file:
        file["/entry_1/data_1/data"] = frames
        file["/LCLS/photon_energy_eV"] = np.full(N, 9000.0)
        for name in ("distance", "x_pixel_size", "adu_per_photon"):
            file[f"{detector}/{name}"] = 0.001
        for name, (_, values) in SMALL.items():
            if name != without:
                file[name] = values
        for name, values in (LARGE | OTHER).items():
            file[name] = values
    return path


def test_small_data_are_columns_and_large_ones_are_named(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run.cxi"))
    for path, (name, values) in SMALL.items():
        column = run.columns[name]
        assert column.attrs["path"] == path
        assert column.dims[0] == "event"
        np.testing.assert_array_equal(column.values, values)
    assert sorted(run.columns.attrs["not_carried"]) == sorted(LARGE)
    assert not {"setting", "table", "data"} & set(run.columns)


def test_hits_have_the_data_of_their_events(tmp_path: Path, call: Call) -> None:
    """Through a store of the run, and a store of the hits, into the CXI file of the hits."""
    write_run(tmp_path / "run.cxi")
    status, stored, errors = call("ingest", "--in", tmp_path / "run.cxi", "--out",
                                  tmp_path / "run.zarr", "--serial")  # fmt: skip
    assert status == 0, errors
    assert sorted(stored["not_carried"]) == sorted(LARGE)
    status, report, errors = call(
        "filter", "--in", tmp_path / "run.zarr", "--out", tmp_path / "hits.zarr", "--cxi",
        tmp_path / "hits.cxi", "--scorer", "peaks", "--serial",
    )  # fmt: skip
    assert (status, report["kept"], report["not_carried"]) == (0, 3, []), errors
    columns = open_run(tmp_path / "hits.zarr").columns
    with h5py.File(tmp_path / "hits.cxi") as file:
        for path, (name, values) in SMALL.items():
            np.testing.assert_array_equal(columns[name].values, values[1::2])
            dataset = file[path]
            text = h5py.check_string_dtype(dataset.dtype) is not None
            found = dataset.asstr()[()] if text else dataset[()]
            np.testing.assert_array_equal(found, values[1::2])


def test_a_filter_of_the_file_names_what_it_leaves_behind(tmp_path: Path, call: Call) -> None:
    write_run(tmp_path / "run.cxi")
    status, report, errors = call("filter", "--in", tmp_path / "run.cxi", "--out",
                                  tmp_path / "h.zarr", "--scorer", "peaks", "--serial")  # fmt: skip
    assert status == 0, errors
    assert sorted(report["not_carried"]) == sorted(LARGE)


@pytest.mark.parametrize("without", ["/LCLS/fiducial", "/beam/laser"])
def test_joined_files_carry_what_all_of_them_have(tmp_path: Path, without: str) -> None:
    one = write_run(tmp_path / "a.cxi")
    other = write_run(tmp_path / "b.cxi", without=without)
    run = open_run([one, other])
    assert SMALL[without][0] not in run.columns
    np.testing.assert_array_equal(run.columns["cell_id"].values, [*range(N), *range(N)])
    assert sorted(run.columns.attrs["not_carried"]) == sorted([*LARGE, without])


def test_a_damaged_dataset_beside_the_frames_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.cxi"
    with h5py.File(path, "w") as file:
        file["/entry_1/data_1/data"] = np.zeros((N, 4, 5), "i2")
        file.create_dataset("/beam/x", (N,), "i4", chunks=(2,))[:2] = 1
    run = open_run(path)
    assert (run.n_events, run.columns.attrs["not_carried"]) == (N, ["/beam/x"])
