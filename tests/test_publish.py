"""An output is there complete, or it is not there; nothing else is touched."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sfxreduce.errors import OutputError, OutputExists, UsageError, VerificationError
from sfxreduce.io.publish import (
    PublishJob,
    check_outputs,
    output_errors,
    publish_file,
    staged,
    sweep_partial,
    write_file,
)


def test_a_staged_folder_appears_whole(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as hidden:
        write_file(hidden / "a" / "b", b"1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a" / "b").read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_interrupted_output_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises((RuntimeError, KeyboardInterrupt, OutputError)), staged(tmp_path / "o") as h:
        write_file(h / "a", b"1")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_replacement_leaves_the_old_output(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "out") as hidden:
        write_file(hidden, b"new")
        raise KeyboardInterrupt
    assert (tmp_path / "out").read_bytes() == b"old"
    with staged(tmp_path / "out") as hidden:
        write_file(hidden, b"new")
    assert (tmp_path / "out").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_outputs_never_overlap_inputs_or_each_other(tmp_path: Path) -> None:
    run = tmp_path / "run.zarr"
    run.mkdir()
    for bad in (run, run / "inside.zarr", tmp_path, tmp_path / "x" / ".." / "run.zarr"):
        with pytest.raises(UsageError, match="overlaps the input"):
            check_outputs([bad], inputs=[run], overwrite=True)
    with pytest.raises(UsageError, match="overlaps the output"):
        check_outputs([tmp_path / "o", tmp_path / "o"], inputs=[run], overwrite=True)
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(UsageError, match="overlaps the input"):
        check_outputs([tmp_path / "link"], inputs=[run], overwrite=True)


def test_an_existing_output_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists, match="pass --overwrite"):
        check_outputs([tmp_path / "out"], inputs=[], overwrite=False)
    with pytest.raises(OutputError, match="there is no folder"):
        check_outputs([tmp_path / "a" / "b"], inputs=[], overwrite=False)


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no space left on the disk \(\d+ bytes free\)") as told:
        with output_errors(tmp_path / "out"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert "\n" not in str(told.value)


def test_a_file_that_reads_back_differently_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert publish_file(PublishJob(store=str(tmp_path), path="f")).size == 3
    with pytest.raises(VerificationError, match="differs from what was written"):
        publish_file(PublishJob(store=str(tmp_path), path="f", sha256="0" * 64))


def test_a_file_may_be_written_twice_and_leftovers_are_swept(tmp_path: Path) -> None:
    for _ in range(2):
        write_file(tmp_path / "c" / "0", b"same")
    (tmp_path / "c" / ".0.abc.partial").write_bytes(b"half")
    sweep_partial(tmp_path)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["0"]
    assert (tmp_path / "c" / "0").read_bytes() == b"same"
