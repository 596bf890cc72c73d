"""The statements of a CrystFEL geometry file, one a line, and the values they may have.

The format is described in CrystFEL's manual page ``crystfel_geometry`` [1]_.

References
----------
.. [1] T. A. White et al., J. Appl. Cryst. 45 (2012) 335. doi:10.1107/S0021889812002312
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sfxreduce.errors import SchemaError

__all__ = [
    "BadValue",
    "GeometryValue",
    "Location",
    "Statement",
    "bits",
    "boolean",
    "count",
    "dimension",
    "energy",
    "length",
    "names",
    "number",
    "offset",
    "path",
    "statements",
    "vector",
    "wavelength",
    "word",
]

EV_ANGSTROM = 12398.419843320026
"""Photon energy in eV times wavelength in ångström: h c, exact, SI 2019."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(r"\s*([+-]?\s*(?:\d+\.?\d*|\.\d+)?(?:[eE][+-]?\d+)?)\s*([xyz])\s*")
_LINE_END = re.compile(r"\r\n|\r|\n")


class BadValue(ValueError):
    """A value that is none of its kind.

    Parameters
    ----------
    expected : str
        What it should have been, in words.
    offset : int
        Of the first character that does not fit.
    """

    def __init__(self, expected: str, offset: int = 0) -> None:
        super().__init__(expected)
        self.offset = offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where in a geometry file something stands.

    Parameters
    ----------
    file : str
        As the user named it.
    line, column : int
        Counted from 1.
    """

    file: str
    line: int
    column: int

    def error(self, problem: str) -> SchemaError:
        """Return the error that names this place."""
        return SchemaError(f"{self.file}:{self.line}:{self.column}: {problem}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One ``owner/key = value``.

    Parameters
    ----------
    owner : str
        Panel or bad region; empty for what stands for the file, or for all panels that follow.
    at, value_at : Location
        Where the statement and its value begin.
    """

    owner: str
    key: str
    value: str
    at: Location
    value_at: Location


