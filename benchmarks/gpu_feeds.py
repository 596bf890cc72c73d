"""What the benchmark of a graphics card scores: tiles in memory, packed tiles, a run store."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.scorers.cnn.poster.gpu import Feed
from sfxreduce.scorers.cnn.poster.network import TILE_SHAPE

Pixels = NDArray[np.uint16]
FRAME_SIDE = 1750
TILES_PER_FRAME = (FRAME_SIDE // TILE_SHAPE[0]) ** 2
TILE_BYTES = math.prod(TILE_SHAPE) * 2
GOOD = np.ones((1, *TILE_SHAPE), np.bool_)


class UnmeasuredError(Exception):
    """Why something could not be measured here."""


def make_tiles(n: int, seed: int = 1) -> Pixels:
    """Tiles of photons, every other one with peaks, shape (event, 1, y, x)."""
    rng = np.random.default_rng(seed)
    tiles = rng.poisson(2.0, (n, 1, *TILE_SHAPE)).astype(np.uint16)
    for tile in tiles[::2, 0]:
        for y, x in rng.integers(1, TILE_SHAPE[0] - 1, (int(rng.integers(5, 60)), 2)):
            tile[y - 1 : y + 2, x - 1 : x + 2] += rng.poisson(12, (3, 3)).astype(np.uint16)
    return tiles


def make_frames(n: int) -> Pixels:
    """Whole frames, put together from tiles, shape (event, y, x)."""
    side = FRAME_SIDE // TILE_SHAPE[0]
    tiles = make_tiles(n * side**2, seed=2).reshape(n, side, side, *TILE_SHAPE)
    return tiles.transpose(0, 1, 3, 2, 4).reshape(n, FRAME_SIDE, FRAME_SIDE)


class Stored:
    """Tiles as a run store holds them, in memory. Without the codec every use says so."""

    def __init__(self, tiles: Pixels) -> None:
        self._encoded: list[bytes] = []
        self._why_not = ""
        try:
            from sfxreduce.io.chunks.decode import PackedTiles
            from sfxreduce.io.chunks.shards import TileCodec
        except ImportError as error:
            self._why_not = f"the tile codec cannot be loaded ({error})"
            return
        self._side_by_side = PackedTiles.of
        self._codec = TileCodec(dtype=tiles.dtype, tile=TILE_SHAPE)
        self._encoded = [self._codec.encode(tile) for tile in tiles.reshape(-1, *TILE_SHAPE)]

    @property
    def encoded(self) -> list[bytes]:
        """Packed tiles."""
        if self._why_not:
            raise UnmeasuredError(self._why_not)
        return self._encoded

    @property
    def ratio(self) -> float:
        """By how much the tiles shrank."""
        return len(self.encoded) * TILE_BYTES / sum(map(len, self.encoded))

    def read(self, tiles: range, there: NDArray[np.generic]) -> NDArray[np.generic]:
        """Decode tiles, counted round and round, into an array of shape (tile, y, x)."""
        encoded = [self.encoded[tile % len(self.encoded)] for tile in tiles]
        packed = self._side_by_side(encoded)
        if not self._codec.decode_many(packed, there, np.arange(len(tiles))).all():
            raise RuntimeError("a tile cannot be decoded")
        return there


def room_for(n: int) -> Pixels:
    """Memory for some tiles, touched before it is timed."""
    return np.zeros((n, *TILE_SHAPE), np.uint16)


def decoded_feed(tiles: Pixels, n_events: int, good: NDArray[np.bool_], **more: Any) -> Feed:
    """Events that need no decoding, counted round and round."""

    def read(events: range, there: NDArray[np.generic]) -> None:
        start = events.start % len(tiles)
        if start + len(events) <= len(tiles):
            there[...] = tiles[start : start + len(events)]
        else:
            np.take(tiles, np.arange(events.start, events.stop) % len(tiles), axis=0, out=there)

    return Feed(
        read=read, n_events=n_events, dtype=tiles.dtype, good=good, adu_per_photon=1.0, **more
    )


def encoded_feed(packed: Stored, n_events: int, good: NDArray[np.bool_], **more: Any) -> Feed:
    """The same events, decoded as they are read."""
    n_tiles = len(good)

    def read(events: range, there: NDArray[np.generic]) -> None:
        tiles = range(events.start * n_tiles, events.stop * n_tiles)
        packed.read(tiles, there.reshape(-1, *TILE_SHAPE))

    return Feed(
        read=read,
        n_events=n_events,
        dtype=np.dtype(np.uint16),
        good=good,
        adu_per_photon=1.0,
        **more,
    )


def run_store_feed(store: RunStore, n_events: int, good: NDArray[np.bool_]) -> Feed:
    """Centre tiles of a run store, read as the scorer of a run reads them."""
    source, window = store.source, store.window

    def read(events: range, there: NDArray[np.generic]) -> None:
        there[...] = 0
        if source.read_into([event % source.n_events for event in events], window, there).any():
            raise RuntimeError("an event cannot be read")

    return Feed(read=read, n_events=n_events, dtype=source.dtype, good=good, adu_per_photon=1.0)


@dataclass(frozen=True, kw_only=True)
class Frames:
    """A source of frames that are in memory, round and round."""

    frames: Pixels
    n_events: int
    detector: Any
    path: str = "memory"
    inputs: tuple[Path, ...] = ()

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of a pixel."""
        return self.frames.dtype

    @property
    def n_bytes(self) -> int:
        """Of all frames."""
        return self.n_events * self.frames[0].nbytes

    def read(self, events: Sequence[int], window: Any = None) -> Any:  # noqa: ARG002 - FrameSource
        """Whole frames; see `sfxreduce.run.run.FrameSource`."""
        from sfxreduce.run.run import Reading

        pixels = self.frames[np.asarray(events) % len(self.frames)]
        return Reading(pixels=pixels, reasons=np.zeros(len(events), np.uint32))


class RunStore:
    """A run store of some frames, in a folder that is gone afterwards."""

    def __init__(self, n_events: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._n_events, self._opened = n_events, False
        self.source: Any = None
        self.window: Any = None

    def opened(self) -> RunStore:
        """Write it at the first call."""
        if self._opened:
            return self
        try:
            from sfxreduce.cluster import SerialPool
            from sfxreduce.io.readers.zarr.run import open_zarr
            from sfxreduce.pipeline.ingest import ingest_run
            from sfxreduce.run.columns import event_columns
            from sfxreduce.run.detector import Detector
            from sfxreduce.run.run import Run
            from sfxreduce.run.window import Window
        except ImportError as error:
            raise UnmeasuredError(f"a run store cannot be written ({error})") from error
        detector = Detector.centred("camera", (FRAME_SIDE, FRAME_SIDE), adu_per_photon=1.0)
        frames = Frames(frames=make_frames(4), n_events=self._n_events, detector=detector)
        path = Path(self._folder.name) / "run.zarr"
        run = Run(source=frames, columns=event_columns(self._n_events))
        ingest_run(run, out=path, pool=SerialPool())
        self.source, self.window = open_zarr(path).source, Window.centre(detector)
        self._opened = True
        return self
