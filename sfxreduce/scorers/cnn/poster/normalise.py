"""What the network sees: every pixel in units of its own surroundings' noise.

A frame's numbers change with gain, offset, photon energy, pulse energy and jet thickness; a Bragg
peak stays what it is: a few pixels that stand out of their surroundings. So each pixel becomes
``(value - mean) / sigma``, where mean and sigma belong to the square box around it, counted
without masked pixels and without pixels that themselves stand out. The variance never falls below
that of half a photon, or single photons would pass for peaks on dark frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfxreduce.scorers.cnn.poster._normalise import Numbers, normalise_tiles

__all__ = ["Normalisation", "normalise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """How pixels become noise units.

    Parameters
    ----------
    radius : int
        Half the side of the box in pixels; the box has ``2 * radius + 1`` pixels a side.
    passes : int
        How often mean and variance are computed; before each pass but the first, pixels that
        stand out by more than `reject_sigma` are left out of the sums.
    reject_sigma : float
        In units of sigma.
    floor_photons : float
        Least sigma, in photons. Where the gain is unknown one photon counts as one ADU.
    fewest_pixels : int
        A box with fewer pixels tells nothing: its pixel becomes zero, as a masked one does.
    lowest, highest : float
        Values are cut off here, in units of sigma.
    """

    radius: int = 10
    passes: int = 2
    reject_sigma: float = 4.0
    floor_photons: float = 0.5
    fewest_pixels: int = 25
    lowest: float = -4.0
    highest: float = 16.0


def normalise(
    pixels: NDArray[np.generic],
    good: NDArray[np.bool_],
    *,
    adu_per_photon: float = math.nan,
    how: Normalisation,
) -> NDArray[np.float32]:
    """Express every pixel in units of the noise around it.

    Masked and non-finite pixels never enter a sum and come out as zero: they are as bright as
    their surroundings.

    Parameters
    ----------
    pixels : ndarray
        Shape (event, tile, y, x), in ADU, of any integer or floating dtype.
    good : ndarray of bool
        Shape (tile, y, x); false pixels do not count.
    adu_per_photon : float
        Gain in ADU; NaN if unknown.

    Returns
    -------
    ndarray of float32
        Shape (event, tile, y, x), in units of sigma, without NaN.

    Examples
    --------
    >>> flat = np.full((1, 1, 40, 40), 7, np.int16)
    >>> flat[0, 0, 20, 20] = 1000
    >>> seen = normalise(flat, np.ones((1, 40, 40), bool), how=Normalisation())
    >>> float(seen[0, 0, 20, 20]), float(seen[0, 0, 0, 0])
    (16.0, 0.0)
    """
    gain = adu_per_photon if math.isfinite(adu_per_photon) and adu_per_photon > 0 else 1.0
    numbers = Numbers(
        radius=how.radius,
        passes=how.passes,
        fewest_pixels=np.float32(max(how.fewest_pixels, 2)),  # one pixel has no variance
        reject_sigma=np.float32(how.reject_sigma),
        least_variance=np.float32((how.floor_photons * gain) ** 2),
        lowest=np.float32(how.lowest),
        highest=np.float32(how.highest),
    )
    small = pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 4
    dtype = pixels.dtype.newbyteorder("=") if small else np.dtype(np.float32)
    out = np.zeros(pixels.shape, np.float32)
    normalise_tiles(
        np.ascontiguousarray(pixels, dtype), np.ascontiguousarray(good, np.bool_), numbers, out
    )
    return out
