"""Outputs are there complete, or they are not there; nothing else is touched."""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path

import pytest

from sfxreduce.errors import OutputError, OutputExists, UsageError, VerificationError
from sfxreduce.io.files.durable import (
    output_errors,
    sweep_partial,
    write_file,
)
from sfxreduce.io.store.manifest import PublishJob, publish_file
from sfxreduce.io.store.names import SCHEMA
from sfxreduce.io.writers.publish import check_outputs, rename_flagged, staged


def make_store(path: Path, content: bytes = b"old") -> Path:
    """The least that counts as a run store of ours."""
    path.mkdir()
    (path / "zarr.json").write_text(json.dumps({"attributes": {"schema": SCHEMA}}))
    (path / "data").write_bytes(content)
    return path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_staged_outputs_appear_whole_and_together(tmp_path: Path) -> None:
    store, page = tmp_path / "out", tmp_path / "page.html"
    with staged(stores=[store], files=[page]) as hidden:
        hidden[store].mkdir()
        write_file(hidden[store] / "a" / "b", b"1", below=hidden[store])
        write_file(hidden[page], b"2")
        assert not store.exists()
        assert not page.exists()
    assert (store / "a" / "b").read_bytes() == b"1"
    assert page.read_bytes() == b"2"
    assert names(tmp_path) == ["out", "page.html"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_interrupted_output_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    store, page = tmp_path / "out", tmp_path / "page.html"
    with pytest.raises(error), staged(stores=[store], files=[page]) as hidden:
        hidden[store].mkdir()
        write_file(hidden[store] / "a", b"1")
        write_file(hidden[page], b"2")
        raise error
    assert names(tmp_path) == []


def test_an_interrupted_replacement_leaves_the_old_outputs(tmp_path: Path) -> None:
    store, page = make_store(tmp_path / "out"), tmp_path / "page.html"
    page.write_bytes(b"old")
    with (
        pytest.raises(KeyboardInterrupt),
        staged(stores=[store], files=[page], overwrite=True) as hidden,
    ):
        hidden[store].mkdir()
        write_file(hidden[store] / "data", b"new")
        raise KeyboardInterrupt
    assert (store / "data").read_bytes() == page.read_bytes() == b"old"
    assert names(tmp_path) == ["out", "page.html"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_rename_that_fails_takes_the_others_back(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The outputs were once renamed one by one, and the first ones stayed when a later one failed.
    store, page = make_store(tmp_path / "out"), tmp_path / "page.html"
    page.write_bytes(b"old")
    link = Path.hardlink_to

    def failing_link(self: Path, target: Path) -> None:
        if self == page:
            raise OSError(errno.EIO, "Input/output error")
        link(self, target)

    def failing(one: Path, other: Path, flags: int) -> bool:
        if other == page and swaps:
            raise OSError(errno.EIO, "Input/output error")
        return swaps and rename_flagged(one, other, flags)

    monkeypatch.setattr(Path, "hardlink_to", failing_link)
    monkeypatch.setattr("sfxreduce.io.writers.publish.rename_flagged", failing)
    with (
        pytest.raises(OutputError, match="cannot be written"),
        staged(stores=[store], files=[page], overwrite=True) as hidden,
    ):
        hidden[store].mkdir()
        write_file(hidden[store] / "data", b"new")
        write_file(hidden[page], b"new")
    assert (store / "data").read_bytes() == page.read_bytes() == b"old"
    assert names(tmp_path) == ["out", "page.html"]


@pytest.mark.parametrize("swaps", [True, False])
def test_an_interrupt_while_outputs_are_renamed_waits(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between two renames the old output was gone and the new one not there.
    store = make_store(tmp_path / "out")

    def interrupted(one: Path, other: Path, flags: int) -> bool:
        signal.raise_signal(signal.SIGINT)  # to this thread: another one may take its time
        return swaps and rename_flagged(one, other, flags)

    monkeypatch.setattr("sfxreduce.io.writers.publish.rename_flagged", interrupted)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a job of a shell
    with pytest.raises(KeyboardInterrupt), staged(stores=[store], overwrite=True) as hidden:
        hidden[store].mkdir()
        write_file(hidden[store] / "data", b"new")
    assert (store / "data").read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputExists, match="already exists"):
        with staged(stores=[tmp_path / "out"]) as hidden:
            make_store(hidden[tmp_path / "out"], b"ours")
            make_store(tmp_path / "out", b"theirs")
    assert (tmp_path / "out" / "data").read_bytes() == b"theirs"


@pytest.mark.parametrize("flags_known", [True, False])
@pytest.mark.parametrize("is_store", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_what_takes_the_name_at_the_last_moment_is_not_replaced(
    flags_known: bool,
    is_store: bool,
    overwrite: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Between the last look at the name and the rename another program published under it.
    out = tmp_path / "out"

    def beaten(one: Path, other: Path, flags: int) -> bool:
        if other == out and not out.exists():
            make_store(out, b"theirs") if is_store else out.write_bytes(b"theirs")
        return flags_known and rename_flagged(one, other, flags)

    monkeypatch.setattr("sfxreduce.io.writers.publish.rename_flagged", beaten)
    asked = {"stores": [out]} if is_store else {"files": [out]}
    with pytest.raises(OutputExists, match="already exists"):
        with staged(**asked, overwrite=overwrite) as hidden:  # type: ignore[arg-type]
            make_store(hidden[out], b"ours") if is_store else hidden[out].write_bytes(b"ours")
    assert (out / "data" if is_store else out).read_bytes() == b"theirs"
    assert names(tmp_path) == ["out"]


def test_a_long_name_is_no_trouble(tmp_path: Path) -> None:
    out = tmp_path / ("n" * 250)
    with staged(files=[out]) as hidden:
        write_file(hidden[out], b"1")
    assert out.read_bytes() == b"1"


def test_outputs_never_overlap_inputs_or_each_other(tmp_path: Path) -> None:
    run = tmp_path / "run.zarr"
    run.mkdir()
    for bad in (run, run / "inside.zarr", tmp_path, tmp_path / "x" / ".." / "run.zarr"):
        with pytest.raises(UsageError, match="overlaps the input"):
            check_outputs(stores=[bad], inputs=[run], overwrite=True)
    with pytest.raises(UsageError, match="overlaps the output"):
        check_outputs(stores=[tmp_path / "o"], files=[tmp_path / "o"], overwrite=True)
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(UsageError, match="overlaps the input"):
        check_outputs(stores=[tmp_path / "link"], inputs=[run], overwrite=True)
    for nameless in (Path(), Path("/"), tmp_path / ".."):
        with pytest.raises(UsageError, match="expected the name of an output"):
            check_outputs(files=[nameless])


def test_only_an_older_output_of_the_same_kind_is_replaced(tmp_path: Path) -> None:
    # Any folder under the output's name was once removed when told to overwrite.
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("all of it")
    store, page = make_store(tmp_path / "out"), tmp_path / "page.html"
    page.write_text("old")
    with pytest.raises(OutputExists, match="is not a run store"):
        check_outputs(stores=[thesis], overwrite=True)
    with pytest.raises(OutputExists, match="is not a run store"):
        check_outputs(stores=[page], overwrite=True)
    for folder in (thesis, store):
        with pytest.raises(OutputExists, match="is not a plain file"):
            check_outputs(files=[folder], overwrite=True)
    check_outputs(stores=[store], files=[page], overwrite=True)
    with pytest.raises(OutputExists, match="pass --overwrite"):
        check_outputs(stores=[store])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        check_outputs(stores=[tmp_path / "a" / "b"])


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no space left on the disk \(\d+ bytes free\)") as told:
        with output_errors(tmp_path / "out"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert "\n" not in str(told.value)


def test_a_file_that_reads_back_differently_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert publish_file(PublishJob(store=str(tmp_path), path="f")).size == 3
    with pytest.raises(VerificationError, match="differs from what was written"):
        publish_file(PublishJob(store=str(tmp_path), path="f", digest="0" * 32))


def test_a_file_may_be_written_twice_and_leftovers_are_swept(tmp_path: Path) -> None:
    for _ in range(2):
        write_file(tmp_path / "c" / "0", b"same", below=tmp_path)
    (tmp_path / "c" / ".0.abc.partial").write_bytes(b"half")
    sweep_partial(tmp_path)
    assert names(tmp_path / "c") == ["0"]
    assert (tmp_path / "c" / "0").read_bytes() == b"same"


def test_a_task_that_is_left_over_does_not_bring_back_a_removed_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "gone" / "c" / "0", b"late", below=tmp_path / "gone")
    assert names(tmp_path) == []
