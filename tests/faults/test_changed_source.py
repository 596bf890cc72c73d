"""What is copied is what was scored: other bytes are found, and other inodes are no other bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from archived import Call
from beamtimes import POOL
from planted import ArrayFrames, BrightestPixel, planted_run

from sfxreduce.decisions.decide import Decision
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.errors import SfxReduceWarning, SourceError
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import open_table
from sfxreduce.pipeline import filter as filtering
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.report.report import Report
from sfxreduce.run.reasons import Reason

N_EVENTS = 30
HITS = range(0, N_EVENTS, 3)


def frames() -> np.ndarray:
    source = planted_run(n_events=N_EVENTS).source
    assert isinstance(source, ArrayFrames)
    return source.frames


def write_hdf5(folder: Path, data: np.ndarray) -> Path:
    path = folder / "run.h5"
    with h5py.File(path, "w") as file:
        # Not packed, so that any content has the same size.
        file.create_dataset("/entry/data/data", data=data, chunks=(1, *data.shape[1:]))
    return path


def write_zarr(folder: Path, data: np.ndarray) -> Path:
    path = folder / "run.zarr"
    run = open_run(write_hdf5(folder, data))
    ingest_run(run, out=path, pool=POOL)
    return path


def replace_files(old: Path, new: Path) -> None:
    """Put other files in the place of those of a run, and set their times back."""
    pairs = (
        [(old / p.relative_to(new), p) for p in sorted(new.rglob("*")) if p.is_file()]
        if new.is_dir()
        else [(old, new)]
    )
    for target, source in pairs:
        facts = target.stat()
        copy = target.with_name(target.name + ".copy")
        shutil.copyfile(source, copy)
        os.utime(copy, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        copy.replace(target)


def between_scoring_and_copying(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Let something happen once all events are scored, and none is copied."""
    write = filtering.write_reduced

    def late(*args: object, **options: object) -> object:
        act()
        return write(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(filtering, "write_reduced", late)


def filtered(run: Path, out: Path, *, tile: int = 0) -> Report:
    settings = FilterSettings(scorer=BrightestPixel(tile=tile), audit_share=0.1)
    return filter_run(open_run(run), settings=settings, outputs=Outputs(store=out), pool=POOL)


@pytest.mark.parametrize("tile", [0, 20], ids=["whole frames", "a window"])
@pytest.mark.parametrize("write", [write_hdf5, write_zarr])
def test_hits_that_changed_before_they_were_copied_are_undecided(
    write: Callable[[Path, np.ndarray], Path],
    tile: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Frames that were all zero were published as hits.
    data = frames()
    run = write(tmp_path, data)
    changed = data.copy()
    changed[[0, 6]] = 0
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", changed)
    if run.is_dir():
        # Tiles are packed: only shards of the same size could stand in for the old ones.
        monkeypatch.setattr("sfxreduce.pipeline.stages.write.source_pin", lambda paths: "the same")
    between_scoring_and_copying(monkeypatch, lambda: replace_files(run, other))
    report = filtered(run, tmp_path / "hits.zarr", tile=tile)
    assert report.changed == 2
    made = read_ledger(open_table(tmp_path / "hits.zarr", "ledger"), where="hits")
    assert np.flatnonzero(made.reason & np.uint32(Reason.CHANGED)).tolist() == [0, 6]
    assert (made.decision[[0, 6]] == Decision.UNDECIDED).all()
    assert np.flatnonzero(made.decision == Decision.HIT).tolist() == sorted({*HITS} - {0, 6})


def test_rejects_that_changed_are_not_published_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = frames()
    run = write_hdf5(tmp_path, data)
    (tmp_path / "other").mkdir()
    other = write_hdf5(tmp_path / "other", data[::-1].copy())
    between_scoring_and_copying(monkeypatch, lambda: replace_files(run, other))
    with pytest.raises(SourceError, match="have other pixels; nothing was published"):
        filtered(run, tmp_path / "hits.zarr")
    assert not (tmp_path / "hits.zarr").exists()


def test_other_inodes_and_times_of_change_are_told_and_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_hdf5(tmp_path, frames())
    filtered(run, tmp_path / "expected.zarr")
    (tmp_path / "other").mkdir()
    other = write_hdf5(tmp_path / "other", frames())
    between_scoring_and_copying(monkeypatch, lambda: replace_files(run, other))
    with pytest.warns(SfxReduceWarning, match="replaced or touched"):
        report = filtered(run, tmp_path / "hits.zarr")
    assert report.changed == 0
    for path in (tmp_path / "expected.zarr").rglob("*"):
        if path.is_file():
            name = path.relative_to(tmp_path / "expected.zarr")
            assert (tmp_path / "hits.zarr" / name).read_bytes() == path.read_bytes()


def test_a_run_that_was_moved_by_a_backup_between_two_calls_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_hdf5(tmp_path, frames())

    def cut_off() -> None:
        raise KeyboardInterrupt

    between_scoring_and_copying(monkeypatch, cut_off)
    with pytest.raises(KeyboardInterrupt):
        filtered(run, tmp_path / "hits.zarr")
    monkeypatch.undo()
    (tmp_path / "other").mkdir()
    replace_files(run, write_hdf5(tmp_path / "other", frames()))
    with pytest.warns(SfxReduceWarning, match="replaced or touched"):
        assert filtered(run, tmp_path / "hits.zarr").changed == 0
    # The same with other bytes: what was scored before the cut-off is compared as well.
    between_scoring_and_copying(monkeypatch, cut_off)
    with pytest.raises(KeyboardInterrupt):
        filtered(run, tmp_path / "again.zarr")
    monkeypatch.undo()
    replace_files(run, write_hdf5(tmp_path / "other", frames()[::-1].copy()))
    with pytest.raises(SourceError, match="have other pixels"):
        filtered(run, tmp_path / "again.zarr")


def test_a_filter_that_fails_before_a_score_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_hdf5(tmp_path, frames())

    def fail(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(filtering, "_plan", fail)
    with pytest.raises(KeyboardInterrupt):
        filtered(run, tmp_path / "hits.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_a_link_that_is_turned_elsewhere_is_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = write_hdf5(tmp_path, frames())
    (tmp_path / "other").mkdir()
    other = write_hdf5(tmp_path / "other", frames()[::-1].copy())
    facts = real.stat()
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    link = tmp_path / "link.h5"
    link.symlink_to(real)

    def turn() -> None:
        link.unlink()
        link.symlink_to(other)

    between_scoring_and_copying(monkeypatch, turn)
    with pytest.raises(SourceError, match="have other pixels"):
        filtered(link, tmp_path / "hits.zarr")


def test_the_command_ends_with_exit_status_1_where_events_changed(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_hdf5(tmp_path, planted_peaks(frames()))
    changed = planted_peaks(frames())
    changed[0] = 0
    (tmp_path / "other").mkdir()
    other = write_hdf5(tmp_path / "other", changed)
    between_scoring_and_copying(monkeypatch, lambda: replace_files(run, other))
    words = ["filter", "--in", run, "--out", tmp_path / "hits.zarr", "--scorer", "peaks"]
    status, report, err = call(*words, "--serial")
    assert (status, report["changed"], report["undecided"]) == (1, 1, 1)
    assert "the pixels of 1 event are not those that were scored" in err


def planted_peaks(data: np.ndarray) -> np.ndarray:
    """Blanks with noise, and a grid of peaks in every third event."""
    rng = np.random.default_rng(5)
    noise = rng.normal(100, 3, data.shape).round().astype(data.dtype)
    noise[list(HITS), 10::20, 10::20] = 3000
    noise[list(HITS), 10::20, 11::20] = 3000
    return noise
