"""Masks: their shape, which of their values is good, and those that the user gives."""

from __future__ import annotations

import json
from pathlib import Path

import fabio
import h5py
import numpy as np
import pytest
from commands import run as command
from numpy.typing import NDArray

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import RunNotFound, SchemaError, SourceError, UsageError
from sfxreduce.io.masks import GivenMask
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.hdf5.detector import axes_of_mask
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.run.detector import PixelFlag

SHAPE = (20, 30)
STRIPE = np.zeros(SHAPE, "u1")
STRIPE[:, 5] = 1


def write(
    path: Path, mask: NDArray[np.generic] | None = None, *, shape: tuple[int, ...] = SHAPE
) -> Path:
    frames = np.random.default_rng(1).poisson(9, (6, *shape)).astype("i2")
    with h5py.File(path, "w") as file:
        file.create_dataset("/entry_1/data_1/data", data=frames, chunks=(1, *shape))
        if mask is not None:
            file["/entry_1/data_1/mask"] = mask
    return path


def masked(path: Path, **given: object) -> list[tuple[int, ...]]:
    mask = GivenMask(**given) if given else None  # type: ignore[arg-type]
    return [tuple(i) for i in np.argwhere(open_run(path, mask=mask).detector.mask).tolist()]


def columns_of(*columns: int) -> list[tuple[int, ...]]:
    return [(y, x) for y in range(SHAPE[0]) for x in sorted(columns)]


class TestShape:
    @pytest.mark.parametrize(
        "shape", [(30, 20), (600,), (10, 60), (2, 10, 30), (20, 30, 1), (2, 30, 20)]
    )
    def test_a_mask_of_as_many_pixels_in_another_shape_is_refused(
        self, tmp_path: Path, shape: tuple[int, ...]
    ) -> None:
        """A transposed mask was taken as it lay in memory."""
        path = write(tmp_path / "run.cxi", np.arange(np.prod(shape)).reshape(shape) % 5)
        with pytest.raises(SchemaError, match=r"of the shape of a frame, \(20, 30\), found \("):
            open_run(path)

    @pytest.mark.parametrize("shape", [(20, 30), (1, 20, 30), (6, 20, 30)])
    def test_a_mask_may_have_an_axis_of_events(
        self, tmp_path: Path, shape: tuple[int, ...]
    ) -> None:
        path = write(tmp_path / "run.cxi", np.broadcast_to(STRIPE, shape))
        assert masked(path) == columns_of(5)

    def test_panels_may_lie_one_below_the_other_in_frames_or_mask(self) -> None:
        panels, slab = (3, 4, 7), (12, 7)
        assert axes_of_mask(slab, panels) == axes_of_mask(panels, panels) == 0
        assert axes_of_mask((1, *slab), slab) == axes_of_mask((1, *panels), panels) == 0
        assert axes_of_mask((9, *panels), panels) == axes_of_mask((9, *slab), panels) == 1
        assert axes_of_mask((4, 3, 7), panels) is axes_of_mask((7, 12), slab) is None


