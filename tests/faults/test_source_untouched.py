"""Nothing that reads a run ever writes to it: call by call, and on a disk that forbids it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from planted import planted_run

from sfxreduce.cluster import SerialPool
from sfxreduce.ingest import store_run

WRITES = (
    "openat,open,creat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,rmdir,truncate,"
    "ftruncate,chmod,fchmod,fchmodat,chown,fchown,fchownat,link,linkat,symlink,symlinkat,mknodat,"
    "utimensat,setxattr,fsetxattr,removexattr,fallocate"
)
PEAKS = ("--scorer", "peaks", "--min-peaks", "1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "data" / "run.zarr"
    path.parent.mkdir()
    store_run(planted_run(n_events=40), out=path, pool=SerialPool())
    return path


def commands(run: Path, out: Path) -> list[list[str]]:
    """Everything that reads a run, one after the other."""
    hits = out / "hits.zarr"
    return [
        ["filter", "--in", str(run), "--out", str(hits), "--cxi", str(out / "hits.cxi"),
         "--report", str(out / "report.html"), "--audit-share", "0.5", "--workers", "1", *PEAKS],
        ["verify", "--in", str(hits), "--against", str(run), "--serial"],
        ["ingest", "--in", str(run), "--out", str(out / "copy.zarr"), "--serial"],
        ["info", str(run)],
    ]  # fmt: skip


def writes_below(trace: str, root: Path) -> list[str]:
    """Lines of a trace in which something below a folder is opened for writing or changed."""
    found = []
    for line in trace.splitlines():
        call = re.match(r"(?:\[pid +\d+\] |\d+ +)?(\w+)\(", line)
        if not call or str(root) not in line:
            continue
        opens = call[1] in ("openat", "open")
        if not opens or re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND)", line):
            found.append(line)
    return found


def test_a_write_would_be_seen(tmp_path: Path) -> None:
    traced = traced_calls([sys.executable, "-c", f"open({str(tmp_path / 'x')!r}, 'w')"], tmp_path)
    assert writes_below(traced, tmp_path / "x")


def traced_calls(command: list[str], folder: Path) -> str:
    """What a command and all its children asked of the system, as far as it could write."""
    if not shutil.which("strace"):
        pytest.skip("no program strace")
    trace = folder / "trace"
    done = subprocess.run(
        ["strace", "-f", "-y", "-o", str(trace), "-e", f"trace={WRITES}", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in done.stderr:
        pytest.skip("this machine does not let tests trace a process")
    assert done.returncode == 0, done.stderr
    return trace.read_text(errors="replace")


@pytest.mark.timeout(600)
def test_no_command_asks_to_write_to_its_source(run: Path, tmp_path: Path) -> None:
    for command in commands(run, tmp_path):
        trace = traced_calls([sys.executable, "-m", "sfxreduce_cli", *command], tmp_path)
        assert writes_below(trace, run) == []


@pytest.fixture
def read_only(run: Path, tmp_path: Path) -> Iterator[Path]:
    """The run on a disk that takes no writes."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a disk needs root")
    for options in (["--bind", str(run.parent)], ["-o", "remount,bind,ro"]):
        done = subprocess.run(["mount", *options, str(mounted)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("this machine does not let tests mount a folder")
    try:
        yield mounted / run.name
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_run_on_a_read_only_disk_is_filtered_and_verified(
    read_only: Path, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="Read-only"):
        (read_only / "x").touch()
    for command in commands(read_only, tmp_path)[:2]:
        subprocess.run([sys.executable, "-m", "sfxreduce_cli", *command], check=True)
