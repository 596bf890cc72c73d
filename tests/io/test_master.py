"""Master files: a run whose frames lie in files that another one lists."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import run as command
from numpy.typing import NDArray

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import LeadsOutside, SchemaError, SourceError
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.describe import describe_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window

SHAPE = (20, 30)
DETECTOR = "entry/instrument/detector"


def write(
    folder: Path,
    sizes: list[int],
    *,
    group: str = "entry/data",
    numbered: bool = False,
    mask: bool = True,
) -> NDArray[np.uint32]:
    """Write a master and files of these many events; gives all frames."""
    frames = np.random.default_rng(1).integers(1, 99, (sum(sizes), *SHAPE)).astype("u4")
    frames[:, 3, 4] = 0xFFFFFFFF
    start = 0
    with h5py.File(folder / "s_master.h5", "w") as master:
        for number, size in enumerate(sizes, start=1):
            name = f"s_data_{number:06d}.h5"
            with h5py.File(folder / name, "w") as file:
                data = file.create_dataset(
                    "entry/data/data", data=frames[start : start + size], chunks=(1, *SHAPE)
                )
                if numbered:
                    data.attrs["image_nr_low"] = start + 1
                    data.attrs["image_nr_high"] = start + size
            master[f"{group}/data_{number:06d}"] = h5py.ExternalLink(name, "/entry/data/data")
            start += size
        master[f"{DETECTOR}/detector_distance"] = 0.2
        master[f"{DETECTOR}/x_pixel_size"] = 75e-6
        master[f"{DETECTOR}/beam_center_x"] = 7.0
        master[f"{DETECTOR}/detectorSpecific/nimages"] = sum(sizes)
        master[f"{DETECTOR}/detectorSpecific/ntrigger"] = 1
        master["entry/instrument/beam/incident_wavelength"] = np.linspace(1, 2, sum(sizes))
        if mask:
            bad = np.zeros(SHAPE, "u4")
            bad[3, 4], bad[0, 0] = 1, 2
            master[f"{DETECTOR}/pixel_mask"] = bad
    return frames


def file_of(folder: Path, number: int) -> Path:
    return folder / f"s_data_{number:06d}.h5"


def opened(folder: Path) -> Run:
    return open_run(folder / "s_master.h5")


class TestWholeMaster:
    @pytest.mark.parametrize("group", ["entry/data", "entry"])
    def test_its_files_are_one_run_with_its_detector_and_columns(
        self, tmp_path: Path, group: str
    ) -> None:
        frames = write(tmp_path, [4, 4, 2], group=group)
        run = opened(tmp_path)
        events = [9, 0, 3, 4, 8]
        np.testing.assert_array_equal(run.source.read(events).pixels, frames[events])
        window = Window.centre(run.detector, tile_shape=(4, 4))
        shown = pickle.loads(pickle.dumps(run.source)).read(range(10), window)
        assert not shown.reasons.any()
        whole = run.source.read(range(10)).pixels.reshape(10, -1)
        expected = whole[:, window.gather(run.detector)]
        np.testing.assert_array_equal(shown.pixels, expected)
        assert run.detector.distance_m == 0.2
        assert run.detector.panels[0].corner[0] == -7
        assert np.argwhere(run.detector.mask).tolist() == [[0, 0], [3, 4]]
        energies = run.columns["photon_energy_ev"].values
        np.testing.assert_allclose(energies, 12398.42 / np.linspace(1, 2, 10), rtol=1e-6)
        assert run.columns["source_event"].values.tolist() == list(range(10))
        assert len(set(run.columns["event_id"].values)) == 10
        files = [*(file_of(tmp_path, n) for n in (1, 2, 3)), tmp_path / "s_master.h5"]
        assert run.inputs == files
        assert run.source.n_bytes == sum(path.stat().st_size for path in files)
        assert run.warnings == ()

    def test_it_becomes_a_store_with_every_bit(self, tmp_path: Path) -> None:
        frames = write(tmp_path, [3, 3])
        ingest_run(opened(tmp_path), out=tmp_path / "run.zarr", pool=SerialPool())
        stored = open_run(tmp_path / "run.zarr")
        np.testing.assert_array_equal(stored.source.read(range(6)).pixels, frames)
        assert stored.detector.distance_m == 0.2

    @pytest.mark.parametrize("sizes", [[6], [2, 2, 2], [1] * 6])
    def test_without_a_mask_sentinels_of_all_files_make_one(
        self, tmp_path: Path, sizes: list[int]
    ) -> None:
        write(tmp_path, sizes, mask=False)
        assert np.argwhere(opened(tmp_path).detector.mask).tolist() == [[3, 4]]

    def test_a_virtual_dataset_beside_the_list_is_the_run_if_it_has_all_events(
        self, tmp_path: Path
    ) -> None:
        frames = write(tmp_path, [3, 2])
        with h5py.File(tmp_path / "s_master.h5", "a") as master:
            layout = h5py.VirtualLayout((5, *SHAPE), "u4")
            for number, rows in ((1, slice(0, 3)), (2, slice(3, 5))):
                source = (rows.stop - rows.start, *SHAPE)
                name = file_of(tmp_path, number).name
                layout[rows] = h5py.VirtualSource(name, "entry/data/data", source)
            master.create_virtual_dataset("entry/data/data", layout)
        run = opened(tmp_path)
        np.testing.assert_array_equal(run.source.read(range(5)).pixels, frames)
        file_of(tmp_path, 2).unlink()
        run = opened(tmp_path)
        assert run.source.read(range(5)).reasons.tolist() == [0] * 3 + [Reason.DATA_HOLE] * 2
        assert len(run.warnings) == 1
        assert "s_data_000002.h5: not there" in run.warnings[0]

    def test_frames_beside_the_list_that_are_not_all_are_refused(self, tmp_path: Path) -> None:
        write(tmp_path, [3, 2])
        with h5py.File(tmp_path / "s_master.h5", "a") as master:
            target = h5py.ExternalLink(file_of(tmp_path, 1).name, "/entry/data/data")
            master["entry/data/data"] = target
        with pytest.raises(SchemaError, match=r"data of 3 events and 2 links, .* to 5; name"):
            opened(tmp_path)


class TestMissingFiles:
    def test_those_at_the_end_were_never_written_and_are_named(self, tmp_path: Path) -> None:
        frames = write(tmp_path, [4, 4, 4, 4])
        for number in (3, 4):
            file_of(tmp_path, number).unlink()
        run = opened(tmp_path)
        np.testing.assert_array_equal(run.source.read(range(8)).pixels, frames[:8])
        assert run.warnings == (
            "s_data_000003.h5, s_data_000004.h5: not there, so that the run is the 8 of 16 events "
            "of the files before; fetch what was written",
        )

    @pytest.mark.parametrize(
        ("sizes", "numbered", "gone"),
        [
            ([4, 4, 4, 2], False, [2]),
            ([4, 4, 4, 2], False, [1, 3]),
            ([4, 1, 4, 2], True, [2]),
            ([3, 5, 1, 2], True, [1, 2]),
            ([3, 5, 1, 2], True, [2, 3]),
        ],
    )
    @pytest.mark.parametrize("damaged", [False, True])
    def test_events_of_one_in_the_middle_are_unreadable_and_keep_their_places(
        self, tmp_path: Path, sizes: list[int], numbered: bool, gone: list[int], damaged: bool
    ) -> None:
        frames = write(tmp_path, sizes, numbered=numbered)
        for number in gone:
            file_of(tmp_path, number).unlink()
            if damaged:
                file_of(tmp_path, number).write_bytes(b"no HDF5")
        run = opened(tmp_path)
        owner = np.repeat(np.arange(1, 5), sizes)
        lost = np.isin(owner, gone)
        reading = run.source.read(range(run.n_events))
        np.testing.assert_array_equal(reading.reasons == Reason.FILE_UNREADABLE, lost)
        np.testing.assert_array_equal(reading.pixels[~lost], frames[~lost])
        assert len(run.warnings) == 1
        assert f"{lost.sum()} events are undecided" in run.warnings[0]
        assert all(file_of(tmp_path, number).name in run.warnings[0] for number in gone)

    @pytest.mark.parametrize(
        ("sizes", "gone", "message"),
        [
            ([4, 3, 4, 2], [3], r"found none to be read as s_data_000003\.h5, and nothing says"),
            ([4, 2], [1], r"found none to be read as s_data_000001\.h5, and nothing says"),
            ([4, 2], [1, 2], r"in s_data_000001\.h5, s_data_000002\.h5, found none of these"),
        ],
    )
    def test_one_of_unknown_size_is_refused_by_name(
        self, tmp_path: Path, sizes: list[int], gone: list[int], message: str
    ) -> None:
        write(tmp_path, sizes)
        for number in gone:
            file_of(tmp_path, number).unlink()
        with pytest.raises(SourceError, match=message):
            opened(tmp_path)

    def test_a_damaged_one_at_the_end_is_refused(self, tmp_path: Path) -> None:
        """Frames may be in it: it is not one that was never written."""
        write(tmp_path, [4, 4, 4])
        file_of(tmp_path, 3).write_bytes(b"no HDF5")
        with pytest.raises(SourceError, match=r"s_data_000003\.h5: expected a whole HDF5 file"):
            opened(tmp_path)

    def test_one_that_vanishes_or_changes_makes_its_events_unreadable(self, tmp_path: Path) -> None:
        write(tmp_path, [2, 2, 2])
        run = opened(tmp_path)
        file_of(tmp_path, 2).unlink()
        assert run.source.read(range(6)).reasons.tolist() == [
            0,
            0,
            *[Reason.FILE_UNREADABLE] * 2,
            0,
            0,
        ]


class TestRefusedMaster:
    def test_files_of_other_frames_are_refused(self, tmp_path: Path) -> None:
        write(tmp_path, [2, 2])
        with h5py.File(file_of(tmp_path, 2), "w") as file:
            file["entry/data/data"] = np.zeros((2, 9, 9), "u4")
        with pytest.raises(SchemaError, match=r"found \(9, 9\) uint32 in s_data_000002"):
            opened(tmp_path)

    def test_files_in_another_folder_need_a_root(self, tmp_path: Path) -> None:
        home, away = tmp_path / "home", tmp_path / "away"
        home.mkdir()
        away.mkdir()
        write(home, [2, 2])
        file_of(home, 2).rename(file_of(away, 2))
        with h5py.File(home / "s_master.h5", "a") as master:
            del master["entry/data/data_000002"]
            target = h5py.ExternalLink(str(file_of(away, 2)), "/entry/data/data")
            master["entry/data/data_000002"] = target
        with pytest.raises(LeadsOutside, match="--root"):
            opened(home)
        assert open_run(home / "s_master.h5", roots=[away]).n_events == 4


class TestOneOfItsFiles:
    def test_the_master_is_named(self, tmp_path: Path) -> None:
        write(tmp_path, [2, 2])
        warnings = open_run(file_of(tmp_path, 1)).warnings
        assert len(warnings) == 1
        assert "one of the files of s_master.h5" in warnings[0]
        both = open_run([file_of(tmp_path, 1), file_of(tmp_path, 2)])
        assert both.n_events == 4
        assert both.warnings == warnings

    def test_a_master_that_does_not_list_it_is_not(self, tmp_path: Path) -> None:
        write(tmp_path, [2])
        file_of(tmp_path, 1).rename(file_of(tmp_path, 7))
        assert open_run(file_of(tmp_path, 7)).warnings == ()


def test_commands_say_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, [2, 2])
    file_of(tmp_path, 2).unlink()
    done = command(
        "ingest", "--in", tmp_path / "s_master.h5", "--out", tmp_path / "run.zarr", "--serial"
    )
    assert done.exit_code == 0
    assert "warning" in done.stderr
    assert "s_data_000002.h5: not there" in done.stderr
    shown = command("info", tmp_path / "s_master.h5", "--json")
    assert "s_data_000002.h5" in json.loads(shown.stdout)["warnings"][0]
    assert describe_run(open_run(tmp_path / "run.zarr")).warnings is None


def test_a_master_is_read_through_another_process_alike(tmp_path: Path) -> None:
    frames = write(tmp_path, [3, 3, 3])
    file_of(tmp_path, 3).unlink()
    run = open_run(tmp_path / "s_master.h5", untrusted=True)
    np.testing.assert_array_equal(run.source.read(range(6)).pixels, frames[:6])
    assert run.warnings == opened(tmp_path).warnings != ()
