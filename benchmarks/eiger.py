"""Blank frames of an Eiger2 16M as the detector writes them: reading and scoring, and the peers'.

Frames of 4362 x 4148 pixels, 16 bits, in a master and a data file, each frame one chunk packed by
bitshuffle and LZ4; the gaps between the modules are masked. They are rendered by
`photon_by_photon`. What the reader costs a scorer that looks at tiles is set against h5py, which
unpacks the frame. The published anchor is another machine's: see `ANCHOR`.

    python benchmarks/eiger.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
from material import FilterScoring
from numpy.typing import NDArray
from parts_of_cost import candidates_of
from peers_runner import Peers
from photon_by_photon import Camera, Crystals, Rendering, RunPlan
from rows import Row, Turns

import sfxreduce

__all__ = ["ANCHOR", "SECTION", "measure"]

ANCHOR = (
    "Published for a frame of 16 million pixels without a hit, by CrystFEL, one thread of another "
    "machine: 242 ms (IUCrJ 12 (2025) 97)."
)

MODULE, GAPS, MODULES = (512, 1028), (38, 12), (8, 4)
"""(y, x) pixels of a module and between two of them, and modules, of an Eiger2 16M."""

SHAPE = tuple(n * m + (n - 1) * g for n, m, g in zip(MODULES, MODULE, GAPS, strict=True))

_BLIND = np.uint16(65535)
SECTION = "Eiger2 16M, blank frames, bitshuffle and LZ4"
_OURS, _H5PY = "default model, its window, reading included", "h5py reads the frame"
_CANDIDATES = "candidates of all tiles, without reading"
_PEERS = ("LUTE peakfinder_8_v2", "OM peakfinder8", "OM peakfinder8, fast mode")
"""psana's takes three times as long as any other and is timed on smaller frames."""


def gaps() -> NDArray[np.bool_]:
    """Pixels between the modules, in the shape of a frame."""
    rows, columns = (
        np.arange(side) % (module + gap) >= module
        for side, module, gap in zip(SHAPE, MODULE, GAPS, strict=True)
    )
    return rows[:, np.newaxis] | columns


def rendered(n_events: int) -> Iterator[NDArray[np.uint16]]:
    """Blank frames with their gaps."""
    camera = Camera(side=max(SHAPE), gain=1.0, readout=0.0, dtype="uint16", full_scale=65534.0)
    plan = RunPlan(name="eiger", camera=camera, hit_rate=0.0, crystals=Crystals(), seed=3)
    rendering, blind = Rendering(plan), gaps()
    left = (max(SHAPE) - SHAPE[1]) // 2
    for event in range(n_events):
        frame = rendering.event(event)[0][:, left : left + SHAPE[1]].astype(np.uint16)
        frame[blind] = _BLIND
        yield frame


def write_master(folder: Path, n_events: int) -> Path:
    """Write a master and its data file."""
    path = folder / "eiger_master.h5"
    with h5py.File(folder / "eiger_data_000001.h5", "w") as file:
        frames = file.create_dataset(
            "entry/data/data",
            (n_events, *SHAPE),
            np.uint16,
            chunks=(1, *SHAPE),
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )
        for event, frame in enumerate(rendered(n_events)):
            frames[event] = frame
    with h5py.File(path, "w") as master:
        link = h5py.ExternalLink("eiger_data_000001.h5", "/entry/data/data")
        master["entry/data/data_000001"] = link
        detector = master.require_group("entry/instrument/detector")
        detector["detector_distance"], detector["x_pixel_size"] = 0.2, 75e-6
        detector["beam_center_x"], detector["beam_center_y"] = SHAPE[1] / 2, SHAPE[0] / 2
        detector["detectorSpecific/nimages"], detector["detectorSpecific/ntrigger"] = n_events, 1
        detector["pixel_mask"] = gaps().astype(np.uint32)
        master["entry/instrument/beam/incident_wavelength"] = 1.0
    return path


def measure(folder: Path, *, n_events: int = 24, rounds: int = 2) -> list[Row]:
    """Measure frame by frame, method by method in turns.

    Parameters
    ----------
    folder : Path
        For the files; 10 MB a frame.
    """
    path = write_master(folder, n_events)
    run = sfxreduce.open_run(path)
    scoring = FilterScoring.of(run, sfxreduce.CnnScorer(sfxreduce.default_model()))
    detector, turns, tiles = scoring.source.detector, Turns(), []
    window = scoring.scorer.window(detector)
    scoring(range(1))
    with Peers() as peers, h5py.File(folder / "eiger_data_000001.h5") as file:
        frames, names = file["entry/data/data"], [n for n in _PEERS if n in peers.versions]
        for event in [*range(n_events)] * rounds:
            rows = turns.time(_OURS, lambda e=event: scoring(range(e, e + 1)), n_events=1)
            tiles.append(int(rows["tiles"][0]))
            frame = turns.time(_H5PY, lambda e=event: frames[e], n_events=1)
            pixels = window.take(frame, detector)[np.newaxis]
            turns.time(_CANDIDATES, lambda p=pixels: candidates_of(p, window, scoring), n_events=1)
            peers.load(frame[np.newaxis], detector.good())
            for name in names:
                turns.add(name, peers.search(name).cpu_ms, n_events=1)
    return list(_rows(turns, names, peers, float(np.mean(tiles)), len(window.origins)))


def _rows(
    turns: Turns, names: list[str], peers: Peers, tiles: float, n_tiles: int
) -> Iterator[Row]:
    ours, reading = turns.median(_OURS), turns.median(_H5PY)
    floor = reading + turns.median(_CANDIDATES)
    yield Row(
        section=SECTION,
        name=_OURS,
        cpu_ms=ours,
        against="h5py and candidates",
        ratio=ours / floor,
        wanted="at most 1.3",
        note=f"{tiles:.1f} tiles of {n_tiles} read",
        **turns.size(_OURS),
    )
    for name in (_H5PY, _CANDIDATES):
        yield Row(section=SECTION, name=name, cpu_ms=turns.median(name), **turns.size(name))
    for name in names:
        cpu_ms = turns.median(name) + reading
        yield Row(
            section=SECTION,
            name=f"{name} {peers.versions[name]}, with reading",
            cpu_ms=cpu_ms,
            against=_OURS,
            ratio=cpu_ms / ours,
            note="read by h5py",
            **turns.size(name),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="for the files; a temporary folder else")
    parser.add_argument("--events", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        for row in measure(folder, n_events=options.events, rounds=options.rounds):
            print(row.line)
    print(ANCHOR)


if __name__ == "__main__":
    main()
