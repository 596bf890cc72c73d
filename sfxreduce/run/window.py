"""The tiles of a frame that a scorer reads, and how they are chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError, UsageError
from sfxreduce.run.detector import Detector

__all__ = ["CENTRE", "CENTRE_TILE", "FULL", "Box", "TileChoice", "Window"]

CENTRE_TILE = (350, 350)
"""(row, column) pixels of a tile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle of source pixels on one panel: ``y0 <= y < y1``, ``x0 <= x < x1``."""

    panel: int
    y0: int
    y1: int
    x0: int
    x1: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a scorer sees: an ordered set of tiles of the assembled picture.

    The centre tile is one choice, the whole picture another. A tile may hang over the edge of the
    picture; what lies outside has no source pixel and never counts.

    Parameters
    ----------
    tile_shape : tuple of int
        (row, column) pixels of every tile.
    origins : tuple of tuple of int
        (row, column) of each tile's first pixel, the most telling tile first.
    """

    name: str
    tile_shape: tuple[int, int]
    origins: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.origins or min(self.tile_shape) < 1:
            raise SchemaError(
                f"window '{self.name}': expected at least one tile with pixels, found "
                f"{len(self.origins)} tiles of {self.tile_shape}"
            )

    @classmethod
    def centre(cls, detector: Detector, *, tile_shape: tuple[int, int] = CENTRE_TILE) -> Window:
        """Return the one tile in the middle of the assembled picture.

        Examples
        --------
        >>> Window.centre(Detector.centred("camera", (1750, 1750))).origins
        ((700, 700),)
        """
        rows, columns = detector.assembly().shape
        origin = ((rows - tile_shape[0]) // 2, (columns - tile_shape[1]) // 2)
        return cls(name="centre", tile_shape=tile_shape, origins=(origin,))

    @classmethod
    def tiled(
        cls,
        detector: Detector,
        *,
        tile_shape: tuple[int, int] = CENTRE_TILE,
        most: int = 0,
        spread: bool = False,
    ) -> Window:
        """Return tiles that cover the assembled picture, the nearest to the middle first.

        One of them is the tile of `centre`; those without a source pixel are left out.

        Parameters
        ----------
        tile_shape : tuple of int
            (row, column) pixels.
        most : int
            Only the first so many tiles; all of them if 0.
        spread : bool
            Take every other tile first, as on a chessboard.

        Examples
        --------
        >>> camera = Detector.centred("camera", (1750, 1750))
        >>> Window.tiled(camera).origins[:2]
        ((700, 700), (350, 700))
        >>> Window.tiled(camera, most=3, spread=True).origins
        ((700, 700), (350, 350), (350, 1050))
        """
        picture = detector.assembly()
        middle = cls.centre(detector, tile_shape=tile_shape).origins[0]
        axes = [
            range(m - tile * math.ceil(m / tile), size, tile)
            for m, tile, size in zip(middle, tile_shape, picture.shape, strict=True)
        ]
        origins = [
            (row, column)
            for row in axes[0]
            for column in axes[1]
            if np.any(_part(picture, row, column, tile_shape) >= 0)
        ]

        def turn(at: tuple[int, int]) -> tuple[int, float]:
            steps = sum((a - m) // tile for a, m, tile in zip(at, middle, tile_shape, strict=True))
            return (steps % 2 if spread else 0, math.dist(at, middle))

        origins.sort(key=turn)
        name = "full" if most == 0 else f"{most} tiles"
        return cls(name=name, tile_shape=tile_shape, origins=tuple(origins[: most or None]))

    def part(self, tiles: slice) -> Window:
        """Return some of its tiles, in the same order."""
        first, stop, _ = tiles.indices(len(self.origins))
        name = f"{self.name}, tiles {first} to {stop - 1}"
        return replace(self, name=name, origins=self.origins[tiles])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (tile, row, column) of what one event shows in this window."""
        return (len(self.origins), *self.tile_shape)

    def gather(self, detector: Detector) -> NDArray[np.int64]:
        """Flat index into a source frame for every pixel of the window; -1 where there is none.

        Returns
        -------
        ndarray of int64
            Shape (tile, row, column).
        """
        picture = detector.assembly()
        index = np.full(self.shape, -1, np.int64)
        for tile, (row, column) in zip(index, self.origins, strict=True):
            part = _part(picture, row, column, self.tile_shape)
            if part.size:
                r, c = max(-row, 0), max(-column, 0)
                tile[r : r + part.shape[0], c : c + part.shape[1]] = part
        return index

    def take(self, frame: NDArray[np.generic], detector: Detector) -> NDArray[np.generic]:
        """Cut the window out of one whole frame, shape (tile, row, column); zero off the panels."""
        index = self.gather(detector)
        return np.where(index >= 0, frame.reshape(-1)[index], frame.dtype.type(0))

    def good(self, detector: Detector) -> NDArray[np.bool_]:
        """Pixels of the window that exist and can be trusted, shape (tile, row, column).

        Worked out once and kept: do not write into it.
        """
        return _good(self, detector)

    def boxes(self, detector: Detector) -> tuple[Box, ...]:
        """Source rectangles that hold the window's pixels, at most one for each tile and panel."""
        n_y, n_x = detector.panel_shape
        found: dict[Box, None] = {}
        for tile in self.gather(detector):
            panel, y, x = np.unravel_index(tile[tile >= 0], (len(detector.panels), n_y, n_x))
            for p in np.unique(panel):
                on = panel == p
                box = Box(
                    panel=int(p),
                    y0=int(y[on].min()),
                    y1=int(y[on].max()) + 1,
                    x0=int(x[on].min()),
                    x1=int(x[on].max()) + 1,
                )
                found[box] = None
        return tuple(found)


def _part(
    picture: NDArray[np.int64], row: int, column: int, shape: tuple[int, int]
) -> NDArray[np.int64]:
    """Cut what a tile shows of the assembled picture; it may hang over the edge."""
    rows = slice(max(row, 0), max(row + shape[0], 0))
    return picture[rows, max(column, 0) : max(column + shape[1], 0)]


@lru_cache(maxsize=8)
def _good(window: Window, detector: Detector) -> NDArray[np.bool_]:
    """Trusted pixels of a window, kept because every batch of a run asks for them."""
    index = window.gather(detector)
    good: NDArray[np.bool_] = (index >= 0) & detector.good().ravel()[index]
    return good


@dataclass(frozen=True, slots=True, kw_only=True)
class TileChoice:
    """Some tiles of the assembled picture, whatever the detector is.

    Parameters
    ----------
    most : int
        So many tiles, as far as the picture has them; 0 for all.
    spread : bool
        Take every other tile of the picture first, as on a chessboard; otherwise the nearest to
        the middle first.

    Raises
    ------
    UsageError
        If the number is negative.

    Examples
    --------
    >>> CENTRE.name, FULL.name, TileChoice(most=9, spread=True).name
    ('centre', 'full', '9 tiles, spread')
    """

    most: int = 1
    spread: bool = False

    def __post_init__(self) -> None:
        if self.most < 0:
            raise UsageError(f"window: expected a number of tiles, found {self.most}; 0 means all")

    @property
    def name(self) -> str:
        """The choice in a word or two."""
        if self.most <= 1:
            return "full" if self.most == 0 else "centre"
        return f"{self.most} tiles{', spread' if self.spread else ''}"

    def window(self, detector: Detector, *, tile_shape: tuple[int, int] = CENTRE_TILE) -> Window:
        """Window of a detector that shows these tiles."""
        return Window.tiled(detector, tile_shape=tile_shape, most=self.most, spread=self.spread)

    def columns(self, detector: Detector) -> NDArray[np.int64]:
        """Places of these tiles among all tiles of a detector, shape (tile,)."""
        place = {origin: number for number, origin in enumerate(Window.tiled(detector).origins)}
        return np.array([place[origin] for origin in self.window(detector).origins], np.int64)


CENTRE, FULL = TileChoice(most=1), TileChoice(most=0)
"""The tile in the middle, and all tiles."""
