"""Nothing that reads a run ever changes it: call by call, and on a disk that forbids it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from archived import snapshot, write_keys
from planted import planted_run

from faults.watch import events_below, lines_below, watched
from sfxreduce.cluster import SerialPool
from sfxreduce.pipeline.ingest import ingest_run

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
    ingest_run(planted_run(n_events=40), out=path, pool=SerialPool())
    return path


def commands(run: Path, out: Path) -> list[list[str]]:
    """Everything that reads a run, one after the other."""
    hits = out / "hits.zarr"
    return [
        ["filter", "--in", str(run), "--out", str(hits), "--cxi", str(out / "hits.cxi"),
         "--cxi-without-geometry",
         "--report", str(out / "report.html"), "--audit-share", "0.5", "--workers", "1", *PEAKS],
        ["verify", "--in", str(hits), "--against", str(run), "--serial"],
        ["ingest", "--in", str(run), "--out", str(out / "copy.zarr"), "--serial"],
        ["convert", "--in", str(run), "--out", str(out / "copy.cxi"), "--serial"],
        ["info", str(run)],
    ]  # fmt: skip


WRITES_OF_PYTHON = {
    "open": "open({0}/'x', 'w')",
    "append": "open({0}/'a', 'a')",
    "by flags": "os.open({0}/'a', os.O_RDWR)",
    "remove": "os.remove({0}/'a')",
    "unlink": "({0}/'a').unlink()",
    "rename out": "({0}/'a').rename({0}.parent/'b')",
    "rename in": "({0}.parent/'other').replace({0}/'b')",
    "rmdir": "({0}/'empty').rmdir()",
    "mkdir": "({0}/'new').mkdir()",
    "rmtree": "shutil.rmtree({0})",
    "move": "shutil.move({0}, {0}.parent/'moved')",
    "copy in": "shutil.copyfile({0}.parent/'other', {0}/'a')",
    "truncate": "os.truncate({0}/'a', 0)",
    "chmod": "({0}/'a').chmod(0o600)",
    "utime": "os.utime({0}/'a')",
    "link": "os.link({0}/'a', {0}.parent/'linked')",
    "symlink": "os.symlink('a', {0}/'linked')",
    "by a descriptor": "os.chmod(os.open({0}/'a', os.O_RDONLY), 0o600)",
    "in an open folder": "os.remove('a', dir_fd=os.open({0}, os.O_RDONLY))",
    "from within": "os.chdir({0}), os.remove('a')",
    "by a link": "os.symlink({0}, {0}.parent/'link'), os.remove({0}.parent/'link'/'a')",
    "through a link": "os.symlink({0}/'a', {0}.parent/'link'), open({0}.parent/'link', 'r+')",
    "in a child": "subprocess.run([sys.executable, '-c', 'import os, sys; os.remove(sys.argv[1])', "
    "{0}/'a'])",
}
"""Ways to change a folder; each has to be seen, or that nothing was seen would say nothing."""


@pytest.fixture
def some_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "run"
    (folder / "empty").mkdir(parents=True)
    for name in ("run/a", "other"):
        (tmp_path / "data" / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize("how", WRITES_OF_PYTHON)
def test_a_change_would_be_seen(some_folder: Path, tmp_path: Path, how: str) -> None:
    imports = "import os, pathlib, shutil, subprocess, sys"
    action = WRITES_OF_PYTHON[how].format(f"pathlib.Path({str(some_folder)!r})")
    events = watched(["-c", f"{imports}; {action}"], folder=tmp_path)
    assert events_below(events, some_folder)
    # A neighbour whose name begins alike is another folder.
    assert not events_below(events, some_folder.with_name("ru"))


def test_reading_is_no_change(some_folder: Path, tmp_path: Path) -> None:
    action = f"import shutil; shutil.copytree({str(some_folder)!r}, {str(tmp_path / 'copy')!r})"
    events = watched(["-c", action], folder=tmp_path)
    assert events
    assert events_below(events, some_folder) == []


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


def test_strace_sees_a_write(tmp_path: Path) -> None:
    traced = traced_calls([sys.executable, "-c", f"open({str(tmp_path / 'x')!r}, 'w')"], tmp_path)
    assert lines_below(traced, tmp_path / "x")
    assert lines_below(traced, tmp_path / "y") == []


@pytest.mark.timeout(600)
def test_no_command_changes_its_source(run: Path, tmp_path: Path) -> None:
    before = snapshot(run)
    for command in commands(run, tmp_path):
        events = watched(["-m", "sfxreduce_cli", *command], folder=tmp_path)
        assert events_below(events, run) == []
        assert snapshot(run) == before


@pytest.mark.timeout(600)
def test_no_command_asks_the_system_to_write_to_its_source(run: Path, tmp_path: Path) -> None:
    for command in commands(run, tmp_path):
        trace = traced_calls([sys.executable, "-m", "sfxreduce_cli", *command], tmp_path)
        assert lines_below(trace, run) == []


POLICY = """
name = "at once"
[release]
disposition = "tape-raw"
grace_days = 0
min_retention_days = 0
[approvals]
two_person = false
"""


def way_to_the_ticket(run: Path, out: Path) -> Iterator[list[str]]:
    """A run's whole way: each command, once the one before it was run."""
    hits, evidence = out / "hits.zarr", run.with_name(f"{run.name}.evidence")
    for name in ("tape_a", "tape_b"):
        (out / name).mkdir()
    (out / "policy.toml").write_text(POLICY)
    to = [f"--to={pool}=posix:{out}/tape_{pool}" for pool in ("a", "b")]
    here = ["--serial", "--as", "ann"]
    yield ["filter", "--in", str(run), "--out", str(hits), "--serial", *PEAKS]
    yield ["verify", "--in", str(hits), "--against", str(run), "--serial"]
    yield [
        "archive",
        "plan",
        str(run),
        "--hits",
        str(hits),
        "--policy",
        str(out / "policy.toml"),
        *here,
    ]
    plan_id = hashlib.sha256((evidence / "plan.json").read_bytes()).hexdigest()
    yield ["archive", "approve", str(run), "--as", "bob"]
    yield ["archive", "execute", str(run), *to, "--execute", plan_id]
    yield ["archive", "recall-test", str(run), *to]
    key, public = out / "key.pem", out / "public.pem"
    write_keys(key, public)
    signed = ["--sign-key", str(key), "--policy", str(out / "policy.toml"), *to]
    yield ["archive", "release", str(run), "--execute", plan_id, *signed, *here]
    ticket = evidence / "release-ticket.json"
    assert json.loads(ticket.read_text())["files"]
    yield ["archive", "check-ticket", str(ticket), "--key", str(public)]
    yield [
        "archive",
        "restore",
        str(run),
        "--events",
        "@1,@2",
        "--out",
        str(out / "ev.zarr"),
        *here,
    ]
    yield ["archive", "restore", str(run), "--all", "--out", str(out / "back.zarr"), *to]
    yield ["archive", "nightly", "--root", str(run.parent)]
    yield ["hold", "add", str(run), "--reason", "thesis", "--authority", "pi"]
    yield ["archive", "restore", str(run), "--cancel"]


