"""Names, numbers and shapes at the edge of what there is: met with a result, or with one line."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from beamtimes import POOL
from planted import BrightestPixel

from sfxreduce.errors import OutputError, OutputExists, SchemaError, UsageError
from sfxreduce.io.files.durable import output_errors
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.hdf5 import find_frames
from sfxreduce.io.readers.hdf5.run import open_cxi
from sfxreduce.io.writers.publish import Staging
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ledger import ledger_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.pipeline.verify.output import verify_run
from sfxreduce.report.report import Report

ODD_NAME = os.fsdecode(b"r\xff")


def write_run(path: Path, shape: tuple[int, ...] = (6, 60, 60)) -> Path:
    frames = np.random.default_rng(0).normal(100, 3, shape).round().astype("i2")
    frames[::2, shape[1] // 2, 10] = 1000
    with h5py.File(os.fsencode(path), "w") as file:
        file["/entry_1/data_1/data"] = frames
    return path


def filtered(run: Path, store: Path, **outputs: Path) -> Report:
    settings = FilterSettings(scorer=BrightestPixel())
    return filter_run(
        open_run(run),
        settings=settings,
        outputs=Outputs(store=store, cxi_without_geometry=True, **outputs),
        pool=POOL,
    )


def test_a_line_of_pixels_has_its_picture_on_the_page(tmp_path: Path) -> None:
    # The picture was cut to whole blocks of points, of which one row has none.
    run = write_run(tmp_path / "run.h5", (6, 1, 60_000))
    filtered(run, tmp_path / "hits.zarr", report=tmp_path / "report.html")
    # Six events, and the powder patterns of hits and of rejected ones.
    assert (tmp_path / "report.html").read_text().count("data:image/png") == 6 + 2


def test_names_that_are_no_utf_8_are_told_escaped_and_listed_as_they_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / f"{ODD_NAME}.h5")
    store, page, cxi = (tmp_path / f"{ODD_NAME}{s}" for s in (".zarr", ".html", ".cxi"))
    assert filtered(run, store, report=page, cxi=cxi).hits == 3
    assert r"r\udcff" in page.read_text(encoding="utf-8")
    listed = cxi.with_suffix(".lst").read_bytes().splitlines()
    assert listed == [os.fsencode(cxi) + b" //%d" % event for event in range(3)]
    assert verify_run(store, against=open_run(run), pool=POOL).ok


@pytest.mark.parametrize("name", ["a\nb.cxi", "a\rb.cxi", "a\u2028b.cxi"])
def test_a_line_break_in_the_name_of_a_cxi_file_is_refused(name: str, tmp_path: Path) -> None:
    # The event list named two files that there are none of.
    with pytest.raises(UsageError, match="without line breaks"):
        Outputs(store=tmp_path / "hits.zarr", cxi=tmp_path / name)


@pytest.mark.parametrize("start", "=+-@\t")
def test_no_spreadsheet_computes_a_file_name(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f'{start}HYPERLINK("http://elsewhere")'
    run = open_run(write_run(tmp_path / "run.h5"))
    run.columns["source_file"] = ("event", np.full(6, name, object))
    outputs = Outputs(store=tmp_path / "hits.zarr")
    filter_run(run, settings=FilterSettings(scorer=BrightestPixel()), outputs=outputs, pool=POOL)
    ledger_run(tmp_path / "hits.zarr", tmp_path / "ledger.csv")
    with (tmp_path / "ledger.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source_file"] for row in rows] == [f"./{name}"] * 6


def test_a_fraction_of_a_second_counts_where_nothing_else_tells_it(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5")
    seconds = 1_500_000_000 + np.arange(6) * 0.25
    with h5py.File(path, "a") as file:
        file["/LCLS/machineTime"] = seconds
    expected = 1_500_000_000_000_000_000 + np.arange(6) * 250_000_000
    np.testing.assert_array_equal(open_cxi(path).columns["timestamp_ns"], expected)
    with h5py.File(path, "a") as file:
        file["/LCLS/machineTimeNanoSeconds"] = np.full(6, 7)
    times = open_cxi(path).columns["timestamp_ns"].values
    assert (times % 1_000_000_000 == 7).all()


def test_groups_nested_deep_are_walked_link_by_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three thousand took 45 s: HDF5's own walk begins at the root for each of them.
    path = tmp_path / "deep.h5"
    with h5py.File(path, "w") as file:
        group = file
        for _ in range(3000):
            group = group.create_group("g")
        group["x"] = np.zeros((2, 3))
        file["circle"] = h5py.SoftLink("/")
        group["again"] = file["g"]
    looked = 0
    get = h5py.Group.get

    def counting(*args: object, **options: object) -> object:
        nonlocal looked
        looked += 1
        return get(*args, **options)

    monkeypatch.setattr(h5py.Group, "get", counting)
    with pytest.raises(SchemaError, match=r"/g/x \(2, 3\)"):
        open_cxi(path)
    assert looked <= find_frames.MOST_LOOKED_AT + 100


def test_an_output_may_have_two_colons_in_its_name(tmp_path: Path) -> None:
    # Zarr took the name for a chain of file systems, and failed once all events were scored.
    run, store = write_run(tmp_path / "run.h5"), tmp_path / "x::y.zarr"
    filtered(run, store)
    assert verify_run(store, against=open_run(run), pool=POOL).ok
    with xr.open_zarr(zarr_store(store), consolidated=False) as table:
        assert table.sizes["event"] == 3
    again = filtered(store, tmp_path / "z::z.zarr")
    assert again.events == 3


def zarr_store(path: Path) -> object:
    from zarr.storage import LocalStore

    return LocalStore(path, read_only=True)


def test_a_disk_without_inodes_is_told_from_one_without_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = os.statvfs(tmp_path)
    full = os.statvfs_result([*facts[:5], 1000, 0, 0, *facts[8:10]])
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with (
        pytest.raises(OutputError, match="no file can be added to the disk"),
        output_errors(tmp_path / "hits.zarr"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_of_two_filters_with_one_cxi_file_exactly_one_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, both = write_run(tmp_path / "run.h5"), Barrier(2)
    ends: dict[int, str] = {}
    appear = Staging.appear

    def together(staging: Staging, **options: Any) -> None:
        both.wait(60)
        appear(staging, **options)

    def go(number: int) -> None:
        try:
            filtered(run, tmp_path / f"{number}.zarr", cxi=tmp_path / "hits.cxi")
            ends[number] = "well"
        except OutputExists as error:
            ends[number] = str(error)

    monkeypatch.setattr(Staging, "appear", together)
    threads = [Thread(target=go, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [number for number, end in ends.items() if end == "well"]
    assert "already exists" in ends[1 - winner]
    assert (tmp_path / f"{winner}.zarr").exists()
    assert not (tmp_path / f"{1 - winner}.zarr").exists()
    assert open_run(tmp_path / "hits.cxi").n_events == 3
