"""Which stored tiles a window needs, and where their pixels go."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sfxreduce.io.chunks.layout import Layout
from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Window

__all__ = ["PixelCopy", "TilePiece", "frame_pieces", "tile_pieces", "whole_tiles"]

GAP_PIXELS = 8192
"""Pixels between two wanted ones that cost less to read than asking twice."""

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PixelCopy:
    """Pixels of one tile that go to one place of a picture.

    Parameters
    ----------
    source, target : tuple of int and slice, or ndarray of int64
        Rectangles in the tile, (rows, columns), and in the picture; or, where they are none, flat
        places of single pixels, which take ten times as long to copy.
    """

    source: tuple[slice, slice] | Places
    target: tuple[int | slice, ...] | Places

    def put(self, tile: NDArray[np.generic], picture: NDArray[np.generic]) -> None:
        """Copy the pixels of a tile, of shape (rows, columns), into a picture in memory order."""
        if isinstance(self.target, tuple):
            picture[self.target] = tile[self.source]
        else:
            picture.reshape(-1)[self.target] = tile.reshape(-1)[self.source]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TilePiece:
    """Pixels of one stored tile and their places in the picture that is asked for.

    Parameters
    ----------
    tile : int
        Number of the tile in its event, in grid order.
    width : int
        Pixels of a row of the tile.
    spans : ndarray of int64 or None
        Shape (span, 2): ranges of flat places in the tile that hold them all, in order; None if
        that is the whole tile.
    """

    tile: int
    width: int
    copies: tuple[PixelCopy, ...]
    spans: Places | None

    def put(self, tile: NDArray[np.generic], picture: NDArray[np.generic]) -> None:
        """Copy what the picture shows of a tile, whose pixels may come in any shape."""
        rows = tile.reshape(-1, self.width)
        for copy in self.copies:
            copy.put(rows, picture)


@lru_cache(maxsize=8)
def frame_pieces(layout: Layout) -> tuple[TilePiece, ...]:
    """All tiles of a frame; the picture is the frame."""
    pieces = []
    for tile in range(layout.tiles_per_event):
        target = layout.tile_slices(tile)
        n_y, n_x = (s.stop - s.start for s in target[-2:] if isinstance(s, slice))
        copy = PixelCopy(source=(slice(0, n_y), slice(0, n_x)), target=target)
        pieces.append(TilePiece(tile=tile, width=layout.tile[1], copies=(copy,), spans=None))
    return tuple(pieces)


@lru_cache(maxsize=8)
def tile_pieces(
    frame_shape: tuple[int, ...], tile_shape: tuple[int, ...], detector: Detector, window: Window
) -> tuple[TilePiece, ...]:
    """Tiles that hold any pixel of a window; the picture is the window.

    Parameters
    ----------
    frame_shape, tile_shape : tuple of int
        Of the same axes, panels included. The last tiles may pass the frame's edge.
    detector : Detector
        Its frames have these pixels in this order, if perhaps in another shape.

    Returns
    -------
    tuple of TilePiece
        In grid order; kept between calls, because every batch of a run asks the same.
    """
    gathered = window.gather(detector).reshape(-1)
    target = np.flatnonzero(gathered >= 0)
    tile, source = (of_frame[gathered[target]] for of_frame in _tiled(frame_shape, tile_shape))
    pieces = []
    for number, part in _groups(tile):
        copies = [
            _copy(source[part[chosen]], target[part[chosen]], tile_shape[-1], window.shape)
            for _, chosen in _groups(target[part] // math.prod(window.tile_shape))
        ]
        spans = _spans(source[part], math.prod(tile_shape))
        pieces.append(
            TilePiece(tile=number, width=tile_shape[-1], copies=tuple(copies), spans=spans)
        )
    return tuple(pieces)


def whole_tiles(
    pieces: Sequence[TilePiece], tile_shape: tuple[int, int], picture_shape: tuple[int, ...]
) -> NDArray[np.int64] | None:
    """Place of each piece in a picture made of whole stored tiles; None if it is another one.

    Parameters
    ----------
    tile_shape : tuple of int
        Stored (y, x).
    picture_shape : tuple of int
        Of a window: (tile, y, x).
    """
    if picture_shape[1:] != tile_shape:
        return None
    whole = tuple(slice(0, side) for side in tile_shape)
    targets = [piece.copies[0].target for piece in pieces if len(piece.copies) == 1]
    places = [t[0] for t in targets if isinstance(t, tuple) and t[1:] == whole]
    return np.array(places, np.int64) if len(places) == len(pieces) else None


def _tiled(frame_shape: tuple[int, ...], tile_shape: tuple[int, ...]) -> tuple[Places, Places]:
    """Tile of every pixel of a frame, and its flat place in that tile, both flat.

    Examples
    --------
    >>> [of_frame.tolist() for of_frame in _tiled((2, 3), (2, 2))]
    [[0, 0, 1, 0, 0, 1], [0, 1, 0, 2, 3, 2]]
    """
    tile, place = np.zeros((), np.int64), np.zeros((), np.int64)
    for n, side in zip(frame_shape, tile_shape, strict=True):
        outer, inner = np.divmod(np.arange(n), side)
        tile = np.add.outer(tile * math.ceil(n / side), outer)
        place = np.add.outer(place * side, inner)
    return tile.ravel(), place.ravel()


def _groups(numbers: Places) -> Iterator[tuple[int, Places]]:
    """Each different number, and the places where it is, both in order."""
    if not numbers.size:
        return
    # Numbers of 16 bits are sorted in time that grows with how many there are, and no faster.
    order = np.argsort(numbers.astype(np.min_scalar_type(int(numbers.max()))), kind="stable")
    ordered = numbers[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    yield from zip(ordered[starts].tolist(), np.split(order, starts[1:]), strict=True)


def _copy(source: Places, target: Places, width: int, shape: Sequence[int]) -> PixelCopy:
    """Copy of pixels within one tile of the window; their targets ascend."""
    place, row, column = np.unravel_index(target, tuple(shape))
    n_rows, n_columns = int(row[-1] - row[0]) + 1, int(np.ptp(column)) + 1
    y, x = divmod(int(source[0]), width)
    if n_rows * n_columns == source.size and x + n_columns <= width:
        block = source[0] + width * np.arange(n_rows)[:, np.newaxis] + np.arange(n_columns)
        if np.array_equal(block.reshape(-1), source):
            top, left = int(row[0]), int(column[0])
            return PixelCopy(
                source=(slice(y, y + n_rows), slice(x, x + n_columns)),
                target=(
                    int(place[0]),
                    slice(top, top + n_rows),
                    slice(left, left + n_columns),
                ),
            )
    return PixelCopy(source=source, target=target)


def _spans(places: Places, n_pixels: int) -> Places | None:
    """Ranges that hold all places; small gaps are taken along."""
    wanted = np.zeros(n_pixels, np.bool_)
    wanted[places] = True
    if wanted.all():
        return None
    ordered = np.flatnonzero(wanted)
    last = np.flatnonzero(np.diff(ordered) > GAP_PIXELS)
    starts = ordered[np.append(0, last + 1)]
    return np.stack([starts, ordered[np.append(last, -1)] + 1], axis=1)
