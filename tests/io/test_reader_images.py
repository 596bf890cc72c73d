"""Image files: one event a file, sentinels in the mask, damage flagged."""

from __future__ import annotations

import bz2
import gzip
import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fabio
import numpy as np
import pytest
from fabio.cbfimage import CbfImage
from fabio.edfimage import EdfImage
from fabio.tifimage import TifImage
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.io.readers.count_mask import sentinel_mask
from sfxreduce.io.readers.images.run import open_images
from sfxreduce.run.columns import MISSING_TIME
from sfxreduce.run.detector import PixelFlag
from sfxreduce.run.reasons import Reason
from sfxreduce.run.window import Window

GRID = Path(__file__).resolve().parents[3] / "shared" / "data" / "thaumatin_grid"
HEADER = "\r\n".join(
    [
        "# Detector: PILATUS 300K",
        "# 2019-09-11T13:20:28.989",
        "# Pixel_size 172e-6 m x 172e-6 m",
        "# Count_cutoff 1000 counts",
        "# Wavelength 1.00000 A",
        "# Detector_distance 0.35100 m",
        "# Beam_xy (6.50, 4.25) pixels",
    ]
)
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
}
GAP, BAD, OVERLOAD = int(PixelFlag.GAP), int(PixelFlag.BAD), int(PixelFlag.SATURATED)


def image_of(event: int, dtype: str = "i4") -> np.ndarray:
    return (np.arange(120).reshape(10, 12) + event).astype(dtype)


def write_cbf(path: Path, image: np.ndarray, header: str = HEADER) -> Path:
    cbf = CbfImage(data=image)
    cbf.header["_array_data.header_convention"] = "PILATUS_1.2"
    cbf.header["_array_data.header_contents"] = header
    cbf.write(str(path))
    return path


def write_run(folder: Path, images: Sequence[np.ndarray]) -> list[Path]:
    return [write_cbf(folder / f"run_{i:04}.cbf", image) for i, image in enumerate(images)]


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2"])
@pytest.mark.parametrize(
    ("suffix", "kind", "dtypes"),
    [
        ("cbf", CbfImage, ["i2", "i4"]),
        ("tif", TifImage, ["u2", "i4"]),
        ("edf", EdfImage, ["u2", "i4", "f4"]),
    ],
)
def test_images_come_out_bit_for_bit_in_the_order_given(
    tmp_path: Path, packed: str, suffix: str, kind: Callable[..., Any], dtypes: list[str]
) -> None:
    pack = PACK[packed]
    for dtype in dtypes:
        paths = []
        for event in (2, 0, 1):
            plain = tmp_path / f"{dtype}_{event}.{suffix}"
            kind(data=image_of(event, dtype)).write(str(plain))
            paths.append(plain.with_name(plain.name + packed))
            paths[-1].write_bytes(pack(plain.read_bytes()))
        run = open_images(paths)
        reading = run.source.read([0, 1, 2, 0])
        assert run.source.dtype == reading.pixels.dtype == np.dtype(dtype)
        assert not reading.reasons.any()
        np.testing.assert_array_equal(reading.pixels, [image_of(e, dtype) for e in (2, 0, 1, 2)])
        assert run.columns.event_id.values.tolist() == [f"{dtype}_{e}" for e in (2, 0, 1)]


def test_the_header_of_a_cbf_fills_geometry_and_columns(tmp_path: Path) -> None:
    run = open_images(write_run(tmp_path, [image_of(0), image_of(1)]))
    detector = run.detector
    assert detector.name == "PILATUS 300K"
    assert detector.panels[0].corner == (-6.5, -4.25)
    assert (detector.pixel_size_m, detector.distance_m) == (172e-6, 0.351)
    assert detector.saturation_adu == 1000
    np.testing.assert_allclose(run.columns.photon_energy_ev, 12398.42, rtol=1e-6)
    assert run.columns.timestamp_ns.values.tolist() == [1_568_208_028_989_000_000] * 2
    assert run.columns.source_file.values[1].endswith("run_0001.cbf")


