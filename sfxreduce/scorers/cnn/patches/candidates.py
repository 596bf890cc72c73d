"""Pixels that stand out, and what lies around each: the only places where a Bragg peak can be.

A frame has millions of pixels and at most some hundred peaks. Mean and noise are taken cell by
cell; a pixel is a candidate if it is the highest of its neighbours and it, or it and its
neighbours together, stand out of the cell. Around each candidate mean and noise are then taken
anew, from the pixels near by that do not stand out themselves, and a small patch is cut out in
units of that noise. It is the same picture whatever the gain, the offset and the background.

A peak broader than the patch looks like background in it. The same search on squares of pixels,
added up, finds those: there they are as sharp as most peaks are on the pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from sfxreduce.scorers.cnn.patches._candidates import PATCH, Rules, candidates_of_tiles

__all__ = ["PATCH", "CandidateFinder", "Candidates"]

# There is room for so many at a time: a few dozen tiles, enough to make a call worth it.
_CANDIDATES_AT_ONCE = 2048
# Kernels are compiled for numbers that the machine adds up itself; all others are converted.
_COMPILED = frozenset(map(np.dtype, "bBhHiIlLqQfd"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Candidates of some events, ordered by event, tile and scale, the most prominent first.

    Parameters
    ----------
    tile : ndarray of int32
        Number of the tile: event times tiles of the window, plus the tile in the window.
    y, x : ndarray of int16
        Pixel in the tile.
    scale : ndarray of uint8
        Pixels a side of what a pixel of the patch stands for.
    prominence : ndarray of float32
        How far it stands out, in units of sigma.
    noise_photons : ndarray of float32
        Sigma of the surroundings in photons; in ADU if the gain is not known.
    patch : ndarray of float16
        Shape (candidate, 9, 9), in units of sigma; zero where no pixel can be trusted.
    """

    tile: NDArray[np.int32]
    y: NDArray[np.int16]
    x: NDArray[np.int16]
    scale: NDArray[np.uint8]
    prominence: NDArray[np.float32]
    noise_photons: NDArray[np.float32]
    patch: NDArray[np.float16]

    def __len__(self) -> int:
        return self.tile.size

    def take(self, rows: slice | NDArray[np.generic]) -> Candidates:
        """Return some of the candidates."""
        return Candidates(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def sharp(self) -> NDArray[np.bool_]:
        """Which of them were found on single pixels, shape (candidate,)."""
        sharp: NDArray[np.bool_] = self.scale == 1
        return sharp


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateFinder:
    """Settings of the search, and the search.

    Parameters
    ----------
    least_prominence : float
        In units of sigma, of the pixel or of the 3 x 3 pixels around it.
    most_per_tile : int
        The most prominent ones are taken, of each scale.
    coarse : int
        Pixels a side of the squares that are searched as well; 1 for none. With 4, peaks of a
        standard deviation of 2.5 to 4 pixels are told from blanks without exception where single
        pixels lost up to all of them (docs/explanation/network.md).
    radius : int
        Of the box around a candidate whose pixels are its surroundings, in pixels.
    floor_photons : float
        Least sigma in photons: single photons are no peaks.
    lowest, highest : float
        Values of a patch are cut off here, in units of sigma.
    """

    least_prominence: float = 4.0
    most_per_tile: int = 32
    coarse: int = 1
    radius: int = 10
    floor_photons: float = 0.5
    lowest: float = -4.0
    highest: float = 16.0

    @property
    def most_of_tile(self) -> int:
        """Most candidates of a tile, whatever their scale."""
        return self.most_per_tile * (1 if self.coarse == 1 else 2)

    def __call__(
        self,
        pixels: NDArray[np.generic],
        good: NDArray[np.bool_],
        *,
        adu_per_photon: float = math.nan,
    ) -> Candidates:
        """Find the candidates of some events.

        Parameters
        ----------
        pixels : ndarray
            Shape (event, tile, y, x), in ADU, of any integer or floating dtype.
        good : ndarray of bool
            Shape (tile, y, x); other pixels are neither candidates nor surroundings.
        adu_per_photon : float
            Gain in ADU; one photon counts as one ADU if it is NaN.

        Examples
        --------
        >>> flat = np.random.default_rng(0).poisson(20, (1, 1, 64, 64))
        >>> flat[0, 0, 30, 40] += 60
        >>> found = CandidateFinder()(flat, np.ones((1, 64, 64), bool), adu_per_photon=1.0)
        >>> int(found.y[0]), int(found.x[0])
        (30, 40)
        """
        gain = self.gain(adu_per_photon)
        tiles = pixels.reshape(-1, *pixels.shape[-2:])
        good = np.ascontiguousarray(good, np.bool_)
        dtype = tiles.dtype if tiles.dtype in _COMPILED else np.dtype(np.float32)
        whole = tiles.dtype.kind in "iub"
        step = max(1, _CANDIDATES_AT_ONCE // max(1, self.most_of_tile))
        parts = []
        # No tiles at all are one part, so that there is something to join.
        for start in range(0, max(len(tiles), 1), step):
            part = np.ascontiguousarray(tiles[start : start + step], dtype)
            *found, patch = candidates_of_tiles(part, good, start, whole, self.rules(gain))
            parts.append((*found, patch.astype(np.float16)))
        counts, places, figures, patches = map(np.concatenate, zip(*parts, strict=True))
        return Candidates(
            tile=np.repeat(np.arange(len(tiles), dtype=np.int32), counts.sum(axis=1)),
            y=places[:, 0].astype(np.int16),
            x=places[:, 1].astype(np.int16),
            scale=np.repeat(
                np.tile(np.array([1, self.coarse], np.uint8), len(tiles)), counts.ravel()
            ),
            prominence=figures[:, 0],
            noise_photons=(figures[:, 1] / gain).astype(np.float32),
            patch=patches,
        )

    @staticmethod
    def gain(adu_per_photon: float) -> float:
        """Gain in ADU that is worked with: one photon counts as one ADU if it is not known."""
        return adu_per_photon if math.isfinite(adu_per_photon) and adu_per_photon > 0 else 1.0

    def rules(self, gain: float) -> Rules:
        """Settings in ADU, for whatever searches."""
        return Rules(
            least_prominence=self.least_prominence,
            most_per_tile=self.most_per_tile,
            coarse=self.coarse,
            radius=self.radius,
            floor=self.floor_photons * gain,
            lowest=self.lowest,
            highest=self.highest,
        )
