"""A run that somebody is still writing is not taken for whole."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import run as command
from planted import planted_run

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import UnfinishedRun
from sfxreduce.io.chunks.layout import choose_layout
from sfxreduce.io.files.being_written import being_written
from sfxreduce.io.readers.zarr.run import read_manifest
from sfxreduce.pipeline.ingest import ingest_run

N_EVENTS = 64


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run store of four shards."""
    path = tmp_path_factory.mktemp("whole") / "run.zarr"
    planted = planted_run(n_events=N_EVENTS)
    with pytest.MonkeyPatch.context() as patched:
        small = partial(choose_layout, target_shard_bytes=16 * planted.source.n_bytes // N_EVENTS)
        patched.setattr("sfxreduce.pipeline.ingest.choose_layout", small)
        ingest_run(planted, out=path, pool=SerialPool())
    return path


WRITER = """
import sys, h5py, numpy as np
path, mode = sys.argv[1:]
with h5py.File(path, "w", libver=None if mode == "plain" else "latest") as file:
    shape = (96, 64, 64)
    frames = file.create_dataset("entry/data/data", shape, "i2", chunks=(1, 64, 64))
    if mode == "swmr":
        file.swmr_mode = True
    frames[:64] = np.random.default_rng(1).poisson(20, (64, 64, 64))
    file.flush()
    print("written", flush=True)
    sys.stdin.read()
"""


@contextmanager
def writing(path: Path, mode: str) -> Iterator[None]:
    """A program that has written 64 of 96 frames, and goes on."""
    program = [sys.executable, "-c", WRITER, str(path), mode]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == b"written\n"
        yield
        writer.stdin.close()


def refused(run: Path, out: Path, *more: object) -> tuple[list[str], str]:
    """Codes and line of a filter run that is refused; nothing is left of it."""
    words = ("filter", "--in", run, "--out", out, "--scorer", "peaks", "--serial", *more)
    done = command(*words)
    assert done.exit_code == 3, done.output
    assert isinstance(done.exception, UnfinishedRun)
    assert not list(out.parent.glob("*hits*"))
    line = str(done.exception)
    assert line.startswith(f"{run}: looks unfinished (")
    assert line.endswith("); wait, or 'filter --follow' it; --incomplete takes it as it is")
    assert done.exception.to_json()["codes"] == done.exception.codes
    return done.exception.codes, line


def taken_as_it_is(run: Path, out: Path) -> list[str]:
    """Codes that an output has in its report, on its page and in its manifest."""
    page = out.with_name("hits.html")
    words = ("filter", "--in", run, "--out", out, "--scorer", "peaks", "--serial", "--incomplete")
    done = command(*words, "--report", page, "--overwrite", "--json")
    assert done.exit_code == 0, done.output
    signs = json.loads(done.stdout)["incomplete"]
    assert list(read_manifest(out).incomplete) == signs
    html = page.read_text()
    assert "of an incomplete run" in html
    assert all(sign in html for sign in signs)
    return [sign.partition(":")[0] for sign in signs]


@pytest.mark.parametrize(
    ("left", "words"), [(2, "shards 2 to 3 of 4 are missing"), (3, "shard 3 of 4 is missing")]
)
def test_a_store_without_its_last_shards_is_refused(
    left: int, words: str, whole: Path, tmp_path: Path
) -> None:
    run, out = tmp_path / "run.zarr", tmp_path / "hits.zarr"
    shutil.copytree(whole, run)
    shards = sorted(path for path in (run / "frames" / "c").rglob("*") if path.is_file())
    assert len(shards) == 4
    for shard in shards[left:]:
        shard.unlink()
    codes, line = refused(run, out)
    assert codes == ["TAIL_MISSING"]
    assert words in line
    assert taken_as_it_is(run, out) == ["TAIL_MISSING"]


def test_a_hole_in_the_middle_is_damage_and_nothing_else(whole: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run.zarr", tmp_path / "hits.zarr"
    shutil.copytree(whole, run)
    shards = sorted(path for path in (run / "frames" / "c").rglob("*") if path.is_file())
    shards[1].unlink()
    words = ("filter", "--in", run, "--out", out, "--scorer", "peaks", "--serial", "--json")
    done = command(*words)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["incomplete"] == []


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("plain", ["TAIL_MISSING", "WRITER_LOCK"]), ("swmr", ["TAIL_MISSING", "SWMR"])],
)
def test_a_file_that_is_being_written_is_refused(
    mode: str, expected: list[str], tmp_path: Path
) -> None:
    run, out = tmp_path / "run.h5", tmp_path / "hits.zarr"
    with writing(run, mode):
        codes, line = refused(run, out)
        assert codes == expected
        assert "frames 64 to 95 of 96 were never written" in line
        assert "open for writing" in line
        assert taken_as_it_is(run, out) == expected
    # Its writer has gone, and left it as it was.
    shutil.rmtree(out)
    out.with_name("hits.html").unlink()
    assert refused(run, out)[0] == ["TAIL_MISSING"]


def test_a_file_that_nobody_else_may_open_is_refused_by_all_who_try(tmp_path: Path) -> None:
    run, out = tmp_path / "run.h5", tmp_path / "hits.zarr"
    with writing(run, "latest"):
        assert refused(run, out)[0] == ["WRITER_LOCK"]


def test_what_was_changed_just_now_has_to_settle(whole: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run.h5", tmp_path / "hits.zarr"
    with h5py.File(run, "w") as file:
        file["entry/data/data"] = np.random.default_rng(1).poisson(20, (9, 64, 64)).astype("i2")
    for path in (run, whole):
        codes, line = refused(path, out, "--settle", 3600)
        assert codes == ["JUST_CHANGED"]
        assert "s ago" in line
        ingested = command("ingest", "--in", path, "--out", out, "--settle", 3600, "--serial")
        assert ingested.exit_code == 3
    words = ("filter", "--in", run, "--out", out, "--scorer", "peaks", "--serial", "--json")
    done = command(*words)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["incomplete"] == []
    assert read_manifest(out).incomplete == ()


def test_looking_for_signs_takes_no_lock_and_survives_odd_files(tmp_path: Path) -> None:
    path = tmp_path / "short.h5"
    path.write_bytes(b"\x89HDF")
    assert being_written([path, tmp_path], settle_seconds=0) == []
    with h5py.File(tmp_path / "a.h5", "w") as file:
        assert being_written([tmp_path / "a.h5"], settle_seconds=0) == [
            "WRITER_LOCK: open for writing"
        ]
        file["x"] = 1
    assert being_written([tmp_path / "a.h5"], settle_seconds=0) == []


def test_the_error_goes_from_one_process_to_another() -> None:
    error = UnfinishedRun("run.h5", ["SWMR: open for writing"])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.codes) == (str(error), ["SWMR"])


def test_a_lock_of_no_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks, file = tmp_path / "locks", tmp_path / "run.h5"
    file.write_bytes(b"frames")
    facts = file.stat()
    device = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    monkeypatch.setattr("sfxreduce.io.files.being_written.LOCKS", locks)
    nothing = "1: POSIX  ADVISORY  WRITE 1 <none>:0 0 EOF\n"
    locks.write_text(nothing)
    assert being_written([file], settle_seconds=0) == []
    locks.write_text(f"{nothing}2: FLOCK  ADVISORY  WRITE 9 {device} 0 EOF\n")
    assert being_written([file], settle_seconds=0) == ["WRITER_LOCK: open for writing"]
