"""Runs of the European XFEL, made by EXtra-data's own examples and filled with frames."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import run as command

from sfxreduce.errors import SchemaError, SourceError, UsageError
from sfxreduce.io.open import open_run
from sfxreduce.run.detector import PixelFlag
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window

pytest.importorskip("extra_data", reason="needs EXtra-data: pip install 'sfxreduce[euxfel]'")

SOURCE = "SPB_DET_AGIPD1M-1"
TRAINS, PULSES = 3, 4
N = TRAINS * PULSES
HITS = (1, 6, 11)
IMAGE = "INSTRUMENT/SPB_DET_AGIPD1M-1/DET/{}CH0:xtdf/image"

Make = Callable[..., Path]


def frames(n: int = N) -> np.ndarray:
    """Noise around 10 ADU, with 25 peaks on modules 3 and 4 of three events."""
    rng = np.random.default_rng(1)
    out = rng.normal(10, 1, (n, 16, 512, 128)).astype(np.float32)
    for event in HITS:
        for k in range(25):
            out[event, 3 + k % 2, 20 + 18 * k, 10 + 4 * k] += 500
    return out


PICTURES = frames()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a run as the facility's programs do; its examples leave pixels and masks unwritten."""
    from extra_data.tests.mockdata import write_file
    from extra_data.tests.mockdata.detectors import AGIPDModule

    def written(
        *,
        off: Collection[int] = (),
        dropped: Collection[tuple[int, int]] = (),
        raw: bool = False,
        fill: bool = True,
        bad: Collection[tuple[int, int]] = (),
    ) -> Path:
        folder = tmp_path / "r0238"
        folder.mkdir()
        for module in sorted(set(range(16)) - set(off)):
            kept = [t for t in range(TRAINS) if (module, t) not in dropped]
            counts = np.array([PULSES if t in kept else 0 for t in range(TRAINS)], np.uint64)
            path = folder / f"{'RAW' if raw else 'CORR'}-R0238-AGIPD{module:02}-S00000.h5"
            image = AGIPDModule(f"{SOURCE}/DET/{module}CH0", raw=raw, frames_per_train=counts)
            write_file(str(path), [image], ntrains=TRAINS, chunksize=32, format_version="1.0")
            if raw or not fill:
                continue
            rows = [t * PULSES + p for t in kept for p in range(PULSES)]
            with h5py.File(path, "r+") as file:
                group = file[IMAGE.format(module)]
                group["data"][...] = PICTURES[rows, module]
                mask = np.zeros(group["mask"].shape, np.uint32)
                mask[:, 0, 0] = 0x1000
                for event, column in bad:
                    mask[[row == event for row in rows], 1, column] = 0x1
                group["mask"][...] = mask
        return folder

    return written


def opened(folder: Path) -> Run:
    return open_run(folder, source=SOURCE)


class TestWhole:
    def test_frames_ids_and_mask_are_those_of_the_files(self, make: Make) -> None:
        run = opened(make(bad=[(5, 7)]))
        assert (run.n_events, run.detector.frame_shape) == (N, (16, 512, 128))
        assert run.columns["event_id"].values[:5].tolist() == [
            "10000:0", "10000:1", "10000:2", "10000:3", "10001:0",
        ]  # fmt: skip
        assert run.columns["train_id"].attrs["path"] == "/entry_1/trainId"
        assert run.columns["pulse_id"].values.tolist() == list(range(PULSES)) * TRAINS
        assert run.columns["cell_id"].values.tolist() == list(range(PULSES)) * TRAINS
        reading = run.source.read([7, 0, 3])
        np.testing.assert_array_equal(reading.pixels, PICTURES[[7, 0, 3]])
        assert reading.pixels.dtype == np.float32
        assert not reading.reasons.any()
        assert not reading.missing
        # Bad in every event is bad; bad in one only, as pixel (1, 7) in event 5, is not. In a CXI
        # file the bit 0x1000 alone would call a pixel good.
        mask = np.zeros((16, 512, 128), np.uint32)
        mask[:, 0, 0] = PixelFlag.BAD
        np.testing.assert_array_equal(run.detector.mask, mask)
        assert run.detector.pixel_size_m == 200e-6
        assert run.detector.geometry == "assumed"

    def test_a_window_holds_the_same_pixels(self, make: Make) -> None:
        run = opened(make())
        window = Window.centre(run.detector, tile_shape=(90, 70))
        expected = window.take(PICTURES[4], run.detector)
        np.testing.assert_array_equal(run.source.read([4], window).pixels[0], expected)

    def test_nothing_is_written_beside_the_run(self, make: Make) -> None:
        folder = make()
        before = sorted(folder.iterdir())
        opened(folder).source.read([0])
        assert sorted(folder.iterdir()) == before