@pytest.mark.parametrize(
    ("line", "time_ns"),
    [
        ("# 2011-08-10T23:28:17.123456789", 1_313_018_897_123_456_789),
        ("# 2011/Aug/10 23:28:17.5", 1_313_018_897_500_000_000),
        ("# 2011-13-10T23:28:17", MISSING_TIME),
        ("# Exposure_time 0.019 s", MISSING_TIME),
    ],
)
def test_the_start_of_the_exposure_is_read_or_missing(
    tmp_path: Path, line: str, time_ns: int
) -> None:
    run = open_images([write_cbf(tmp_path / "a.cbf", image_of(0), header=f"# Tau = 0 s\r\n{line}")])
    assert run.columns.timestamp_ns.values.tolist() == [time_ns]


def test_without_a_header_everything_is_missing_and_the_beam_is_at_the_centre(
    tmp_path: Path,
) -> None:
    TifImage(data=image_of(0, "u2")).write(str(tmp_path / "a.tif"))
    run = open_images([tmp_path / "a.tif"])
    assert run.detector.panels[0].corner == (-6.0, -5.0)
    assert math.isnan(run.detector.distance_m)
    assert np.isnan(run.columns.photon_energy_ev).all()
    assert (run.columns.timestamp_ns == MISSING_TIME).all()


def test_gaps_bad_pixels_and_steady_overloads_are_masked(tmp_path: Path) -> None:
    images = [image_of(event) for event in range(6)]
    for image in images:
        image[4] = -1
        image[0, 0] = -2
        image[9, 9] = 1_046_527
    images[2][7, 7] = 1_046_527
    detector = open_images(write_run(tmp_path, images)).detector
    expected = np.zeros((10, 12), np.uint32)
    expected[4], expected[0, 0], expected[9, 9] = GAP, BAD, OVERLOAD
    # The overload of one frame may be its strongest Bragg peak: the mask of the run leaves it in.
    np.testing.assert_array_equal(detector.mask, expected)


@given(
    image=arrays.arrays(np.int32, (5, 4), elements=st.integers(-400, 400)),
    cutoff=st.integers(0, 500),
)
def test_a_photon_counter_is_masked_where_it_is_negative_or_above_its_cutoff(
    image: np.ndarray, cutoff: int
) -> None:
    mask = sentinel_mask([image], count_cutoff=cutoff, counts=True)
    np.testing.assert_array_equal(mask != 0, (image < 0) | (image > cutoff))


@given(image=arrays.arrays(np.int16, (5, 4), elements=st.integers(-400, 400)))
def test_noise_below_zero_is_a_measurement(image: np.ndarray) -> None:
    image[0, 0] = -3
    assert not sentinel_mask([image]).any()


def test_the_highest_unsigned_value_and_what_is_not_finite_are_sentinels() -> None:
    unsigned = np.array([[7, 65535], [65534, 0]], np.uint16)
    assert sentinel_mask([unsigned, unsigned]).tolist() == [[0, OVERLOAD], [0, 0]]
    floating = np.array([[7, np.nan], [-3, np.inf]], np.float32)
    assert sentinel_mask([floating]).tolist() == [[0, BAD], [0, BAD]]


def test_a_window_shows_the_same_pixels_as_the_whole_frame(tmp_path: Path) -> None:
    run = open_images(write_run(tmp_path, [image_of(event) for event in range(3)]))
    window = Window(name="tiles", tile_shape=(4, 5), origins=((-2, 3), (5, 9)))
    part, whole = run.source.read([2, 0], window), run.source.read([2, 0])
    expected = [window.take(frame, run.detector) for frame in whole.pixels]
    np.testing.assert_array_equal(part.pixels, expected)


def test_the_source_survives_pickling_with_the_same_detector(tmp_path: Path) -> None:
    run = open_images(write_run(tmp_path, [image_of(0)]))
    again = pickle.loads(pickle.dumps(run.source))
    assert again.detector is run.detector
    np.testing.assert_array_equal(again.read([0]).pixels[0], image_of(0))


@pytest.mark.parametrize(
    "odd", [image_of(0)[:9].copy(), image_of(0, "i2")], ids=["another shape", "another dtype"]
)
def test_the_first_odd_file_is_named(tmp_path: Path, odd: np.ndarray) -> None:
    paths = write_run(tmp_path, [image_of(0), image_of(1), odd, odd])
    with pytest.raises(SchemaError, match=r"run_0002\.cbf: expected an image \(10, 12\) int32"):
        open_images(paths)