class TestGoodIsOne:
    @pytest.mark.parametrize("dtype", ["u1", "?", "f4", "i4"])
    def test_pixels_of_zero_are_bad(self, tmp_path: Path, dtype: str) -> None:
        path = write(tmp_path / "run.cxi", (1 - STRIPE).astype(dtype))
        assert masked(path, good_is=1) == columns_of(5)
        assert open_run(path, mask=GivenMask(good_is=1)).detector.mask[0, 5] == PixelFlag.BAD
        assert len(masked(path, good_is=0)) == len(masked(path)) == 580

    def test_a_mask_without_a_bad_pixel_can_be_said_to_be_one(self, tmp_path: Path) -> None:
        path = write(tmp_path / "run.cxi", np.ones(SHAPE, "u1"))
        with pytest.raises(SchemaError, match=r"no 0 at all; .* --mask-good-is 1"):
            open_run(path)
        assert masked(path, good_is=1) == []
        write(path, np.zeros(SHAPE, "u1"))
        with pytest.raises(SchemaError, match=r"no 1 at all; .* --mask-good-is 0"):
            masked(path, good_is=1)

    def test_in_a_mask_of_each_event_what_is_bad_in_all_is_bad(self, tmp_path: Path) -> None:
        mask = np.broadcast_to(1 - STRIPE, (6, *SHAPE)).copy()
        mask[2, :, 9] = 0
        assert masked(write(tmp_path / "run.cxi", mask), good_is=1) == columns_of(5)

    def test_stores_of_such_a_run_are_turned_too(self, tmp_path: Path) -> None:
        path = write(tmp_path / "run.cxi", 1 - STRIPE)
        ingest_run(open_run(path), out=tmp_path / "run.zarr", pool=SerialPool())
        assert masked(tmp_path / "run.zarr", good_is=1) == columns_of(5)
        assert len(masked(tmp_path / "run.zarr")) == 580

    def test_files_of_one_run_are_turned_alike(self, tmp_path: Path) -> None:
        paths = [write(tmp_path / name, 1 - STRIPE) for name in ("a.cxi", "b.cxi")]
        run = open_run(paths, mask=GivenMask(good_is=1))
        assert np.count_nonzero(run.detector.mask) == 20

    def test_without_a_mask_it_is_wrong_usage(self, tmp_path: Path) -> None:
        path = write(tmp_path / "run.cxi")
        with pytest.raises(UsageError, match=r"--mask-good-is: expected a mask in .*run\.cxi"):
            masked(path, good_is=1)
        fabio.tifimage.tifimage(data=STRIPE.astype("i4")).write(tmp_path / "a.tif")
        with pytest.raises(UsageError, match="--mask-good-is: images have no mask"):
            masked(tmp_path / "a.tif", good_is=1)
        with pytest.raises(UsageError, match="expected 0 or 1, found 2"):
            GivenMask(good_is=2)


def written(folder: Path, kind: str, values: NDArray[np.generic]) -> str:
    """Write a mask in some form; how it is named."""
    if kind == "npy":
        np.save(folder / "bad.npy", values)
        return f"{folder}/bad.npy"
    if kind == "tif":
        fabio.tifimage.tifimage(data=values.astype("u1")).write(folder / "bad.tif")
        return f"{folder}/bad.tif"
    name = "/some/where" if kind == "path" else "/entry/instrument/detector/pixel_mask"
    with h5py.File(folder / "bad:1.h5", "w") as file:
        file[name] = values
    return f"{folder}/bad:1.h5" + (f":{name}" if kind == "path" else "")


