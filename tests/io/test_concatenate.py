"""Several HDF5 files are one run, events one after the other."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from sfxreduce.errors import SchemaError, UsageError
from sfxreduce.io.open import open_run
from sfxreduce.run.reasons import Reason
from sfxreduce.run.window import Window

DATA = "/entry_1/instrument_1/detector_1/data"


def part(path: Path, n: int, *, seed: int = 0, shape: tuple[int, int] = (12, 10)) -> np.ndarray:
    """Write a file of a run with its truth; gives its frames."""
    frames = np.random.default_rng(seed).integers(1, 999, (n, *shape)).astype("i2")
    mask = np.zeros(shape, np.uint32)
    mask[0, seed] = 8
    with h5py.File(path, "w") as file:
        file[DATA] = frames
        file["/entry_1/data_1/mask"] = mask
        file["/truth/kind"] = np.arange(n) % 2
        file["/truth/peak_event"] = np.array([n - 1, n - 1])
        file["/truth/peak_x"] = np.array([1.0 + seed, 2.0 + seed])
    return frames


def test_events_of_several_files_come_one_after_the_other(tmp_path: Path) -> None:
    """Several HDF5 files were refused, so a run split into files could not be one run."""
    paths = [tmp_path / "a.cxi", tmp_path / "b.cxi"]
    frames = np.concatenate([part(paths[0], 3), part(paths[1], 5, seed=1)])
    run = open_run(paths)
    events = [7, 0, 3, 2, 2]
    np.testing.assert_array_equal(run.source.read(events).pixels, frames[events])
    window = Window.centre(run.detector, tile_shape=(4, 4))
    seen = run.source.read(events, window).pixels[:, 0]
    np.testing.assert_array_equal(seen, frames[events, 4:8, 3:7])
    assert run.columns.source_event.values.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert [Path(name) for name in run.columns.source_file.values] == [paths[0]] * 3 + [
        paths[1]
    ] * 5
    assert np.argwhere(run.detector.mask).tolist() == [[0, 0], [0, 1]]
    assert run.inputs == paths
    assert run.source.n_bytes == sum(path.stat().st_size for path in paths)
    assert run.truth is not None
    assert run.truth.kind.values.tolist() == [0, 1, 0, 0, 1, 0, 1, 0]
    assert run.truth.peak_event.values.tolist() == [2, 2, 7, 7]
    paths[1].unlink()
    assert run.source.read([0, 3]).reasons.tolist() == [0, Reason.FILE_UNREADABLE]


def test_a_file_of_other_frames_is_refused_by_name(tmp_path: Path) -> None:
    part(tmp_path / "a.cxi", 2)
    part(tmp_path / "b.cxi", 2, shape=(12, 11))
    with pytest.raises(SchemaError, match=r"b\.cxi: expected frames \(12, 10\) int16 as in"):
        open_run([tmp_path / "a.cxi", tmp_path / "b.cxi"])
    (tmp_path / "c.tif").touch()
    with pytest.raises(UsageError, match="give runs one by one"):
        open_run([tmp_path / "a.cxi", tmp_path / "c.tif"])


def test_truth_of_other_variables_stays_behind_with_a_note(tmp_path: Path) -> None:
    part(tmp_path / "a.cxi", 2)
    part(tmp_path / "b.cxi", 2)
    with h5py.File(tmp_path / "b.cxi", "a") as file:
        del file["/truth/kind"]
        file["/truth/sort"] = [0, 1]
    run = open_run([tmp_path / "a.cxi", tmp_path / "b.cxi"])
    assert run.truth is None
    assert "truth left behind" in run.provenance
