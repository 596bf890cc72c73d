"""Numbers of an HDF5 file in the units of this package, whatever units they are written in."""

from __future__ import annotations

import math
from collections.abc import Mapping

import h5py
import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError
from sfxreduce.io.readers.hdf5.file import Hdf5File

__all__ = ["EV_ANGSTROM", "in_ev", "in_metres", "in_mj", "in_pixels", "in_radians", "units_of"]

JOULE_PER_EV = 1.602176634e-19  # exact, SI 2019
EV_ANGSTROM = 12398.419843320026  # h c, exact, SI 2019

PER_METRE: Mapping[str, float] = {
    **dict.fromkeys(("m", "metre", "metres", "meter", "meters"), 1.0),
    **dict.fromkeys(("mm", "millimetre", "millimetres", "millimeter", "millimeters"), 1e3),
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometre", "micrometer"), 1e6),
    **dict.fromkeys(("nm", "nanometre", "nanometres", "nanometer", "nanometers"), 1e9),
    **dict.fromkeys(("angstrom", "angstroms", "Angstrom", "ANGSTROM", "Å", "A"), 1e10),
}
"""Units in a metre: dividing by them gives the nearest length, multiplying by a factor does not."""


EV: Mapping[str, float] = {
    **dict.fromkeys(("eV", "ev", "EV", "electronvolt"), 1.0),
    **dict.fromkeys(("keV", "kev", "KEV", "kiloelectronvolt"), 1e3),
    **dict.fromkeys(("J", "joule", "joules", "Joule"), 1 / JOULE_PER_EV),
}
MJ: Mapping[str, float] = {
    **dict.fromkeys(("J", "joule", "joules", "Joule"), 1e3),
    **dict.fromkeys(("mJ", "millijoule", "millijoules"), 1.0),
    **dict.fromkeys(("uJ", "µJ", "μJ", "microjoule", "microjoules"), 1e-3),
}
RADIANS: Mapping[str, float] = {
    **dict.fromkeys(("deg", "degree", "degrees", "°"), math.pi / 180),
    **dict.fromkeys(("rad", "radian", "radians"), 1.0),
}
PIXELS = ("pixel", "pixels", "px")

LEAST_EV, MOST_EV = 100.0, 200_000.0
"""Photon energies of X-rays, 0.1 to 200 keV: outside, a number is in another unit than it says."""

MOST_DISTANCE_M, MOST_PIXEL_M = 50.0, 0.01
"""Farther away, or larger, no detector is: such a number is in another unit than it says."""


def units_of(file: Hdf5File, dataset: h5py.Dataset, *, attribute: str = "units") -> str:
    """Units that a dataset says it has; empty if it does not say."""
    found = file.attempt(lambda: dataset.attrs.get(attribute, ""), str(dataset.name))
    one = found.ravel()[0] if isinstance(found, np.ndarray) and found.size == 1 else found
    text = one.decode(errors="replace") if isinstance(one, bytes) else str(one)
    return text.strip()


def in_metres(
    file: Hdf5File,
    dataset: h5py.Dataset,
    values: NDArray[np.float64],
    *,
    most: float,
    attribute: str = "units",
) -> NDArray[np.float64]:
    """Lengths in metres; those that say no unit are.

    Parameters
    ----------
    attribute : str
        Of the dataset, that names the unit.
    most : float
        Largest length that can be meant, in metres.

    Raises
    ------
    SchemaError
        If the unit is none of length, or a length is larger.
    """
    unit = units_of(file, dataset, attribute=attribute) or "m"
    lengths = values / _factor(file, dataset, unit, PER_METRE)
    _check(file, dataset, lengths, limits=(-most, most), unit="m")
    return lengths


def in_radians(
    file: Hdf5File, dataset: h5py.Dataset, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Angles in radians; those that say no unit are degrees, as NeXus has it."""
    unit = units_of(file, dataset) or "deg"
    return values * _factor(file, dataset, unit, RADIANS)


def in_pixels(
    file: Hdf5File, dataset: h5py.Dataset, values: NDArray[np.float64], *, pixel_size: float
) -> NDArray[np.float64]:
    """Positions on a detector in pixels, of lengths too; those that say no unit are."""
    unit = units_of(file, dataset)
    if unit in ("", *PIXELS):
        return values
    return values / _factor(file, dataset, unit, PER_METRE) / pixel_size


def in_ev(
    file: Hdf5File, dataset: h5py.Dataset, values: NDArray[np.float64], *, usual: str
) -> NDArray[np.float64]:
    """Photon energies in eV, of wavelengths too; NaN where there is none.

    Parameters
    ----------
    usual : str
        Unit of numbers that say none: "eV", "angstrom", or "J", with which some programs write eV
        all the same.

    Raises
    ------
    SchemaError
        If the unit is none of energy or length, or the energies are not those of X-rays.
    """
    unit = units_of(file, dataset) or usual
    known = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    if unit in PER_METRE:
        energies = EV_ANGSTROM / (known * (1e10 / PER_METRE[unit]))
    elif unit == usual == "J":
        # One joule is 6e18 eV: no photon comes near it from either side.
        energies = np.where(known > 1, known, known / JOULE_PER_EV)
    else:
        energies = known * _factor(file, dataset, unit, EV)
    _check(file, dataset, energies, limits=(LEAST_EV, MOST_EV), unit="eV")
    return energies


def in_mj(
    file: Hdf5File, dataset: h5py.Dataset, values: NDArray[np.float64], *, usual: str
) -> NDArray[np.float64]:
    """Pulse energies in mJ.

    Parameters
    ----------
    usual : str
        Unit of numbers that say none.
    """
    return values * _factor(file, dataset, units_of(file, dataset) or usual, MJ)


def _factor(file: Hdf5File, dataset: h5py.Dataset, unit: str, known: Mapping[str, float]) -> float:
    if unit not in known:
        usual = ("m", "mm", "um", "nm", "angstrom", "eV", "keV", "J", "mJ", "uJ", "deg", "rad")
        examples = [name for name in usual if name in known]
        raise SchemaError(
            f"{file.path}: {dataset.name}: expected units {', '.join(examples)}, found "
            f"'{unit[:40]}'; correct its attribute 'units'"
        )
    return known[unit]


def _check(
    file: Hdf5File,
    dataset: h5py.Dataset,
    values: NDArray[np.float64],
    *,
    limits: tuple[float, float],
    unit: str,
) -> None:
    """Refuse numbers of which the usual one cannot be meant in the unit they are in."""
    known = values[np.isfinite(values)]
    if not known.size:
        return
    usual = float(np.median(known))
    low, high = limits
    if not low <= usual <= high:
        raise SchemaError(
            f"{file.path}: {dataset.name}: expected {max(low, 0):g} to {high:g} {unit}, found "
            f"{usual:.4g} {unit}; correct the number or its attribute 'units'"
        )