class TestGaps:
    def test_a_module_that_is_off_is_masked_and_events_are_whole(self, make: Make) -> None:
        run = opened(make(off=[9]))
        assert (run.detector.mask[9] == PixelFlag.INVALID).all()
        assert not run.detector.mask[8, 1:].any()
        reading = run.source.read(range(N))
        assert not reading.reasons.any()
        assert np.isnan(reading.pixels[:, 9]).all()
        others = [m for m in range(16) if m != 9]
        np.testing.assert_array_equal(reading.pixels[:, others], PICTURES[:, others])

    def test_a_module_that_drops_out_is_missing_in_these_events(self, make: Make) -> None:
        run = opened(make(dropped=[(2, 1)], off=[15]))
        assert not run.detector.mask[2, 1:].any()
        reading = run.source.read(range(N))
        hit = np.arange(N) // PULSES == 1
        np.testing.assert_array_equal(reading.reasons, np.where(hit, Reason.DATA_HOLE, 0))
        assert sorted(reading.missing) == np.flatnonzero(hit).tolist()
        for place, missing in reading.missing.items():
            assert missing[2].all()
            assert np.count_nonzero(missing.any(axis=(1, 2))) == 1
            assert np.isnan(reading.pixels[place, 2]).all()
            np.testing.assert_array_equal(reading.pixels[place, 3], PICTURES[place, 3])
        assert not reading.lost.any()

    def test_a_picture_that_was_never_written_is_missing(self, make: Make) -> None:
        folder = make()
        path = folder / "CORR-R0238-AGIPD05-S00000.h5"
        with h5py.File(path, "r+") as file:
            group = file[IMAGE.format(5)]
            del group["data"]
            data = group.create_dataset("data", (N, 512, 128), "f4", chunks=(1, 512, 128))
            for event in set(range(N)) - {4}:
                data[event] = PICTURES[event, 5]
        reading = opened(folder).source.read([3, 4])
        assert reading.reasons.tolist() == [0, Reason.DATA_HOLE]
        assert reading.missing[1][5].all()

    def test_a_damaged_chunk_costs_one_module_of_one_event(self, make: Make) -> None:
        folder = make()
        path = folder / "CORR-R0238-AGIPD05-S00000.h5"
        with h5py.File(path, "r+") as file:
            group = file[IMAGE.format(5)]
            del group["data"]
            data = group.create_dataset(
                "data", data=PICTURES[:, 5], chunks=(1, 512, 128), fletcher32=True
            )
            place = data.id.get_chunk_info_by_coord((6, 0, 0)).byte_offset
        content = bytearray(path.read_bytes())
        content[place + 1000] ^= 0xFF
        path.write_bytes(content)
        reading = opened(folder).source.read(range(N))
        assert np.flatnonzero(reading.reasons).tolist() == [6]
        assert reading.reasons[6] == Reason.READ_ERROR
        assert np.flatnonzero(reading.missing[6].any(axis=(1, 2))).tolist() == [5]


class TestRefused:
    def test_raw_data_in_one_line(self, make: Make) -> None:
        with pytest.raises(UsageError, match=r"raw data .* give the folder .* proc/rNNNN"):
            opened(make(raw=True))

    def test_another_detector_is_told_what_there_is(self, make: Make) -> None:
        folder = make()
        with pytest.raises(UsageError, match=f"'MID_DET_AGIPD1M-1', found {SOURCE}"):
            open_run(folder, source="MID_DET_AGIPD1M-1")
        with pytest.raises(UsageError, match="expected a detector of AGIPD1M"):
            open_run(folder, source="SPB_IRDA_JF4M")

    def test_a_broken_file_is_named(self, make: Make) -> None:
        folder = make()
        path = folder / "CORR-R0238-AGIPD05-S00000.h5"
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(SourceError, match=r"AGIPD05-S00000\.h5.* fetch it again"):
            opened(folder)

    def test_pixels_that_were_never_written_are_no_run(self, make: Make) -> None:
        with pytest.raises(SchemaError, match="found none; was it off"):
            opened(make(fill=False))

    def test_a_file_in_place_of_the_folder(self, make: Make) -> None:
        path = make() / "CORR-R0238-AGIPD05-S00000.h5"
        with pytest.raises(UsageError, match="--source: expected one folder"):
            open_run(path, source=SOURCE)


def test_one_command_filters_a_run_with_a_module_off_and_another_dropping_out(
    make: Make, tmp_path: Path
) -> None:
    folder = make(off=[9], dropped=[(12, 2)])
    out = tmp_path / "hits.zarr"
    words = ["--in", folder, "--source", SOURCE, "--scorer", "peaks", "--serial"]
    done = command("filter", *words, "--out", out)
    assert done.exit_code == 0, done.output
    kept = open_run(out)
    # The hits, and the last train, of which a module is missing.
    expected = sorted({*HITS, 8, 9, 10, 11})
    ids = [f"{10000 + event // PULSES}:{event % PULSES}" for event in expected]
    assert kept.columns["event_id"].values.tolist() == ids
    assert kept.columns["panel_missing"].values.sum(axis=0).tolist() == [0] * 12 + [4, 0, 0, 0]
    reading = kept.source.read(range(len(expected)))
    good = [m for m in range(16) if m not in (9, 12)]
    np.testing.assert_array_equal(reading.pixels[:, good], PICTURES[expected][:, good])
    again = command("verify", "--in", out, "--against", folder, "--source", SOURCE, "--serial")
    assert again.exit_code == 0, again.output
