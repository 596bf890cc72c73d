"""Which stored tiles a window needs, and where their pixels go."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sfxreduce.geometry import Detector, Window
from sfxreduce.io.layout import Layout

__all__ = ["TilePiece", "tile_pieces"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TilePiece:
    """Pixels of one stored tile and their places in the picture that is asked for.

    Parameters
    ----------
    tile : int
        Number of the tile in its event, in grid order.
    source, target : ndarray of int64 or slice
        Flat places in the tile and in the picture, pixel by pixel.
    """

    tile: int
    source: NDArray[np.int64] | slice
    target: NDArray[np.int64] | slice


@lru_cache(maxsize=8)
def tile_pieces(layout: Layout, detector: Detector, window: Window | None) -> tuple[TilePiece, ...]:
    """Tiles that hold any pixel of a window, or of the whole frame if there is none.

    Parameters
    ----------
    layout : Layout
    detector : Detector
    window : Window or None

    Returns
    -------
    tuple of TilePiece
        In grid order; kept between calls, because every batch of a run asks the same.
    """
    n_pixels = detector.mask.size
    if window is None:
        wanted = target = np.arange(n_pixels)
    else:
        gathered = window.gather(detector).reshape(-1)
        target = np.flatnonzero(gathered >= 0)
        wanted = gathered[target]
    *panel, y, x = np.unravel_index(wanted, layout.frame_shape)
    row, source_y = np.divmod(y, layout.tile[0])
    column, source_x = np.divmod(x, layout.tile[1])
    tile = np.ravel_multi_index((*panel, row, column), layout.tile_grid)
    source = source_y * layout.tile[1] + source_x
    order = np.argsort(tile, kind="stable")
    tiles, starts = np.unique(tile[order], return_index=True)
    return tuple(
        TilePiece(tile=int(number), source=_as_slice(source[part]), target=_as_slice(target[part]))
        for number, part in zip(tiles, np.split(order, starts[1:]), strict=True)
    )


def _as_slice(places: NDArray[np.int64]) -> NDArray[np.int64] | slice:
    """Consecutive places as a slice: copying a range costs a tenth of gathering pixels."""
    first = int(places[0])
    if np.array_equal(places, np.arange(first, first + places.size)):
        return slice(first, first + places.size)
    return places
