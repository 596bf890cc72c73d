"""Crystal forms: unit cell, symmetry, and structure factors that stay the same in every event.

Structure factors follow Wilson's statistics [1]_: the squared modulus of acentric reflections is
exponential, that of centric ones a chi-square of one degree of freedom, about a mean set by the
atoms in the cell, their form factors [2]_ and the modulation of protein structure at low
angles [3]_. They are hashed from the Miller indices' representative under Laue symmetry, so that
equivalents and Friedel mates are equal without a table of millions of reflections.

References
----------
.. [1] A. J. C. Wilson, Acta Cryst. 2 (1949) 318. doi:10.1107/S0365110X49000813
.. [2] International Tables for Crystallography C (2006) 6.1.1.4. doi:10.1107/97809553602060000600
.. [3] A. N. Popov, G. P. Bourenkov, Acta Cryst. D59 (2003) 1145. doi:10.1107/S0907444903008163
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.errors import UsageError
from sfxreduce.simulate.random import hashed, key_of, normal, uniform
from sfxreduce.simulate.symmetry import CENTRINGS, is_absent, rotations

__all__ = ["CrystalForm", "Structure", "form_factor_squared", "squared_structure_factor"]

_FORM_FACTORS = {
    "C": ((2.31, 20.8439), (1.02, 10.2075), (1.5886, 0.5687), (0.865, 51.6512), (0.2156, 0.0)),
    "N": ((12.2126, 0.0057), (3.1322, 9.8933), (2.0125, 28.9975), (1.1663, 0.5826), (-11.529, 0.0)),
    "O": ((3.0485, 13.2771), (2.2868, 5.7011), (1.5463, 0.3239), (0.867, 32.9089), (0.2508, 0.0)),
}
_PROTEIN = {"C": 0.64, "N": 0.17, "O": 0.19}
_A3_PER_ATOM_DA = 13.9
"""Mass per non-hydrogen atom of an average protein, hydrogens included, in dalton."""

# Mean |F|^2 of proteins over that of atoms at random: bulk solvent takes contrast at low angles,
# the dip near 6 Å and the rise at 4.5 Å are those of secondary structure [3].
_MODULATION_S = (0.0, 0.05, 0.10, 0.155, 0.185, 0.22, 0.26, 0.30, 0.35, 0.42, 2.0)
_MODULATION = (0.60, 0.55, 0.42, 0.28, 0.60, 1.10, 1.05, 0.88, 0.92, 1.0, 1.0)
_N_SHELLS = 512
_S_END = 2.0


def form_factor_squared(element: str, s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared form factor of a carbon, nitrogen or oxygen atom, in electrons squared.

    Parameters
    ----------
    s : ndarray
        1/d = 2 sin(theta) / wavelength, in 1/ångström.
    """
    f = sum(a * np.exp(-b * s * s / 4.0) for a, b in _FORM_FACTORS[element])
    return np.asarray(f, np.float64) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CrystalForm:
    """Unit cell and symmetry of a crystal, and how its atoms scatter on average.

    Parameters
    ----------
    name : str
        Structure factors are a function of this name.
    cell : tuple of float
        a, b, c in ångström; alpha, beta, gamma in degrees.
    point_group : str
        One of `sfxreduce.simulate.symmetry.POINT_GROUPS`.
    centring : str
        One of P, A, C, I, F, R.
    b_factor_a2 : float
        Overall B factor in ångström squared.
    matthews_a3_per_da : float
        Cell volume per dalton of protein.
    source : str
        Where the cell was published.

    Raises
    ------
    UsageError
        If the centring is not known or the cell has no volume.
    """

    name: str
    cell: tuple[float, float, float, float, float, float]
    point_group: str
    centring: str
    b_factor_a2: float
    matthews_a3_per_da: float
    source: str

    def __post_init__(self) -> None:
        if self.centring not in CENTRINGS or not self.volume_a3 > 0:
            raise UsageError(
                f"crystal form '{self.name}': expected a cell with volume and a centring of "
                f"{sorted(CENTRINGS)}, found {self.cell} and '{self.centring}'"
            )

    @property
    def direct(self) -> NDArray[np.float64]:
        """Cell vectors as rows, in ångström; a along x, b in the xy plane."""
        a, b, c = self.cell[:3]
        ca, cb, cg = (math.cos(math.radians(angle)) for angle in self.cell[3:])
        sg = math.sqrt(1.0 - cg * cg)
        cx, cy = c * cb, c * (ca - cb * cg) / sg
        cz = math.sqrt(max(c * c - cx * cx - cy * cy, 0.0))
        return np.array([[a, 0.0, 0.0], [b * cg, b * sg, 0.0], [cx, cy, cz]])

    @property
    def reciprocal(self) -> NDArray[np.float64]:
        """Reciprocal cell vectors as rows, in 1/ångström."""
        return np.asarray(np.linalg.inv(self.direct).T, np.float64)

    @property
    def volume_a3(self) -> float:
        """Volume of the cell in cubic ångström."""
        return float(np.linalg.det(self.direct))

    def mean_intensity(self, s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean squared structure factor of a general reflection without the B factor, in electrons.

        Parameters
        ----------
        s : ndarray
            1/d in 1/ångström.
        """
        n_atoms = self.volume_a3 / (self.matthews_a3_per_da * _A3_PER_ATOM_DA)
        per_atom = sum(share * form_factor_squared(e, s) for e, share in _PROTEIN.items())
        modulation = np.interp(s, _MODULATION_S, _MODULATION)
        # Lattice points add in phase: allowed reflections of a centred cell make up for the absent.
        return np.asarray(n_atoms * CENTRINGS[self.centring] * per_atom * modulation)

    def structure(self) -> Structure:
        """Tables for the compiled kernels."""
        shells = np.linspace(0.0, _S_END, _N_SHELLS)
        return Structure(
            key=key_of("structure factors", self.name),
            rotations=rotations(self.point_group),
            centring=ord(self.centring),
            mean_intensity=self.mean_intensity(shells),
            volume_a3=self.volume_a3,
        )


class Structure(NamedTuple):
    """Structure factors of a crystal form, as the kernels take them."""

    key: np.uint64
    rotations: NDArray[np.int64]
    centring: int
    mean_intensity: NDArray[np.float64]
    volume_a3: float


@compiled
def squared_structure_factor(h: int, k: int, l: int, s: float, form: Structure) -> float:  # noqa: E741
    """|F|^2 of a reflection in electrons squared, without the B factor; zero if it is absent."""
    if is_absent(h, k, l, form.centring):
        return 0.0
    best = -1
    centric = False
    weight = 0
    for i in range(form.rotations.shape[0]):
        r = form.rotations[i]
        p = h * r[0, 0] + k * r[1, 0] + l * r[2, 0]
        q = h * r[0, 1] + k * r[1, 1] + l * r[2, 1]
        t = h * r[0, 2] + k * r[1, 2] + l * r[2, 2]
        packed = ((p + 2048) << 24) + ((q + 2048) << 12) + (t + 2048)
        friedel = ((2048 - p) << 24) + ((2048 - q) << 12) + (2048 - t)
        best = max(best, packed, friedel)
        weight += p == h and q == k and t == l
        centric |= p == -h and q == -k and t == -l
    u = uniform(form.key, hashed(form.key, np.uint64(best)))
    shell = min(s / _S_END * (_N_SHELLS - 1), _N_SHELLS - 1.0)
    squared: float = normal(u) ** 2 if centric else -math.log(u)
    mean: float = form.mean_intensity[int(shell)]
    return squared * weight * mean