class TestGivenFile:
    @pytest.mark.parametrize("kind", ["npy", "tif", "path", "usual"])
    def test_its_bad_pixels_are_masked_besides_those_of_the_run(
        self, tmp_path: Path, kind: str
    ) -> None:
        path = write(tmp_path / "run.cxi", STRIPE)
        bad = np.roll(STRIPE, 2, axis=1)
        assert masked(path, file=written(tmp_path, kind, bad)) == columns_of(5, 7)
        turned = written(tmp_path, kind, 1 - bad)
        assert masked(path, file=turned, good_is=1) == columns_of(5, 7)

    def test_it_is_an_input_and_kept_by_the_store(self, tmp_path: Path) -> None:
        path = write(tmp_path / "run.cxi")
        given = GivenMask(file=written(tmp_path, "npy", STRIPE))
        run = open_run(path, mask=given)
        assert tmp_path / "bad.npy" in run.inputs
        ingest_run(run, out=tmp_path / "run.zarr", pool=SerialPool())
        assert masked(tmp_path / "run.zarr") == columns_of(5)
        before = open_run(path).source.read(range(6)).pixels
        after = open_run(tmp_path / "run.zarr").source.read(range(6)).pixels
        np.testing.assert_array_equal(after, before)

    def test_it_adds_to_a_geometry(self, tmp_path: Path) -> None:
        path = write(tmp_path / "run.cxi")
        text = "clen = 0.1\nres = 10000\nphoton_energy = 9000\nadu_per_photon = 20\n"
        text += "bad/min_fs = 1\nbad/max_fs = 1\nbad/min_ss = 0\nbad/max_ss = 19\nbad/panel = p\n"
        text += "p/min_fs = 0\np/max_fs = 29\np/min_ss = 0\np/max_ss = 19\n"
        text += "p/corner_x = -15\np/corner_y = -10\np/fs = x\np/ss = y\n"
        (tmp_path / "d.geom").write_text(text)
        given = GivenMask(file=written(tmp_path, "npy", STRIPE))
        run = open_run(path, geometry=tmp_path / "d.geom", mask=given)
        assert run.detector.distance_m == 0.1
        assert [tuple(i) for i in np.argwhere(run.detector.mask).tolist()] == columns_of(1, 5)

    @pytest.mark.parametrize("kind", ["npy", "tif", "path"])
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (STRIPE.T, r"of the shape of a frame, \(20, 30\), found \(30, 20\)"),
            (np.ones(SHAPE, "u1"), "--mask-good-is 1"),
        ],
    )
    def test_one_that_does_not_fit_is_refused(
        self, tmp_path: Path, kind: str, values: NDArray[np.generic], message: str
    ) -> None:
        path = write(tmp_path / "run.cxi")
        with pytest.raises(UsageError, match=message):
            masked(path, file=written(tmp_path, kind, values))

    def test_what_is_no_mask_is_one_line(self, tmp_path: Path) -> None:
        path = write(tmp_path / "run.cxi")
        (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY nothing")
        (tmp_path / "bad.tif").write_bytes(b"II*\0nothing")
        (tmp_path / "bad.txt").write_text("0 1")
        np.save(tmp_path / "text.npy", np.full(SHAPE, "a"))
        np.savez(tmp_path / "packed", STRIPE)
        (tmp_path / "packed.npz").rename(tmp_path / "packed.npy")
        np.save(tmp_path / "objects.npy", np.full(SHAPE, None), allow_pickle=True)
        (tmp_path / "folder.npy").mkdir()
        for name, error in (
            ("bad.npy", SourceError),
            ("bad.tif", SourceError),
            ("text.npy", SourceError),
            ("packed.npy", SourceError),
            ("objects.npy", SourceError),
            ("folder.npy", RunNotFound),
            ("bad.txt", UsageError),
            ("none.npy", RunNotFound),
            ("run.cxi:/no/mask", UsageError),
            ("run.cxi", UsageError),
        ):
            with pytest.raises(error, match=name.partition(":")[0]):
                masked(path, file=f"{tmp_path}/{name}")
        with pytest.raises(UsageError, match="--mask does not go with --untrusted"):
            open_run(path, untrusted=True, mask=GivenMask(file="bad.npy"))


class TestCommands:
    def test_few_good_pixels_are_noticed_and_reject_nothing(self, tmp_path: Path) -> None:
        path = write(tmp_path / "run.cxi", 1 - STRIPE)
        words = ["filter", "--in", path, "--scorer", "peaks", "--serial", "--json"]
        done = command(*words, "--out", tmp_path / "hits.zarr")
        facts = json.loads(done.stdout)
        assert (facts["undecided"], facts["rejected"]) == (6, 0)
        assert "97 % masked: is 1 good? --mask-good-is 1." in done.stderr
        done = command(*words, "--out", tmp_path / "good.zarr", "--mask-good-is", 1)
        assert json.loads(done.stdout)["rejected"] > 0
        assert "masked" not in done.stderr

    def test_a_mask_cannot_be_replaced_by_an_output(self, tmp_path: Path) -> None:
        path = write(tmp_path / "run.cxi")
        given = written(tmp_path, "npy", STRIPE)
        done = command(
            "filter", "--in", path, "--mask", given, "--scorer", "peaks", "--serial",
            "--out", tmp_path / "h.zarr", "--report", given, "--overwrite",
        )  # fmt: skip
        assert done.exit_code == 2

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (["--mask", "a.npy"], ["--mask", "b.npy"]),
            (["--mask", "a.npy"], ["--mask", "a.npy", "--mask-good-is", "1"]),
            ([], ["--mask-good-is", "1"]),
        ],
    )
    def test_what_was_begun_with_another_mask_is_not_resumed(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        before: list[str],
        after: list[str],
    ) -> None:
        half = np.zeros(SHAPE, "u1")
        half[:, :12] = 1
        path = write(tmp_path / "run.cxi", half)
        np.save(tmp_path / "a.npy", np.repeat([[1, 0]], [20, 10], axis=1).repeat(20, axis=0))
        np.save(tmp_path / "b.npy", STRIPE)
        monkeypatch.chdir(tmp_path)
        words = ["filter", "--in", path, "--out", "hits.zarr", "--scorer", "peaks", "--serial"]
        with monkeypatch.context() as patched:
            patched.setattr("sfxreduce.pipeline.stages.write.write_manifest", stop)
            assert command(*words, *before).exit_code == 130
        assert command(*words, *after).exit_code == 3
        assert command(*words, *before).exit_code == 0


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
