"""Bragg reflections that one crystal in one orientation sends to the detector.

Intensities are absolute. With I0 photons per area, a reflection at distance e from the Ewald
sphere receives::

    N = I0 r_e^2 P |F|^2 exp(-B s^2 / 2) wavelength^2 V_crystal / V_cell^2 p(e)

which is Darwin's formula [1]_ before it is integrated over a rotation. P is the polarisation
factor, and p(e) the profile of the reflection along the normal of the sphere, a Gaussian whose
variance sums what finite domains, mosaicity, divergence and bandwidth contribute [2]_.

References
----------
.. [1] C. G. Darwin, Philos. Mag. 27 (1914) 315. doi:10.1080/14786440208635093
.. [2] T. A. White et al., Acta Cryst. D69 (2013) 1231. doi:10.1107/S0907444913013620
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.simulate.crystal import Structure, squared_structure_factor

__all__ = ["ELECTRON_RADIUS_A", "HC_EV_A", "Beam", "Crystal", "Reflections", "excited"]

HC_EV_A = 12398.419843320026
"""Planck's constant times the speed of light, in eV ångström."""
ELECTRON_RADIUS_A = 2.8179403205e-5
"""Classical electron radius, in ångström."""

_REACH = 4.0
"""Reflections further from the Ewald sphere than this many widths are not excited."""
_FAINTEST = 0.05
"""Reflections that send fewer photons than this to the detector are left out."""
_SCHERRER = 0.376
"""Standard deviation of the profile of a domain of unit length: 0.886 FWHM over 2.355."""


class Crystal(NamedTuple):
    """One crystal in the beam.

    ``reciprocal`` holds a*, b*, c* as rows in the laboratory frame (x and y as in
    `sfxreduce.run.detector`, z along the beam) in 1/ångström; ``volume_a3`` is what the beam meets;
    ``domain_a`` is the size of a coherent domain in ångström; ``mosaicity`` in radians;
    ``fluence`` in photons per square ångström.
    """

    reciprocal: NDArray[np.float64]
    volume_a3: float
    domain_a: float
    mosaicity: float
    b_factor_a2: float
    fluence: float


class Beam(NamedTuple):
    """X-ray beam: wavelength in ångström, relative bandwidth, divergence in radians.

    Both are standard deviations. ``polarisation`` is the share polarised along x; ``s_max`` is
    the largest 1/d that reaches the detector.
    """

    wavelength_a: float
    bandwidth: float
    divergence: float
    polarisation: float
    s_max: float


class Reflections(NamedTuple):
    """Reflections on their way to the detector, one row each.

    ``hkl`` and ``direction`` (of the scattered beam, unit length) have shape (row, 3);
    ``photons`` are expected; ``radial`` and ``tangential`` are angular spreads (standard
    deviations) in radians.
    """

    hkl: NDArray[np.int64]
    direction: NDArray[np.float64]
    photons: NDArray[np.float64]
    radial: NDArray[np.float64]
    tangential: NDArray[np.float64]

    def take(self, which: NDArray[np.generic]) -> Reflections:
        """Return some of the reflections."""
        return Reflections(*(column[which] for column in self))


def excited(crystal: Crystal, beam: Beam, form: Structure) -> Reflections:
    """Reflections that are close enough to the Ewald sphere to be seen.

    Returns
    -------
    Reflections
        Ordered by Miller indices.
    """
    disc = math.pi * beam.s_max**2
    shell = 2.0 * _REACH * _width(beam.s_max, crystal, beam)
    capacity = 256 + int(2.0 * disc * shell * form.volume_a3)
    while True:
        rows = np.empty((capacity, 9))
        n = _fill(crystal, beam, form, rows)
        if n <= capacity:
            break
        capacity = n
    rows = rows[:n]
    return Reflections(
        hkl=np.rint(rows[:, :3]).astype(np.int64),
        direction=rows[:, 3:6],
        photons=rows[:, 6],
        radial=rows[:, 7],
        tangential=rows[:, 8],
    )


@compiled
def _width(s: float, crystal: Crystal, beam: Beam) -> float:
    """Width of a reflection along the normal of the Ewald sphere in 1/ångström."""
    sin2 = (s * beam.wavelength_a / 2.0) ** 2
    size = _SCHERRER / crystal.domain_a
    angle2 = (crystal.mosaicity**2 + beam.divergence**2) * s * s * (1.0 - sin2)
    colour = beam.bandwidth * 2.0 * sin2 / beam.wavelength_a
    return math.sqrt(size * size + angle2 + colour * colour)