@pytest.mark.parametrize("suffix", ["cbf", "tif", "edf", "tif.gz", "cbf.bz2"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9])
def test_a_truncated_file_flags_its_event_and_no_other(
    tmp_path: Path, suffix: str, share: float
) -> None:
    kinds: dict[str, Callable[..., Any]] = {
        "cbf": CbfImage,
        "tif": TifImage,
        "edf": EdfImage,
    }
    pack = PACK[suffix[3:]]
    image = (image_of(1) * 70_001 + 2**24).astype("i4")
    paths = []
    for event in range(3):
        plain = tmp_path / "plain"
        kinds[suffix[:3]](data=image).write(str(plain))
        paths.append(tmp_path / f"{event}.{suffix}")
        paths[-1].write_bytes(pack(plain.read_bytes()))
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: int(share * len(whole))])
    reading = open_images(paths).source.read(range(3))
    assert reading.reasons.tolist() == [0, Reason.FILE_UNREADABLE, 0]
    np.testing.assert_array_equal(reading.pixels[[0, 2]], [image, image])


def test_a_flipped_bit_in_a_cbf_flags_its_event(tmp_path: Path) -> None:
    paths = write_run(tmp_path, [image_of(0), image_of(1)])
    data = bytearray(paths[0].read_bytes())
    data[data.find(b"\x0c\x1a\x04\xd5") + 20] ^= 1
    paths[0].write_bytes(data)
    run = open_images(paths)
    assert run.source.read([0, 1]).reasons.tolist() == [Reason.FILE_UNREADABLE, 0]
    np.testing.assert_array_equal(run.detector.mask, 0)


@pytest.mark.parametrize("size", [0, 5, 900])
def test_a_run_of_damaged_files_only_is_an_error(tmp_path: Path, size: int) -> None:
    paths = write_run(tmp_path, [image_of(0), image_of(1)])
    for path in paths:
        path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SourceError, match=r"fetch (them|the files) again"):
        open_images(paths)


def test_files_that_change_after_opening_are_flagged(tmp_path: Path) -> None:
    paths = write_run(tmp_path, [image_of(0), image_of(1), image_of(2)])
    source = open_images(paths).source
    write_cbf(paths[0], image_of(0)[:5].copy())
    paths[1].unlink()
    assert source.read(range(3)).reasons.tolist() == [
        Reason.UNEXPECTED_FORMAT,
        Reason.FILE_UNREADABLE,
        0,
    ]


def test_a_stack_in_one_file_is_an_error(tmp_path: Path) -> None:
    stack = EdfImage(data=image_of(0))
    stack.append_frame(data=image_of(1))
    stack.write(str(tmp_path / "stack.edf"))
    with pytest.raises(SchemaError, match="expected one image"):
        open_images([tmp_path / "stack.edf"])


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    paths = write_run(tmp_path, [image_of(0)])
    with pytest.raises(RunNotFound, match=r"gone\.cbf: no such file"):
        open_images([*paths, tmp_path / "gone.cbf"])
    with pytest.raises(RunNotFound, match="images: no such file"):
        open_images([])


@pytest.mark.skipif(not GRID.exists(), reason="needs shared/data/thaumatin_grid")
def test_the_thaumatin_grid_is_read_as_fabio_reads_it() -> None:
    paths = sorted(GRID.glob("*.cbf.bz2"))[-3:]
    run = open_images(paths)
    assert run.columns.event_id.values[0] == "thau_3_2_0015"
    assert run.detector.panels[0].corner == (-1261.61, -1306.96)
    mask = run.detector.mask
    assert np.count_nonzero(mask == GAP) == 526_101
    assert np.count_nonzero(mask == BAD) == 625
    # One pixel beside the beam ran over in every frame.
    assert np.argwhere(mask == OVERLOAD).tolist() == [[1319, 1262]]
    reading = run.source.read([1])
    with fabio.open(str(paths[1])) as image:
        np.testing.assert_array_equal(reading.pixels[0], image.data)
    assert not (reading.pixels[0][run.detector.good()] < 0).any()


def test_every_image_is_an_input(tmp_path: Path) -> None:
    """The path of a run of many images is no file, so an output could have replaced one."""
    paths = [write_cbf(tmp_path / f"{i}.cbf", image_of(i)) for i in range(3)]
    assert open_images(paths).inputs == paths
