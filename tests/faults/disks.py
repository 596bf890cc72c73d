"""Disks that fill up and lose their power, where this machine lets us make some."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.trials import FAILED, Bench, Child, Outcome, fresh, go_on, look

SHUTDOWN = 0x8004587D
"""The file system stops at once. With 2 nothing more reaches the disk, with 1 only its own journal
does, so that files are there and empty: what a power cut leaves of ext4."""

COMMIT_SECONDS = 300


class NoDiskError(Exception):
    """Why no disk can be made here."""


def _run(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoDiskError(f"{command[0]}: {done.stderr.strip() or done.returncode}")


def _need(*programs: str) -> None:
    if os.geteuid():
        raise NoDiskError("mounting a disk needs root")
    missing = [name for name in programs if not shutil.which(name)]
    if missing:
        raise NoDiskError(f"no program {missing[0]}")


@contextmanager
def powered_disk(folder: Path, *, megabytes: int = 64) -> Iterator[Path]:
    """A small ext4 disk that its power can be taken from."""
    _need("mkfs.ext4", "mount", "umount")
    folder.mkdir(parents=True, exist_ok=True)
    image, mounted = folder / "disk.img", folder / "disk"
    mounted.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    _run("mkfs.ext4", "-q", "-F", image)
    _mount(image, mounted)
    try:
        yield mounted
    finally:
        _run("umount", mounted)


def _mount(image: Path, mounted: Path) -> None:
    _run("mount", "-o", f"loop,commit={COMMIT_SECONDS}", image, mounted)


def cut_power(mounted: Path, how: int, child: Child) -> None:
    """Take the power away, end the program that was at work, and start the disk again."""
    descriptor = os.open(mounted, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", how))
    finally:
        os.close(descriptor)
    child.kill()
    child.wait()
    _run("umount", mounted)
    _mount(mounted.with_name("disk.img"), mounted)


def power_cuts(bench: Bench, folder: Path, n_trials: int, rng: random.Random) -> Outcome:
    """The power goes at a random time; what was acknowledged before has to be there after."""
    outcome = Outcome(name="power cut at a random time (ext4)")
    seconds = bench.seconds
    for _ in range(n_trials):
        outcome.trials += 1
        with powered_disk(folder) as mounted:
            out = fresh(mounted / "trial")
            os.sync()
            started = time.monotonic()
            child = bench.begin(out)
            time.sleep(rng.uniform(0, seconds * 1.1))
            cut_power(mounted, rng.choice((1, 2)), child)
            # Waiting for a disk takes its time: cuts are to fall into all of it.
            seconds = max(seconds, min(time.monotonic() - started, 3 * bench.seconds))
            acknowledged = look(bench, out, child, outcome)
            out.parent.mkdir(exist_ok=True)
            go_on(bench, out, acknowledged, outcome)
    return outcome


def full_disks(bench: Bench, folder: Path, n_trials: int, rng: random.Random) -> Outcome:
    """The disk fills up at some point; with more room the same command completes."""
    _need("mount", "umount")
    outcome = Outcome(name="disk full")
    need = sum(map(len, bench.reference.values()))
    mounted = folder / "small"
    mounted.mkdir(parents=True, exist_ok=True)
    for _ in range(n_trials):
        outcome.trials += 1
        size = rng.randrange(16_384, int(need * 1.2))
        _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mounted)
        try:
            out = mounted / "hits.zarr"
            child = bench.begin(out)
            status = child.wait()
            outcome.expect(status in (0, FAILED), f"{size} bytes: ended with {status}")
            outcome.expect(status == 0 or not out.exists(), f"{size} bytes: failed, yet published")
            acknowledged = look(bench, out, child, outcome)
            _run("mount", "-o", f"remount,size={4 * need}", mounted)
            go_on(bench, out, acknowledged, outcome)
        finally:
            _run("umount", mounted)
    return outcome
