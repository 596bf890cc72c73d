"""Sources whose chunk is a frame: what decoding costs, and that rounds decode nothing twice.

h5py, the candidates and the scorer take turns on the same frames. Where rows of a chunk can be
decoded alone, the first nine tiles of a blank of a 16 million pixel detector are compared with all
of it.

    python benchmarks/sources.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from material import simulated_store
from numpy.typing import NDArray
from rows import Row, cpu_ms_by_turns

import sfxreduce
from sfxreduce.pipeline.stages.batch import score_events
from sfxreduce.pipeline.stages.conditions import with_conditions
from sfxreduce.run.run import Run, read_into
from sfxreduce.scorers.cnn.folder import read_model

__all__ = ["measure"]

DATA = "/entry_1/data_1/data"
N_EVENTS = 16

EIGER_SHAPE = (4362, 4148)
PACKINGS: Mapping[str, Mapping[str, Any]] = {
    "bitshuffle-lz4": hdf5plugin.Bitshuffle(cname="lz4"),
    "gzip": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
}


def measure(folder: Path, *, repeats: int = 7) -> list[Row]:
    """Time reading and scoring of frames that are chunks.

    Parameters
    ----------
    folder : Path
        For runs; some hundred megabytes.
    repeats : int
    """
    run = simulated_store(folder / "run.zarr", n_events=64)
    frames = run.source.read(range(N_EVENTS)).pixels
    rows: list[Row] = []
    for name, packing in PACKINGS.items():
        path = folder / f"{name}.cxi"
        _write(path, frames, packing)
        rows += _scored(name, path, repeats=repeats)
    return rows + _of_a_large_blank(folder / "eiger.cxi", repeats=repeats)


def _write(path: Path, frames: NDArray[np.generic], packing: Mapping[str, Any]) -> None:
    """Write a run with a chunk for each frame."""
    with h5py.File(path, "w") as file:
        file.create_dataset(DATA, data=frames, chunks=(1, *frames.shape[1:]), **packing)


def _by_h5py(path: Path) -> Callable[[], None]:
    """Read every frame into the same memory."""

    def read() -> None:
        with h5py.File(path) as file:
            data = file[DATA]
            frame = np.empty((1, *data.shape[1:]), data.dtype)
            for event in range(data.shape[0]):
                data.read_direct(frame, np.s_[event : event + 1])

    return read


def _scored(name: str, path: Path, *, repeats: int) -> list[Row]:
    """Score frames in one look and in rounds, beside h5py and the candidates alone."""
    scorer = sfxreduce.CnnScorer(sfxreduce.default_model())
    with sfxreduce.open_pool(serial=True) as pool:
        run: Run = with_conditions(sfxreduce.open_run(path), scorer, pool=pool)
    source, events = run.source, range(N_EVENTS)
    window = scorer.window(run.detector)
    good, pair = window.good(run.detector), source.read(range(2), window).pixels
    search, gain = read_model(scorer.model).config.candidates, run.detector.adu_per_photon

    def candidates() -> None:
        for _ in range(0, N_EVENTS, len(pair)):
            search(pair, good, adu_per_photon=gain)

    def window_alone() -> None:
        for start in range(0, N_EVENTS, len(pair)):
            pair[...] = 0
            read_into(source, range(start, start + len(pair)), window, pair)

    spent = cpu_ms_by_turns(
        {
            "h5py": _by_h5py(path),
            "candidates": candidates,
            "window": window_alone,
            "one look": lambda: score_events(source, scorer, events),
            "rounds": lambda: score_events(source, scorer, events, first=True),
        },
        repeats=repeats,
    )
    cost = {action: taken / N_EVENTS for action, taken in spent.items()}
    section, parts = "a chunk is a frame, 1750 x 1750 photons", cost["h5py"] + cost["candidates"]
    limits = {"bitshuffle-lz4": "at most 1.3"}
    return [
        Row(section=section, name=f"{name}: by h5py", cpu_ms=cost["h5py"]),
        Row(section=section, name=f"{name}: the candidates alone", cpu_ms=cost["candidates"]),
        Row(
            section=section,
            name=f"{name}: window of 25 tiles",
            cpu_ms=cost["window"],
            against="h5py",
            ratio=cost["window"] / cost["h5py"],
        ),
        Row(
            section=section,
            name=f"{name}: scored",
            cpu_ms=cost["one look"],
            against="h5py and candidates",
            ratio=cost["one look"] / parts,
            wanted=limits.get(name, ""),
        ),
        Row(
            section=section,
            name=f"{name}: scored in rounds",
            cpu_ms=cost["rounds"],
            against="one look",
            ratio=cost["rounds"] / cost["one look"],
            wanted="at most 1.05",
        ),
    ]


def _of_a_large_blank(path: Path, *, repeats: int) -> list[Row]:
    """Read the first nine tiles of a blank of 16 million pixels, and all of it."""
    y, x = np.ogrid[: EIGER_SHAPE[0], : EIGER_SHAPE[1]]
    radius = np.hypot(y - EIGER_SHAPE[0] / 2, x - EIGER_SHAPE[1] / 2)
    # Photons a pixel, from two at the beam to a twentieth far out.
    blank = np.random.default_rng(0).poisson(0.05 + 2 * np.exp(-((radius / 900) ** 2)))
    frames = np.repeat(blank.astype(np.uint32)[np.newaxis], 2, axis=0)
    _write(path, frames, PACKINGS["bitshuffle-lz4"])
    run = sfxreduce.open_run(path)
    scorer = sfxreduce.CnnScorer(sfxreduce.default_model())
    window = scorer.window(run.detector)
    first = window.part(slice(9))
    nine = np.zeros((1, *first.shape), np.uint32)
    frame = np.zeros((1, *EIGER_SHAPE), np.uint32)
    spent = cpu_ms_by_turns(
        {
            "h5py": _by_h5py(path),
            "frame": lambda: [read_into(run.source, [event], None, frame) for event in range(2)],
            "nine": lambda: [read_into(run.source, [event], first, nine) for event in range(2)],
        },
        repeats=repeats,
    )
    cost = {action: taken / len(frames) for action, taken in spent.items()}
    section = "a chunk is a frame, a blank of 4362 x 4148 pixels, bitshuffle-lz4"
    return [
        Row(section=section, name="by h5py", cpu_ms=cost["h5py"]),
        Row(section=section, name="whole frame", cpu_ms=cost["frame"]),
        Row(
            section=section,
            name="whole frame, of the first nine tiles",
            cpu_ms=cost["frame"],
            against="rows of nine tiles alone",
            ratio=cost["frame"] / cost["nine"],
            wanted="at least 2",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--work", type=Path, help="for runs; a temporary folder else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for row in measure(folder, repeats=options.repeats):
            print(row.line)


if __name__ == "__main__":
    main()
