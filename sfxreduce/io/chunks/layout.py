"""How a run store is cut: tiles, shards, and the places of tiles within them. Nothing is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError
from sfxreduce.io.chunks.blosc import USUAL_PACKING, Packing
from sfxreduce.run.window import Box

__all__ = ["TARGET_SHARD_BYTES", "Layout", "choose_layout", "events_per_shard"]

TARGET_SHARD_BYTES = 200_000_000
"""Uncompressed bytes of one shard: 32 frames of 1750 x 1750 pixels of 16 bits."""

TILE_OVERHEAD_BYTES = 16_384
"""What opening one more tile costs, in the bytes that could be decoded in that time."""

MAX_TILES_PER_PANEL = 64
"""More tiles a panel make the shard index and the bookkeeping dearer than the bytes saved."""

MAX_EVENTS_PER_SHARD = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Tile grid and shard size of a ``frames`` array, and how its tiles are packed.

    One shard holds whole frames of consecutive events; inside it every event is cut into tiles,
    each encoded by itself. A tile is the unit that is read, a shard the unit that is written.
    Tiles move as they are between arrays of equal layouts.

    Parameters
    ----------
    frame_shape : tuple of int
        (y, x) or (panel, y, x).
    tile : tuple of int
        (y, x) pixels of a tile; a tile never spans two panels.
    packing : Packing
        How tiles are packed; `USUAL_PACKING` if not given.

    Examples
    --------
    >>> layout = Layout(frame_shape=(1750, 1750), tile=(350, 350), events_per_shard=32)
    >>> layout.chunks, layout.shards, layout.tiles_per_event
    ((1, 350, 350), (32, 1750, 1750), 25)
    >>> layout.locate(40)
    (1, 8)
    """

    frame_shape: tuple[int, ...]
    tile: tuple[int, int]
    events_per_shard: int
    packing: Packing = USUAL_PACKING

    def __post_init__(self) -> None:
        if (
            len(self.frame_shape) not in (2, 3)
            or min(*self.frame_shape, *self.tile, self.events_per_shard) < 1
        ):
            raise SchemaError(
                "layout: expected frames (y, x) or (panel, y, x), tiles and shards of at least "
                f"one, found frames {self.frame_shape}, tiles {self.tile}, "
                f"{self.events_per_shard} events a shard"
            )

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a tile in the array's dimensions."""
        return (1,) * (len(self.frame_shape) - 1) + self.tile

    @property
    def shards(self) -> tuple[int, ...]:
        """Shape of a shard in the array's dimensions; whole tiles may pass the frame's edge."""
        n_y, n_x = (t * n for t, n in zip(self.tile, self.tile_grid[-2:], strict=True))
        return (self.events_per_shard, *self.frame_shape[:-2], n_y, n_x)

    @property
    def tile_grid(self) -> tuple[int, ...]:
        """Number of tiles of one event along each axis of a frame."""
        n_y, n_x = self.frame_shape[-2:]
        return (
            *self.frame_shape[:-2],
            math.ceil(n_y / self.tile[0]),
            math.ceil(n_x / self.tile[1]),
        )

    @property
    def tiles_per_event(self) -> int:
        """Number of tiles of one event."""
        return math.prod(self.tile_grid)

    def n_shards(self, n_events: int) -> int:
        """Count the shards of a run."""
        return math.ceil(n_events / self.events_per_shard)

    def locate(self, event: int) -> tuple[int, int]:
        """Shard of an event and the event's place in it."""
        return divmod(event, self.events_per_shard)

    def shard_key(self, shard: int) -> str:
        """Path of a shard below the array, as Zarr names it."""
        return "/".join(["c", str(shard), *("0" for _ in self.frame_shape)])

    def tile_slices(self, tile: int) -> tuple[int | slice, ...]:
        """Where a tile lies in its frame; edge tiles are cut at the frame's edge."""
        *panel, row, column = np.unravel_index(tile, self.tile_grid)
        y0, x0 = int(row) * self.tile[0], int(column) * self.tile[1]
        n_y, n_x = self.frame_shape[-2:]
        return (
            *(int(p) for p in panel),
            slice(y0, min(y0 + self.tile[0], n_y)),
            slice(x0, min(x0 + self.tile[1], n_x)),
        )


def choose_layout(
    frame_shape: Sequence[int],
    *,
    dtype: np.dtype[np.generic],
    boxes: Sequence[Box],
    packing: Packing = USUAL_PACKING,
    target_shard_bytes: int = TARGET_SHARD_BYTES,
) -> Layout:
    """Tile grid that reads the fewest bytes for a window, and shards near a target size.

    Every tile side is weighed: the cost of a grid is the bytes of all tiles that touch the window,
    plus a fixed price for each. Of grids that cost the same the one with the fewest tiles wins,
    then the larger tile height.

    Parameters
    ----------
    frame_shape : sequence of int
        (y, x) or (panel, y, x).
    dtype : dtype
        Of a pixel.
    boxes : sequence of Box
        Source rectangles of the window, see `Window.boxes`.
    packing : Packing
        How tiles are packed.
    target_shard_bytes : int
        Uncompressed bytes of a shard.

    Examples
    --------
    >>> centre = [Box(panel=0, y0=700, y1=1050, x0=700, x1=1050)]
    >>> layout = choose_layout((1750, 1750), dtype=np.dtype("int16"), boxes=centre)
    >>> layout.tile, layout.events_per_shard
    ((350, 350), 32)
    """
    frame_shape = tuple(int(n) for n in frame_shape)
    n_y, n_x = frame_shape[-2:]
    heights, widths = np.arange(1, n_y + 1), np.arange(1, n_x + 1)
    rows = _tiles_touched(heights, [(box.y0, box.y1) for box in boxes])
    columns = _tiles_touched(widths, [(box.x0, box.x1) for box in boxes])
    touched = rows @ columns.T
    cost = touched * (np.multiply.outer(heights, widths) * dtype.itemsize + TILE_OVERHEAD_BYTES)
    tiles = np.multiply.outer(-(-n_y // heights), -(-n_x // widths))
    cost[tiles > MAX_TILES_PER_PANEL] = np.iinfo(np.int64).max
    best_cost = np.flatnonzero(cost == cost.min())
    best = best_cost[np.lexsort((-(best_cost // n_x), tiles.ravel()[best_cost]))[0]]
    return Layout(
        frame_shape=frame_shape,
        tile=(int(heights[best // n_x]), int(widths[best % n_x])),
        events_per_shard=events_per_shard(
            frame_shape, dtype=dtype, target_shard_bytes=target_shard_bytes
        ),
        packing=packing,
    )


def events_per_shard(
    frame_shape: Sequence[int],
    *,
    dtype: np.dtype[np.generic],
    target_shard_bytes: int = TARGET_SHARD_BYTES,
) -> int:
    """Power of two of events whose frames come nearest to a shard's target size from below.

    Parameters
    ----------
    frame_shape, dtype, target_shard_bytes
        See `choose_layout`.

    Examples
    --------
    >>> events_per_shard((1750, 1750), dtype=np.dtype("int16"))
    32
    """
    frames = target_shard_bytes / (math.prod(frame_shape) * dtype.itemsize)
    return int(min(2 ** max(math.floor(math.log2(max(frames, 1))), 0), MAX_EVENTS_PER_SHARD))


def _tiles_touched(sides: NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Tiles along one axis that each span touches, shape (side, span)."""
    start = np.array([a for a, _ in spans], np.int64)
    stop = np.array([b for _, b in spans], np.int64)
    return (stop - 1) // sides[:, None] - start // sides[:, None] + 1
