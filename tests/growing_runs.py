"""Programs that write runs bit by bit, and a follower that is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from sfxreduce.io.chunks.layout import choose_layout
from sfxreduce.io.files.durable import hidden_folders
from sfxreduce.io.files.journal import read_journal
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import open_table
from sfxreduce.io.writers.live import live_path
from sfxreduce.io.writers.publish import JOURNAL
from sfxreduce.pipeline.ingest import ingest_run

SIDE = 350
DATA = "entry/data/data"

WRITER = '''
import os, shutil, sys, time
from pathlib import Path

import h5py, numpy as np

kind, target, frames, rate, each = sys.argv[1:]
target, rate, each = Path(target), float(rate), int(each)
DATA = "entry/data/data"
begun, written = time.monotonic(), 0


def wait(n):
    """Keep to the rate."""
    global written
    written += n
    time.sleep(max(0.0, begun + written / rate - time.monotonic()))


if kind == "store":
    whole = Path(frames)
    shards = sorted(p for p in (whole / "frames" / "c").rglob("*") if p.is_file())
    for path in sorted(p for p in whole.rglob("*") if p.is_file() and p not in shards):
        place = target / path.relative_to(whole)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    for shard in shards:
        place = target / shard.relative_to(whole)
        place.parent.mkdir(parents=True, exist_ok=True)
        data = shard.read_bytes()
        with place.open("wb") as file:
            file.write(data[: len(data) // 2])  # a torn tail for a while
            file.flush()
            wait(each / 2)
            file.write(data[len(data) // 2 :])
        wait(each / 2)
elif kind == "swmr":
    frames = np.load(frames, mmap_mode="r")
    with h5py.File(target, "w", libver="latest") as file:
        shape = (0, *frames.shape[1:])
        most = (None, *frames.shape[1:])
        data = file.create_dataset(DATA, shape, frames.dtype, maxshape=most, chunks=(1, *shape[1:]))
        file.swmr_mode = True
        for number, frame in enumerate(frames):
            data.resize(number + 1, axis=0)
            data[number] = frame
            data.flush()
            wait(1)
else:
    frames = np.load(frames, mmap_mode="r")
    for number, start in enumerate(range(0, len(frames), each)):
        with h5py.File(target / f"{kind}-{number}.h5", "w", libver="latest") as file:
            some = frames[start : start + each]
            data = file.create_dataset(DATA, some.shape, some.dtype, chunks=(1, *some.shape[1:]))
            for place, frame in enumerate(some):
                data[place] = frame
                wait(1)
'''


def frames_with_peaks(n_events: int, *, seed: int = 1) -> np.ndarray:
    """Background of 20 ADU; every third event has 14 spots."""
    rng = np.random.default_rng(seed)
    frames = rng.poisson(20, (n_events, SIDE, SIDE)).astype(np.int16)
    for event in range(0, n_events, 3):
        for y, x in rng.integers(10, SIDE - 10, (14, 2)):
            frames[event, y : y + 2, x : x + 2] += 400
    return frames


def write_file(path: Path, frames: np.ndarray) -> None:
    """A file that is whole."""
    with h5py.File(path, "w") as file:
        file.create_dataset(DATA, data=frames, chunks=(1, *frames.shape[1:]))


def store_of(path: Path, frames: np.ndarray, *, each: int) -> Path:
    """A run store with a few events in each shard."""
    source = path.with_suffix(".h5")
    write_file(source, frames)
    with pytest.MonkeyPatch.context() as patched:
        small = partial(choose_layout, target_shard_bytes=each * frames[0].nbytes)
        patched.setattr("sfxreduce.pipeline.ingest.choose_layout", small)
        ingest_run(open_run(source), out=path)
    return path


@contextmanager
def writing(kind: str, target: Path, frames: Path, *, rate: float, each: int) -> Iterator[None]:
    """A program that writes a run until the block ends, and then to its end."""
    words = [sys.executable, "-c", WRITER, kind, str(target), str(frames), str(rate), str(each)]
    with subprocess.Popen(words) as writer:
        yield
        assert writer.wait(timeout=600) == 0


@dataclass
class Follower:
    """The command, as often as it is killed."""

    run: Path
    out: Path
    ends: tuple[object, ...]
    env: dict[str, str] = field(default_factory=dict)

    def start(self) -> subprocess.Popen[str]:
        words = ["filter", "--in", self.run, "--out", self.out, "--scorer", "peaks", "--serial"]
        words += ["--follow", *self.ends, "--json"]
        return subprocess.Popen(
            [sys.executable, "-m", "sfxreduce_cli", *map(str, words)],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def killed_after(self, seconds: float) -> bool:
        """Start it and kill it; whether it lived so long."""
        with self.start() as process:
            time.sleep(seconds)
            alive = process.poll() is None
            process.send_signal(signal.SIGKILL)
        return alive

    def ended(self) -> tuple[int, dict, str]:
        """Start it and let it end: exit status, what it printed as JSON, and the rest."""
        with self.start() as process:
            return end_of(process)

    def noted(self) -> Counter[tuple[str, int]]:
        """How often each event was followed, by the journal."""
        counts: Counter[tuple[str, int]] = Counter()
        for folder in hidden_folders(live_path(self.out)):
            for entry in read_journal(folder / JOURNAL):
                for name, start, stop in entry.body.get("batch", {}).get("events", ()):
                    counts.update((name, event) for event in range(start, stop))
        return counts

    def live(self) -> Counter[tuple[str, int]]:
        """How often each event is among the hits so far."""
        counts: Counter[tuple[str, int]] = Counter()
        for store in sorted(live_path(self.out).glob("batch-*")):
            table = open_table(store)
            files = map(str, table["source_file"].values)
            counts.update(zip(files, table["source_index"].values.tolist(), strict=True))
        return counts

    def wait_for(self, n_events: int, *, seconds: float = 120) -> None:
        """Wait until so many events have a live score."""
        until = time.monotonic() + seconds
        while sum(self.noted().values()) < n_events:
            assert time.monotonic() < until, f"{len(self.noted())} of {n_events} events followed"
            time.sleep(0.2)


def end_of(process: subprocess.Popen[str]) -> tuple[int, dict, str]:
    """Exit status of a command, what it printed as JSON, and the rest."""
    printed, said = process.communicate(timeout=600)
    return process.returncode, json.loads(printed) if printed else {}, said


def tree(path: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}
