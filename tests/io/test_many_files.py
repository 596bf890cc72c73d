"""Thousands of files named at once, none of them opened before it has to be."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from archived import Call
from fabio.cbfimage import CbfImage
from fabio.tifimage import TifImage

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import RunNotFound, SchemaError, SourceError, UsageError
from sfxreduce.io.files import safe_read
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.count_mask import MASK_FRAMES
from sfxreduce.io.readers.hdf5 import single
from sfxreduce.io.readers.images import file as image_file
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.run.reasons import Reason

N = 40
CHEETAH = "/data/data"


def image_of(event: int) -> np.ndarray:
    return (np.arange(80).reshape(8, 10) + event).astype("i4")


def write(folder: Path, kind: str) -> list[Path]:
    """One image a file; by their names, 10 comes before 9."""
    folder.mkdir()
    paths = [folder / f"img_{event}.{kind}" for event in range(N)]
    for event, path in enumerate(paths):
        if kind == "h5":
            with h5py.File(path, "w") as file:
                file[CHEETAH] = image_of(event)
        else:
            {"cbf": CbfImage, "tif": TifImage}[kind](data=image_of(event)).write(str(path))
    return paths


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was opened."""
    counted: Counter[str] = Counter()
    by_hdf5, plainly = single.open_hdf5, safe_read.open_file

    def hdf5(path: str | Path, *args: object) -> object:
        counted[Path(path).name] += 1
        return by_hdf5(path, *args)  # type: ignore[arg-type]

    def plain(path: Path, **options: bool) -> object:
        counted[Path(path).name] += 1
        return plainly(path, **options)

    monkeypatch.setattr(single, "open_hdf5", hdf5)
    monkeypatch.setattr(image_file, "open_file", plain)
    return counted


