"""Packings of tiles: bytes, decoding and encoding, on the frames of every preset and on others.

python benchmarks/packing.py --out docs/results/packing
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rows import cpu_ms_by_turns

import sfxreduce
from sfxreduce.io.chunks.blosc import FAST_PACKING, SMALL_PACKING, Packing
from sfxreduce.io.chunks.layout import Layout, choose_layout
from sfxreduce.io.chunks.shards import TileCodec
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window
from sfxreduce.simulate import EXPERIMENTS, simulate_run

SEED = 25
"""Of runs that no choice was made on: settings were tried on seed 24."""

N_EVENTS = 10
"""A fifth of them with crystals, as in most runs blanks are what is unpacked."""

OTHERS = Path(__file__).resolve().parents[2] / "shared" / "data" / "independent_sim" / "dev.cxi"

CODECS = {
    "small": SMALL_PACKING,
    "fast": FAST_PACKING,
    "lz4, 8 KiB": replace(FAST_PACKING, cname="lz4", clevel=9),
    "lz4, 32 KiB": Packing(cname="lz4", clevel=9, blocksize=32 * 1024),
}
"""What users can ask for, and two that were not taken."""


def runs() -> Iterator[tuple[str, Run]]:
    """Runs in the dtypes that cameras deliver, and in whole photons."""
    for name in EXPERIMENTS:
        yield name, simulate_run(name, n_events=N_EVENTS, hit_rate=0.2, seed=SEED)
    if OTHERS.exists():
        yield "independent simulation", sfxreduce.open_run(OTHERS)


def kinds(run: Run) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Frames as they come, and as photon counts where they come in ADU."""
    frames = run.source.read(range(min(run.n_events, N_EVENTS))).pixels
    yield str(frames.dtype), frames
    gain = run.detector.adu_per_photon
    if frames.dtype.kind != "f" and gain is not None and np.max(gain) > 1:
        counts = np.clip(np.rint(frames / np.asarray(gain)), 0, 65535)
        yield "photons, uint16", counts.astype(np.uint16)


def tiles_of(frames: NDArray[np.generic], layout: Layout) -> list[NDArray[np.generic]]:
    """Every tile of every frame."""
    return [
        np.ascontiguousarray(frame[layout.tile_slices(tile)])
        for frame in frames
        for tile in range(layout.tiles_per_event)
    ]


def measured(frames: NDArray[np.generic], run: Run, *, repeats: int) -> dict[str, dict[str, float]]:
    """Bytes of the pixels, and CPU milliseconds of an event, by packing."""
    layout = choose_layout(
        run.detector.frame_shape,
        dtype=frames.dtype,
        boxes=Window.centre(run.detector).boxes(run.detector),
    )
    tiles = tiles_of(frames, layout)
    codecs = {
        name: TileCodec(dtype=frames.dtype, tile=layout.tile, packing=packing)
        for name, packing in CODECS.items()
    }
    encoded = {name: [codec.encode(tile) for tile in tiles] for name, codec in codecs.items()}
    out = np.empty(layout.tile, frames.dtype)  # as scoring does: no new memory for every tile
    decode = {
        name: lambda codec=codec, name=name: [codec.decode(one, out=out) for one in encoded[name]]
        for name, codec in codecs.items()
    }
    encode = {
        name: lambda codec=codec: [codec.encode(tile) for tile in tiles]
        for name, codec in codecs.items()
    }
    decoding = cpu_ms_by_turns(decode, repeats=repeats)
    encoding = cpu_ms_by_turns(encode, repeats=repeats)
    return {
        name: {
            "bytes": sum(map(len, encoded[name])) / frames.nbytes,
            "decode_ms": decoding[name] / len(frames),
            "encode_ms": encoding[name] / len(frames),
        }
        for name in codecs
    }


def as_markdown(rows: list[dict[str, object]]) -> str:
    """The table of the decision page."""
    head = ["frames", "pixels", "packing", "of the pixels", "bytes", "decode", "encode"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|---:|---:|---:|---:|"]
    lines += [
        f"| {row['run']} | {row['pixels']} | {row['packing']} | {row['bytes']:.1%} | "
        f"{row['bytes_ratio']:.2f} | {row['decode_ratio']:.2f} | {row['encode_ratio']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name, run in runs():
        for pixels, frames in kinds(run):
            costs = measured(frames, run, repeats=asked.repeats)
            for packing, cost in costs.items():
                ratios = {
                    f"{key.partition('_')[0]}_ratio": cost[key] / costs["small"][key]
                    for key in cost
                }
                rows.append({"run": name, "pixels": pixels, "packing": packing, **cost, **ratios})
                print(rows[-1], flush=True)
    if asked.out:
        asked.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        asked.out.with_suffix(".md").write_text(as_markdown(rows))
    else:
        print(as_markdown(rows))


if __name__ == "__main__":
    main()
