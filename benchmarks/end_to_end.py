"""A whole filter run: as it is shipped; and the centre tile against a floor and a naive pipeline.

The shipped window is filtered with similarity check, second opinion and report, as photons and as
int16 ADU, every 20th event a hit. The rest is about the centre tile alone.

The floor is what an event costs at least: its window's bytes decoded, the network; and for hits
one read, one write and one sha256 pass over their encoded bytes. A run's CPU time per event is the
difference of two lengths of run, so that what is paid once per run cancels. Of each run 10 % are
kept, by a threshold on its own scores; there is no similarity check.

The naive pipeline is what a careful beginner with Dask writes: chunks of 32 whole frames, the
centre cut out of each, the same network in eager torch, batches of 32, hits written to a new array
through the zarr library with the same codec.

    python benchmarks/end_to_end.py
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
import zarr
from material import KINDS, mixed_store, poster_model, repeated_run, simulated_store
from numpy.typing import NDArray
from rows import Row, cpu_ms_by_turns

import sfxreduce
from sfxreduce.io.chunks.shards import ShardFile, TileCodec
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.pipeline.stages.score import collect_scores
from sfxreduce.run.run import Run
from sfxreduce.scorers.cnn.folder import read_model
from sfxreduce.scorers.cnn.on_torch import load_network

__all__ = ["measure", "measure_shipped"]

HIT_SHARE = 0.1
_FRAMES = 32
_CENTRE = slice(700, 1050)


def measure(folder: Path, *, lengths: tuple[int, int] = (10, 50), repeats: int = 3) -> list[Row]:
    """Measure floor, filter and naive pipeline.

    Parameters
    ----------
    folder : Path
        For runs and outputs; some gigabytes.
    lengths : tuple of int
        Lengths of two runs, in runs of 64 events.
    repeats : int
    """
    torch.set_num_threads(1)
    short = simulated_store(folder / "run.zarr", n_events=64)
    model = poster_model(folder / "poster")
    naive = partial(naive_run, model=model, share=HIT_SHARE, folder=folder)
    taken, _ = per_event(short, naive, folder, lengths=(1, 3), repeats=1)
    scorers = {
        "default model": sfxreduce.CnnScorer(sfxreduce.default_model(), looks_at="centre"),
        "poster network": sfxreduce.CnnScorer(model),
    }
    return [
        row
        for name, scorer in scorers.items()
        for row in _against_floor(
            name, short, scorer, taken, folder, lengths=lengths, repeats=repeats
        )
    ]


def _against_floor(
    name: str,
    short: Run,
    scorer: sfxreduce.CnnScorer,
    naive: float,
    folder: Path,
    *,
    lengths: tuple[int, int],
    repeats: int,
) -> list[Row]:
    """Measure floor and filter with one model."""
    with sfxreduce.open_pool(serial=True) as pool:
        scores = collect_scores(short, scorer, pool=pool)["score"]
    threshold = float(np.sort(scores)[-round(HIT_SHARE * scores.size)])
    hits = np.flatnonzero(scores >= threshold)
    share = hits.size / short.n_events
    floor = floor_of(short, scorer, hits[:4].tolist(), folder, repeats=repeats)
    run = partial(filter_run, scorer=scorer, threshold=threshold, folder=folder)
    taken, _ = per_event(short, run, folder, lengths=lengths, repeats=repeats)
    decode, network, moved = (floor[part] for part in ("decode", "network", "move"))
    total = decode + network + share * moved
    section = f"end to end, the centre tile alone, {share:.0%} hits, {name}"
    return [
        Row(section=section, name="floor: decode the window", cpu_ms=decode),
        Row(section=section, name="floor: the network and what it needs", cpu_ms=network),
        Row(
            section=section,
            name="floor: a hit read, written, hashed",
            cpu_ms=moved,
            note="per hit",
        ),
        Row(section=section, name="floor", cpu_ms=total),
        Row(
            section=section,
            name="sfxreduce filter",
            cpu_ms=taken,
            against="floor",
            ratio=taken / total,
            wanted="at most 1.3",
        ),
        Row(
            section=section,
            name="naive Dask pipeline, poster network",
            cpu_ms=naive,
            against="sfxreduce filter",
            ratio=naive / taken,
            wanted="at least 30",
            note="chunks of 32 frames, eager torch, hits encoded anew",
        ),
    ]


def floor_of(
    run: Run, scorer: sfxreduce.CnnScorer, hits: list[int], folder: Path, *, repeats: int
) -> dict[str, float]:
    """CPU milliseconds of each part of the floor."""
    source, detector = run.source, run.detector
    assert isinstance(source, ZarrFrames)
    assert source.layout is not None
    layout = source.layout
    codec = TileCodec(dtype=source.dtype, tile=layout.tile, packing=layout.packing)
    middle, n = layout.tiles_per_event // 2, layout.events_per_shard
    path = Path(run.path) / "frames" / layout.shard_key(0)
    pixels = np.zeros((n, 1, *layout.tile), source.dtype)

    def decode() -> None:
        with ShardFile(path, n_tiles=n * layout.tiles_per_event) as shard:
            for event in range(n):
                stored = shard.read(event * layout.tiles_per_event + middle)
                pixels[event, 0] = codec.decode(stored or b"")

    def move() -> None:
        with ShardFile(path, n_tiles=n * layout.tiles_per_event) as shard:
            events = [
                b"".join(
                    shard.read(event % n * layout.tiles_per_event + tile) or b""
                    for tile in range(layout.tiles_per_event)
                )
                for event in hits
            ]
        data = b"".join(events)
        hashlib.sha256(data).hexdigest()
        (folder / "moved").write_bytes(data)

    decode()
    actions: dict[str, Callable[[], object]] = {
        "decode": decode,
        "network": lambda: scorer.classify(pixels, detector),
        "move": move,
    }
    taken = cpu_ms_by_turns(actions, repeats=max(repeats, 7))
    return {name: ms / (len(hits) if name == "move" else n) for name, ms in taken.items()}


def per_event(
    run: Run,
    action: Callable[[Run], Any],
    folder: Path,
    *,
    lengths: tuple[int, int],
    repeats: int,
) -> tuple[float, float]:
    """CPU milliseconds per event, and CPU seconds that a run costs whatever its length.

    Medians of the differences of two lengths of run, and of what is left of the shorter one.
    """
    runs = [repeated_run(run, folder / f"long{times}.zarr", times=times) for times in lengths]
    action(runs[0])
    taken = []
    for _ in range(repeats):
        marks = [time.process_time()]
        for one in runs:
            action(one)
            marks.append(time.process_time())
        short, long = np.diff(marks)
        each = (long - short) / (runs[1].n_events - runs[0].n_events)
        taken.append((each, short - each * runs[0].n_events))
    for one in runs:
        shutil.rmtree(one.path)
    each_s, fixed_s = (statistics.median(values) for values in zip(*taken, strict=True))
    return 1e3 * each_s, fixed_s


def measure_shipped(
    folder: Path,
    peers: Mapping[str, Mapping[str, float]],
    *,
    n_each: int = 64,
    lengths: tuple[int, int] = (2, 8),
    repeats: int = 2,
) -> list[Row]:
    """Measure ``sfxreduce filter`` at its defaults, with a report.

    Parameters
    ----------
    folder : Path
        For runs and outputs.
    peers : mapping of str to (mapping of str to float)
        CPU milliseconds of an event of each kind by other peak finders, reading included.
    n_each : int
        See `material.mixed_store`.
    lengths : tuple of int
        Lengths of two runs, in runs of 64 events.
    repeats : int
    """
    rows, section = [], "end to end: whole frames, 5 % hits, with similarity check and report"
    size = {"n_turns": repeats, "n_events": repeats * 64 * sum(lengths)}
    for kind in KINDS:
        run = mixed_store(folder, kind, n_each=n_each)
        action = partial(shipped_run, folder=folder)
        cpu_ms, fixed_s = per_event(run, action, folder, lengths=lengths, repeats=repeats)
        name = f"sfxreduce filter, {kind}"
        note = f"and {fixed_s:.1f} CPU-s for a run of any length"
        rows.append(Row(section=section, name=name, cpu_ms=cpu_ms, note=note, **size))
        rows += [
            Row(
                section=section,
                name=f"{peer}, reading and search alone, {kind}",
                cpu_ms=of_peer,
                against=name,
                ratio=of_peer / cpu_ms,
            )
            for peer, of_peer in peers.get(kind, {}).items()
        ]
    return rows


def shipped_run(run: Run, *, folder: Path) -> None:
    """Filter a run as ``sfxreduce filter --serial --report`` does."""
    with sfxreduce.open_pool(serial=True) as pool:
        sfxreduce.filter_run(
            run,
            settings=sfxreduce.FilterSettings(
                scorer=sfxreduce.CnnScorer(sfxreduce.default_model())
            ),
            outputs=sfxreduce.Outputs(
                store=folder / "hits.zarr", report=folder / "report.html", overwrite=True
            ),
            pool=pool,
        )


def filter_run(run: Run, *, scorer: sfxreduce.CnnScorer, threshold: float, folder: Path) -> None:
    """Filter a run as ``sfxreduce filter --serial --drift off`` does."""
    with sfxreduce.open_pool(serial=True) as pool:
        sfxreduce.filter_run(
            run,
            settings=sfxreduce.FilterSettings(scorer=scorer, threshold=threshold, drift=False),
            outputs=sfxreduce.Outputs(store=folder / "hits.zarr", overwrite=True),
            pool=pool,
        )


def naive_run(run: Run, *, model: Path, share: float, folder: Path) -> None:
    """Filter a run as one does who has just read Dask's documentation."""
    network = load_network(read_model(model))

    def score(block: NDArray[np.integer]) -> NDArray[np.float32]:
        crop = block[:, _CENTRE, _CENTRE].astype(np.float32)
        flat = crop.reshape(len(crop), -1)
        crop = (crop - flat.mean(axis=1)[:, None, None]) / flat.std(axis=1)[:, None, None]
        with torch.inference_mode():
            out = network(torch.from_numpy(crop[:, np.newaxis])).softmax(dim=1)
        found: NDArray[np.float32] = out[:, 1].numpy()
        return found

    stored = zarr.open_array(f"{run.path}/frames", mode="r")
    frames = da.from_zarr(stored, chunks=(_FRAMES, *stored.shape[1:]))
    scores = frames.map_blocks(score, drop_axis=(1, 2), dtype=np.float32)
    out = folder / "naive.zarr"
    shutil.rmtree(out, ignore_errors=True)
    packing = zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    with dask.config.set(scheduler="threads", num_workers=1):
        values = scores.compute()
        kept = np.flatnonzero(values >= np.quantile(values, 1 - share))
        hits = frames[kept].rechunk((1, *stored.shape[1:]))
        target = zarr.create_array(
            out,
            shape=hits.shape,
            chunks=hits.chunksize,
            dtype=hits.dtype,
            compressors=packing,
        )
        da.store(hits, target, lock=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="for runs and outputs; a temporary folder else")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        for row in [*measure_shipped(folder, {}), *measure(folder)]:
            print(row.line)


if __name__ == "__main__":
    main()