@pytest.mark.parametrize("kind", ["cbf", "tif", "h5"])
@pytest.mark.parametrize("how", ["folder", "glob", "list", "one by one"])
def test_files_are_one_run_in_order(
    tmp_path: Path, kind: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(tmp_path / "images", kind)
    monkeypatch.chdir(tmp_path)
    named: dict[str, object] = {
        "folder": Path("images"),
        "glob": f"images/*.{kind}",
        "list": "@all.txt",
        "one by one": paths[::-1],
    }
    Path("all.txt").write_text("\n".join(f"images/{path.name}" for path in paths[::-1]) + "\n\n")
    run = open_run(named[how], data_path=CHEETAH if kind == "h5" else "")  # type: ignore[arg-type]
    order = range(N) if how in ("folder", "glob") else range(N)[::-1]
    reading = pickle.loads(pickle.dumps(run.source)).read(range(N))
    assert not reading.reasons.any()
    np.testing.assert_array_equal(reading.pixels, [image_of(event) for event in order])
    assert run.columns["event_id"].values.tolist() == [f"img_{event}" for event in order]
    assert sorted(run.inputs) == sorted(paths)
    assert run.source.n_bytes == sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize(
    ("kind", "each", "more"),
    [("cbf", 1, MASK_FRAMES), ("tif", 0, 3 * MASK_FRAMES), ("h5", 0, 9)],
)
def test_no_file_is_opened_before_it_has_to_be(
    tmp_path: Path, opened: Counter[str], kind: str, each: int, more: int
) -> None:
    """A header of each CBF, for its time; of other files a few, however many there are."""
    write(tmp_path / "images", kind)
    run = open_run(tmp_path / "images", data_path=CHEETAH if kind == "h5" else "")
    assert run.n_events == N
    assert each * N < sum(opened.values()) <= each * N + more
    opened.clear()
    run.source.read([3, 7])
    assert dict(opened) == {f"img_3.{kind}": 1, f"img_7.{kind}": 1}


def test_files_that_are_odd_or_gone_flag_their_events(tmp_path: Path) -> None:
    paths = write(tmp_path / "images", "h5")
    run = open_run(tmp_path / "images", data_path=CHEETAH)
    paths[3].unlink()
    paths[4].write_bytes(b"none")
    for path, name, shape in ((paths[5], CHEETAH, (4, 4)), (paths[6], "/other", (8, 10))):
        with h5py.File(path, "w") as file:
            file[name] = np.ones(shape, "i4")
    reasons = run.source.read(range(2, 9)).reasons.tolist()
    gone, odd, hole = Reason.FILE_UNREADABLE, Reason.UNEXPECTED_FORMAT, Reason.DATA_HOLE
    assert reasons == [0, gone, gone, odd, hole, 0, 0]
    tifs = write(tmp_path / "tifs", "tif")
    TifImage(data=np.ones((3, 3), "i4")).write(str(tifs[2]))
    run = open_run(tmp_path / "tifs")
    assert np.flatnonzero(run.source.read(range(N)).reasons).tolist() == [2]


def test_several_files_of_tags_are_one_run(tmp_path: Path) -> None:
    for number in (0, 1):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            for tag in (9, 10):
                file[f"tag-{tag}/data"] = image_of(10 * number + tag)
            file.create_group("tag-11")
    run = open_run(tmp_path, data_path="/tag-{tag}/data")
    assert run.columns["event_id"].values.tolist() == ["9", "10", "11"] * 2
    assert run.columns["source_event"].values.tolist() == [0, 1, 2] * 2
    reading = run.source.read(range(6))
    # An image that is missing is an event all the same.
    assert reading.reasons.tolist() == [0, 0, Reason.DATA_HOLE] * 2
    np.testing.assert_array_equal(reading.pixels[3], image_of(19))


def test_a_quoted_glob_and_a_list_are_filtered(tmp_path: Path, call: Call) -> None:
    write(tmp_path / "images", "cbf")
    (tmp_path / "list.txt").write_text("\n".join(map(str, (tmp_path / "images").iterdir())))
    for number, name in enumerate((tmp_path / "images/*.cbf", f"@{tmp_path}/list.txt")):
        out = tmp_path / f"{number}.zarr"
        status, facts, errors = call(
            "filter", "--in", name, "--out", out, "--scorer", "peaks", "--serial"
        )
        assert (status, facts["events"]) == (0, N), errors


def test_what_stands_for_no_run_is_refused(tmp_path: Path) -> None:
    cbf = write(tmp_path / "images", "cbf")
    write(tmp_path / "h5", "h5")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(RunNotFound, match="no file has such a name"):
        open_run(tmp_path / "images" / "*.tif")
    with pytest.raises(RunNotFound, match="no such list"):
        open_run(f"@{tmp_path}/nolist.txt")
    with pytest.raises(RunNotFound, match="expected one path a line"):
        open_run(f"@{tmp_path}/empty.txt")
    with pytest.raises(UsageError, match="image files have no paths inside"):
        open_run(cbf, data_path=CHEETAH)
    (tmp_path / "images" / "x.h5").touch()
    with pytest.raises(SchemaError, match=r"files of one kind, found img_0.cbf and x.h5"):
        open_run(tmp_path / "images")
    (tmp_path / "h5" / "run_master.h5").touch()
    with pytest.raises(SchemaError, match=r"run_master.h5, which names others of them"):
        open_run(tmp_path / "h5", data_path=CHEETAH)
    with pytest.raises((SchemaError, SourceError)):
        open_run(tmp_path)


def test_a_store_and_a_folder_of_stores_mean_what_they_did(tmp_path: Path) -> None:
    run = open_run(write(tmp_path / "images", "cbf"))
    ingest_run(run, out=tmp_path / "no_suffix", pool=SerialPool())
    assert open_run(tmp_path / "no_suffix").n_events == N


def test_a_big_tiff_is_refused_in_words_that_fit(tmp_path: Path) -> None:
    """It was called a file that cannot be read, to be fetched again."""
    for order in (b"II+\0", b"MM\0+"):
        (tmp_path / "b.tif").write_bytes(order + b"\x08\0\0\0" + b"\0" * 400)
        with pytest.raises(SchemaError, match="found a BigTIFF, which is not read"):
            open_run(tmp_path / "b.tif")


def test_a_cbf_of_two_sections_is_refused(tmp_path: Path) -> None:
    """The second image was passed over without a word."""
    [one, *_] = write(tmp_path / "images", "cbf")
    data = one.read_bytes()
    section = data[data.index(b"--CIF-BINARY-FORMAT-SECTION--") :]
    one.write_bytes(data + b"\0" * 4096 + section)
    with pytest.raises(SchemaError, match="several binary sections"):
        open_run(one)
    one.write_bytes(data + b"\0" * 8192)
    assert open_run(one).source.read([0]).reasons.tolist() == [0]
