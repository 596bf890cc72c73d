"""Scattering that is there without a crystal: jet, air, apertures, jet streaks, powder rings.

Levels are absolute: photons per pixel = incident photons x molecules per area x r_e^2 F^2(s) x
polarisation x solid angle. The scattering of liquid water per molecule follows measured
curves [1]_, that of a lipid mesophase adds the diffuse ring of molten chains near 4.5 Å [2]_, and
air is nitrogen with the interference of its two atoms. Powder rings are those of hexagonal
ice [3]_ and of sodium chloride; a coarse powder also shows single grains.

References
----------
.. [1] G. N. I. Clark et al., Proc. Natl Acad. Sci. USA 107 (2010) 14003.
   doi:10.1073/pnas.1006599107
.. [2] U. Weierstall et al., Nat. Commun. 5 (2014) 3309. doi:10.1038/ncomms4309
.. [3] D. W. Moreau et al., Acta Cryst. D77 (2021) 540. doi:10.1107/S2059798321001170
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.simulate.crystal import form_factor_squared
from sfxreduce.simulate.excitation import ELECTRON_RADIUS_A

__all__ = [
    "ICE",
    "LIPID_MESOPHASE",
    "SALT",
    "WATER",
    "Medium",
    "PowderKind",
    "Streak",
    "air_per_mm",
    "scattering_angle_factors",
    "streak_at",
]

_NITROGEN_BOND_A = 1.098
_AIR_MOLECULES_PER_A3 = 2.46e-5
_A_PER_UM = 1e4
_A_PER_MM = 1e7


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """What carries the crystals.

    Parameters
    ----------
    q : tuple of float
        Momentum transfer 2 pi / d in 1/ångström, ascending.
    electrons_squared : tuple of float
        Scattering at these q per volume of one water molecule, in electrons squared.
    """

    name: str
    q: tuple[float, ...]
    electrons_squared: tuple[float, ...]

    def per_um(self, s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Differential cross-section per area of one micrometre of it, in 1/steradian.

        Parameters
        ----------
        s : ndarray
            1/d in 1/ångström.
        """
        water_molecules_per_a3 = 0.0334
        squared = np.interp(2.0 * math.pi * s, self.q, self.electrons_squared)
        return np.asarray(squared * ELECTRON_RADIUS_A**2 * water_molecules_per_a3 * _A_PER_UM)


WATER = Medium(
    name="water",
    q=(0.0, 0.5, 0.9, 1.2, 1.5, 1.75, 2.0, 2.25, 2.5, 2.8, 3.2, 3.7, 4.3, 5.0, 6.0, 8.0),
    electrons_squared=(
        *(6.5, 7.0, 10.0, 17.0, 32.0, 51.0, 65.0, 62.0),
        *(54.0, 47.0, 38.0, 29.0, 22.0, 17.0, 12.0, 7.0),
    ),
)
LIPID_MESOPHASE = Medium(
    name="lipid mesophase",
    q=(0.0, 0.1, 0.2, 0.4, 0.8, 1.1, 1.25, 1.4, 1.55, 1.75, 2.0, 2.3, 2.8, 3.7, 5.0, 8.0),
    electrons_squared=(
        *(60.0, 45.0, 22.0, 11.0, 10.0, 22.0, 42.0, 62.0),
        *(56.0, 44.0, 41.0, 35.0, 30.0, 21.0, 14.0, 7.0),
    ),
)


def air_per_mm(s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differential cross-section per area of one millimetre of air, in 1/steradian.

    Parameters
    ----------
    s : ndarray
        1/d in 1/ångström.
    """
    phase = 2.0 * math.pi * s * _NITROGEN_BOND_A
    squared = 2.0 * form_factor_squared("N", s) * (1.0 + np.sinc(phase / math.pi))
    return np.asarray(squared * ELECTRON_RADIUS_A**2 * _AIR_MOLECULES_PER_A3 * _A_PER_MM)


def scattering_angle_factors(
    x: NDArray[np.float64], y: NDArray[np.float64], distance_px: float, polarisation: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sine of half the scattering angle, and solid angle times polarisation, of every pixel.

    Parameters
    ----------
    x, y : ndarray
        Position of the pixels from the beam, in pixels.
    distance_px : float
        Detector distance in pixels.
    polarisation : float
        Share of the beam polarised along x.

    Returns
    -------
    sin_theta, weight : ndarray
        `weight` in steradian.
    """
    r2 = x * x + y * y
    d2 = distance_px * distance_px
    cos_two_theta = distance_px / np.sqrt(r2 + d2)
    sin_theta = np.sqrt(np.maximum(1.0 - cos_two_theta, 0.0) / 2.0)
    level, upright = x * x / (r2 + d2), y * y / (r2 + d2)
    polarised = polarisation * (1.0 - level) + (1.0 - polarisation) * (1.0 - upright)
    return sin_theta, polarised * cos_two_theta**3 / d2


@dataclass(frozen=True, slots=True, kw_only=True)
class PowderKind:
    """A powder: its spacings in ångström, strongest ring 1, and how wide a ring is in pixels."""

    name: str
    d_a: tuple[float, ...]
    relative: tuple[float, ...]
    width_px: float


ICE = PowderKind(
    name="ice",
    d_a=(3.90, 3.67, 3.44, 2.67, 2.25, 2.07, 1.95, 1.92),
    relative=(1.0, 0.55, 0.8, 0.25, 0.45, 0.3, 0.15, 0.15),
    width_px=2.5,
)
SALT = PowderKind(
    name="salt",
    d_a=(3.258, 2.821, 1.994, 1.701, 1.628),
    relative=(0.1, 1.0, 0.6, 0.05, 0.15),
    width_px=1.0,
)


class Streak(NamedTuple):
    """Light that the surface of the jet throws across the beam centre.

    ``photons`` at the centre of the streak; ``angle`` of its direction in radians; ``length``,
    ``width`` and ``fringe`` (period of the interference along it) in pixels; ``phase`` in radians.
    """

    photons: float
    angle: float
    length: float
    width: float
    fringe: float
    phase: float


@compiled
def streak_at(x: float, y: float, streak: Streak) -> float:
    """Photons that a streak sends to the pixel at (x, y), in pixels from the beam."""
    along = x * math.cos(streak.angle) + y * math.sin(streak.angle)
    across = y * math.cos(streak.angle) - x * math.sin(streak.angle)
    width = streak.width * (1.0 + 0.5 * abs(along) / streak.length)
    if abs(across) > 4.0 * width or abs(along) > 20.0 * streak.length:
        return 0.0
    fringes = 1.0 + math.cos(2.0 * math.pi * along / streak.fringe + streak.phase)
    decay = (1.0 + (along / streak.length) ** 2) ** -1.5
    value: float = streak.photons * decay * fringes * math.exp(-0.5 * (across / width) ** 2)
    return value
