"""Hits copied as stored bytes against hits encoded anew; ingest against its codec; bytes and files.

python benchmarks/bytes_moved.py
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
from material import simulated_store
from rows import Row, cpu_ms_by_turns

import sfxreduce
from sfxreduce.io.chunks.shards import TileCodec
from sfxreduce.io.files.durable import disk_bytes
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.io.writers.shards import ShardJob, copy_shard, encode_shard
from sfxreduce.run.run import Run

__all__ = ["measure"]

_EVENTS = 32


def measure(folder: Path, *, repeats: int = 5) -> list[Row]:
    """Measure copying, and ingest of a plain HDF5 file.

    Parameters
    ----------
    folder : Path
        For runs and outputs.
    repeats : int
    """
    run = simulated_store(folder / "run.zarr", n_events=64)
    return [*_copying(run, folder, repeats), *_ingest(run, folder, repeats)]


def _copying(run: Run, folder: Path, repeats: int) -> list[Row]:
    source = run.source
    assert isinstance(source, ZarrFrames)
    assert source.layout is not None
    out = folder / "copied"
    out.mkdir(exist_ok=True)
    job = ShardJob(
        source=source,
        store=str(out),
        layout=source.layout,
        shard=0,
        events=tuple(range(1, 1 + _EVENTS)),  # of two shards: nothing is copied whole
    )
    taken = cpu_ms_by_turns(
        {"copied": lambda: copy_shard(job), "encoded anew": lambda: encode_shard(job)},
        repeats=repeats,
    )
    shutil.rmtree(out)
    copied, encoded = (taken[name] / _EVENTS for name in ("copied", "encoded anew"))
    section = "a hit into another shard"
    return [
        Row(
            section=section,
            name="decoded and encoded anew",
            cpu_ms=encoded,
            against="copied as it is stored",
            ratio=encoded / copied,
            wanted="at least 10",
        ),
        Row(
            section=section,
            name="copied as it is stored",
            cpu_ms=copied,
            note="crc32c checked, index and its crc32c made anew, written; sha256 in neither",
        ),
    ]


def _ingest(run: Run, folder: Path, repeats: int) -> list[Row]:
    frames = run.source.read(range(_EVENTS)).pixels
    path, out = folder / "frames.h5", folder / "ingested.zarr"
    with h5py.File(path, "w") as file:
        file.create_dataset("/entry/data/data", data=frames, chunks=(1, *frames.shape[1:]))
    plain = sfxreduce.open_run(path)
    source = run.source
    assert isinstance(source, ZarrFrames)
    assert source.layout is not None
    layout = source.layout
    codec = TileCodec(dtype=np.dtype(frames.dtype), tile=layout.tile)

    def ingest() -> None:
        with sfxreduce.open_pool(serial=True) as pool:
            sfxreduce.ingest_run(plain, out=out, pool=pool, overwrite=True)

    def pack() -> None:
        for event in range(_EVENTS):
            frame = plain.source.read([event]).pixels[0]
            for tile in range(layout.tiles_per_event):
                codec.encode(frame[layout.tile_slices(tile)])

    taken = cpu_ms_by_turns({"ingest": ingest, "codec": pack}, repeats=repeats)
    n_files = sum(1 for file in out.rglob("*") if file.is_file())
    n_bytes = disk_bytes(out)
    whole, alone = (taken[name] / _EVENTS for name in ("ingest", "codec"))
    return [
        Row(
            section="ingest of uncompressed HDF5",
            name="sfxreduce ingest",
            cpu_ms=whole,
            against="frames read and tiles encoded, nothing else",
            ratio=whole / alone,
            wanted="at most 1.5",
            note=f"{_EVENTS} frames, {frames.nbytes} bytes became {n_bytes} in {n_files} files",
        ),
        Row(
            section="ingest of uncompressed HDF5",
            name="frames read and tiles encoded, nothing else",
            cpu_ms=alone,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="for runs and outputs; a temporary folder else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for row in measure(options.work or Path(temporary)):
            print(row.line)


if __name__ == "__main__":
    main()