def statements(text: str, *, file: str) -> Iterator[Statement]:
    """Statements of a geometry file in order; comments begin with a semicolon.

    Raises
    ------
    SchemaError
        If a line is neither.
    """
    for number_, line in enumerate(_LINE_END.split(text), start=1):
        left = line.partition(";")[0]
        if not left.strip():
            continue
        name, equals, value = left.partition("=")
        first = len(left) - len(left.lstrip()) + 1
        at = Location(file=file, line=number_, column=first)
        if not equals:
            raise at.error(f"expected 'name = value' or a comment, found '{left.strip()[:60]}'")
        owner, slash, key = name.strip().rpartition("/")
        if not key or (slash and not owner):
            raise at.error(f"expected a name before '=', found '{name.strip()[:60]}'")
        column = len(name) + 2 + len(value) - len(value.lstrip())
        yield Statement(
            owner=owner,
            key=key,
            value=value.strip(),
            at=at,
            value_at=Location(file=file, line=number_, column=column),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryValue:
    """A number, or where a data file has it.

    Parameters
    ----------
    value : float
        In metres or eV; NaN if it stands in the data file.
    path : str
        Of the dataset; empty if the number is given.
    scale : float
        What turns the dataset's numbers into metres, eV, or ångström.
    is_wavelength : bool
        Whether these numbers are wavelengths.
    """

    value: float = math.nan
    path: str = ""
    scale: float = 1.0
    is_wavelength: bool = False

    def of(self, stored: float) -> float:
        """Metres or eV of a number of the dataset.

        Examples
        --------
        >>> GeometryValue(path="/LCLS/detector_1/EncoderValue", scale=1e-3).of(120.0)
        0.12
        >>> round(GeometryValue(path="/wavelength", scale=1e10, is_wavelength=True).of(1e-10), 1)
        12398.4
        """
        scaled = stored * self.scale
        if self.is_wavelength:
            return EV_ANGSTROM / scaled if scaled > 0 else math.nan
        return scaled


def number(text: str) -> float:
    """Read a finite decimal number.

    Examples
    --------
    >>> number("-4.5e2")
    -450.0
    """
    if not re.fullmatch(_NUMBER, text):
        raise BadValue("a number")
    return float(text)


def count(text: str) -> int:
    """Read a whole number of pixels, which some programs write as ``511.0``."""
    if not re.fullmatch(r"\+?\d{1,9}(\.0*)?", text):
        raise BadValue("a whole number of 0 or more")
    return int(float(text))


def bits(text: str) -> int:
    """Read a mask of 32 bits, decimal or hexadecimal."""
    if not re.fullmatch(r"0[xX][0-9a-fA-F]+|\d+", text) or int(text, 0) >= 1 << 32:
        raise BadValue("a mask of 32 bits, as in 0xffffffff")
    return int(text, 0)


def boolean(text: str) -> bool:
    """Read ``true``, ``false``, or a number, of which 0 is false."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return number(text) != 0
    except BadValue:
        raise BadValue("true, false or a number") from None


def word(text: str) -> str:
    """Read any text."""
    if not text:
        raise BadValue("a value")
    return text


def path(text: str) -> str:
    """Read the path of a dataset."""
    if not text.startswith("/"):
        raise BadValue("the path of a dataset, beginning with '/'")
    return text


def names(text: str) -> tuple[str, ...]:
    """Read names with commas between them."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise BadValue("names with commas between them")
    return found


def dimension(text: str) -> str | int:
    """Read what an axis of the data is: ``fs``, ``ss``, ``%`` for the events, or a fixed index."""
    if text in ("fs", "ss", "%"):
        return text
    if not re.fullmatch(r"\d{1,9}", text):
        raise BadValue("fs, ss, % or a number")
    return int(text)


def vector(text: str) -> tuple[float, float, float]:
    """Read a step in pixels along x, y and z.

    Examples
    --------
    >>> vector("-0.5x +y - 0.001z"), vector("x")
    ((-0.5, 1.0, -0.001), (1.0, 0.0, 0.0))
    """
    step = {"x": 0.0, "y": 0.0, "z": 0.0}
    at = 0
    while at < len(text) or not at:
        term = _TERM.match(text, at)
        if term is None or (at and term[1][:1] not in ("+", "-")):
            raise BadValue("a sum of numbers with x, y or z, as in -0.5x +0.8y", at)
        size = term[1].replace(" ", "")
        try:
            step[term[2]] += float(size + "1" if size in ("", "+", "-") else size)
        except ValueError:
            raise BadValue("a number before x, y or z", at) from None
        at = term.end()
    return step["x"], step["y"], step["z"]


def length(text: str) -> GeometryValue:
    """Read a length in m or mm: metres without a unit, but millimetres where a dataset has it."""
    return _quantity(text, {"m": 1.0, "mm": 1e-3}, of_number="m", of_dataset="mm")


def offset(text: str) -> float:
    """Read a number of metres, which may say so: CrystFEL takes no other unit here for one."""
    found = re.fullmatch(rf"({_NUMBER})\s*(\S*)", text)
    if found is None or found[2] not in ("", "m"):
        raise BadValue("a number of metres", 0 if found is None else found.start(2))
    return float(found[1])


def energy(text: str) -> GeometryValue:
    """Read a photon energy in eV or keV; eV without a unit."""
    return _quantity(text, {"eV": 1.0, "keV": 1e3}, of_number="eV", of_dataset="eV")


def wavelength(text: str) -> GeometryValue:
    """Read a wavelength in m or A, which needs its unit, as a photon energy."""
    found = _quantity(text, {"m": 1e10, "A": 1.0})
    as_energy = GeometryValue(path=found.path, scale=found.scale, is_wavelength=True)
    if found.path:
        return as_energy
    if found.value <= 0:
        raise BadValue("a wavelength above 0")
    return GeometryValue(value=EV_ANGSTROM / found.value)


def _quantity(
    text: str, units: dict[str, float], *, of_number: str = "", of_dataset: str = ""
) -> GeometryValue:
    """Read a number or a path, and a unit after it."""
    given = re.fullmatch(rf"(?:({_NUMBER})|(/\S+))\s*(\S*)", text)
    if given is None:
        raise BadValue(f"a number or the path of a dataset, and {' or '.join(units)}")
    unit = given[3] or (of_number if given[1] else of_dataset)
    if unit not in units:
        raise BadValue(f"the unit {' or '.join(units)}", given.start(3))
    if given[1]:
        return GeometryValue(value=float(given[1]) * units[unit])
    return GeometryValue(path=given[2], scale=units[unit])
