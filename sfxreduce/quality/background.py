"""How bright a run is between the Bragg peaks, and how that falls off from the beam.

Everything rests on the means of small cells: where a pixel sees less than one photon a frame, its
median is zero whatever the background. Medians over frames and over cells then leave out the peaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sfxreduce.quality.frame_statistics import CELL, cell_moments

__all__ = ["Background", "background_of"]

MOST_RINGS = 64
"""Rings of equal width around the beam; fewer on small frames, as a ring is not below a cell.
Chosen, not measured."""

FEWEST_CELLS_IN_RING = 3  # the fewest whose median leaves one out


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """What was found.

    Parameters
    ----------
    adu : float
        Level of the whole frame in ADU; NaN if nothing could be measured.
    radii : bytes
        Distance of every ring from the beam in pixels, as float64.
    rings : bytes
        Level of every ring in ADU, as float64; NaN where a ring has too few pixels.
    """

    adu: float = math.nan
    radii: bytes = field(default=b"", repr=False)
    rings: bytes = field(default=b"", repr=False)

    @property
    def ring_radius_px(self) -> NDArray[np.float64]:
        """Distance from the beam in pixels, of half of what was looked at in every ring."""
        return np.frombuffer(self.radii, np.dtype(np.float64))

    @property
    def ring_adu(self) -> NDArray[np.float64]:
        """Level of every ring in ADU."""
        return np.frombuffer(self.rings, np.dtype(np.float64))


def background_of(
    frames: NDArray[np.generic], good: NDArray[np.bool_], *, radius: NDArray[np.float64]
) -> Background:
    """Level of the whole frame and of rings around the beam.

    Parameters
    ----------
    frames : ndarray
        Shape (event, y, x) or (event, panel, y, x), in ADU.
    good : ndarray of bool
        Shape of a frame.
    radius : ndarray of float
        Distance of every pixel from the beam in pixels, shape of a frame.

    Examples
    --------
    >>> side = np.arange(-80, 80) + 0.5
    >>> radius = np.hypot(side[:, None], side)
    >>> frames = np.stack([100 - radius / 2] * 4)
    >>> found = background_of(frames, np.ones((160, 160), bool), radius=radius)
    >>> bool(np.nanmax(abs(found.ring_adu - (100 - found.ring_radius_px / 2))) < 1e-6)
    True
    """
    means = np.array([cell_moments(frame, good)[0].ravel() for frame in frames])
    if not np.isfinite(means).any():
        return Background()
    level = np.median([np.nanmedian(mean) for mean in means if np.isfinite(mean).any()])
    whole = np.isfinite(means).any(axis=0)
    usual = np.nanmedian(means[:, whole], axis=0)
    distance = cell_moments(radius, np.ones_like(good))[0].ravel()[whole]
    width = max(float(radius.max()) / MOST_RINGS, float(CELL))
    ring = np.floor(distance / width).astype(np.int64)
    n_rings = math.ceil(float(radius.max()) / width)
    # Where no cell tells otherwise, a ring lies in the middle between its edges.
    radii, rings = (np.arange(n_rings) + 0.5) * width, np.full(n_rings, math.nan)
    for r in range(n_rings):
        inside = ring == r
        if np.count_nonzero(inside) >= FEWEST_CELLS_IN_RING:
            # Cells do not fill a narrow ring evenly; where the level falls off, medians match.
            radii[r], rings[r] = np.median(distance[inside]), np.median(usual[inside])
    return Background(adu=float(level), radii=radii.tobytes(), rings=rings.tobytes())