@compiled
def _crossing(
    line: tuple[float, float, float], radius: float, reach: float, far: bool
) -> tuple[int, int]:
    """First and last l of a lattice line inside the Ewald sphere's shell, on one of its two sides.

    ``line`` holds the coefficients of ``|s + k0|^2 = a l^2 + 2 b l + c``.
    """
    a, b, c = line
    outer = b * b - a * (c - (radius + reach) ** 2)
    if outer < 0.0:
        return 0, -1
    outer = math.sqrt(outer)
    inner = b * b - a * (c - (radius - reach) ** 2)
    if inner < 0.0:
        # The line grazes the shell: one piece, given to the near side.
        return (0, -1) if far else (math.ceil((-b - outer) / a), math.floor((-b + outer) / a))
    inner = math.sqrt(inner)
    if far:
        return math.ceil((-b + inner) / a), math.floor((-b + outer) / a)
    return math.ceil((-b - outer) / a), math.floor((-b - inner) / a)


@compiled
def _fill(crystal: Crystal, beam: Beam, form: Structure, rows: NDArray[np.float64]) -> int:
    """Write excited reflections into `rows` while there is room; return how many there are."""
    star = crystal.reciprocal
    radius = 1.0 / beam.wavelength_a
    reach = _REACH * _width(beam.s_max, crystal, beam)
    cc = star[2, 0] ** 2 + star[2, 1] ** 2 + star[2, 2] ** 2
    h_end, k_end = _largest_indices(star, beam.s_max)
    n = 0
    for h in range(-h_end, h_end + 1):
        for k in range(-k_end, k_end + 1):
            x = h * star[0, 0] + k * star[1, 0]
            y = h * star[0, 1] + k * star[1, 1]
            z = h * star[0, 2] + k * star[1, 2]
            along = x * star[2, 0] + y * star[2, 1] + z * star[2, 2]
            if x * x + y * y + z * z - along * along / cc > beam.s_max**2:
                continue
            out = x * x + y * y + (z + radius) ** 2
            line = (cc, along + radius * star[2, 2], out)
            for side in range(2):
                first, last = _crossing(line, radius, reach, side == 1)
                for l in range(first, last + 1):  # noqa: E741 - Miller index
                    n += _write((h, k, l), crystal, beam, form, rows[n : n + 1])
    return n


@compiled
def _largest_indices(star: NDArray[np.float64], s_max: float) -> tuple[int, int]:
    """Largest h and k within a sphere: their lattice planes are 1/a and 1/b apart."""
    direct = np.linalg.inv(star)
    a = math.sqrt(direct[0, 0] ** 2 + direct[1, 0] ** 2 + direct[2, 0] ** 2)
    b = math.sqrt(direct[0, 1] ** 2 + direct[1, 1] ** 2 + direct[2, 1] ** 2)
    return int(a * s_max), int(b * s_max)


@compiled
def _write(
    hkl: tuple[int, int, int],
    crystal: Crystal,
    beam: Beam,
    form: Structure,
    row: NDArray[np.float64],
) -> int:
    """Write one reflection into the row, if there is one; return whether it sends photons."""
    star = crystal.reciprocal
    h, k, l = hkl  # noqa: E741 - Miller indices
    x = h * star[0, 0] + k * star[1, 0] + l * star[2, 0]
    y = h * star[0, 1] + k * star[1, 1] + l * star[2, 1]
    z = h * star[0, 2] + k * star[1, 2] + l * star[2, 2]
    s = math.sqrt(x * x + y * y + z * z)
    if s > beam.s_max or s == 0.0:
        return 0
    wavelength = beam.wavelength_a
    length = math.sqrt(x * x + y * y + (z + 1.0 / wavelength) ** 2)
    width = _width(s, crystal, beam)
    excitation = (length - 1.0 / wavelength) / width
    squared = squared_structure_factor(h, k, l, s, form)
    nx, ny, nz = x / length, y / length, (z + 1.0 / wavelength) / length
    partiality = math.exp(-0.5 * excitation * excitation) / (math.sqrt(2.0 * math.pi) * width)
    polarised = beam.polarisation * (1.0 - nx * nx) + (1.0 - beam.polarisation) * (1.0 - ny * ny)
    scale = crystal.fluence * (ELECTRON_RADIUS_A * wavelength / form.volume_a3) ** 2
    photons = scale * crystal.volume_a3 * squared * polarised * partiality
    photons *= math.exp(-0.5 * crystal.b_factor_a2 * s * s)
    if photons < _FAINTEST or nz <= 0.0:
        return 0
    if row.shape[0]:
        sin_theta = s * wavelength / 2.0
        size = _SCHERRER / crystal.domain_a * wavelength
        turn = 2.0 * sin_theta * crystal.mosaicity
        colour = beam.bandwidth * 2.0 * sin_theta * math.sqrt(1.0 - sin_theta * sin_theta)
        row[0, 0], row[0, 1], row[0, 2] = h, k, l
        row[0, 3], row[0, 4], row[0, 5], row[0, 6] = nx, ny, nz, photons
        row[0, 7] = math.sqrt(size**2 + (turn * sin_theta) ** 2 + colour**2 + beam.divergence**2)
        row[0, 8] = math.sqrt(size**2 + turn**2 + beam.divergence**2)
    return 1