@pytest.fixture
def ours(run: Path, tmp_path: Path) -> Path:
    """A run of our own, named through a link, so that its real path has to be known too."""
    shutil.copytree(run, tmp_path / "data" / run.name)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    return tmp_path / "link" / run.name


@pytest.mark.timeout(600)
def test_the_whole_way_to_a_ticket_and_back_changes_nothing_of_the_run(
    ours: Path, tmp_path: Path
) -> None:
    before = snapshot(ours)
    n_events = 0
    for command in way_to_the_ticket(ours, tmp_path):
        events = watched(["-m", "sfxreduce_cli", *command], folder=tmp_path)
        assert events_below(events, ours) == [], command
        assert snapshot(ours) == before
        n_events += len(events)
    assert n_events > 100
    assert {name: data for name, (data, *_) in snapshot(tmp_path / "back.zarr").items()} == {
        name: data for name, (data, *_) in before.items()
    }


@pytest.mark.timeout(600)
def test_the_whole_way_to_a_ticket_asks_the_system_for_no_change_of_the_run(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "data" / run.name)
    for command in way_to_the_ticket(tmp_path / "data" / run.name, tmp_path):
        trace = traced_calls([sys.executable, "-m", "sfxreduce_cli", *command], tmp_path)
        assert lines_below(trace, tmp_path / "data" / run.name) == [], command


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
