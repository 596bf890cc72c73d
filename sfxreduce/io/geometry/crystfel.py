"""CrystFEL geometry files, parsed: panels, masks, beam, and where a data file has what is missing.

Everything that CrystFEL 0.12 knows is read [1]_, and everything else is an error that names its
line and column: a name that is spelt wrong must not leave a panel where it was.

References
----------
.. [1] T. A. White et al., J. Appl. Cryst. 45 (2012) 335. doi:10.1107/S0021889812002312
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError
from sfxreduce.io.geometry.statements import (
    BadValue,
    GeometryValue,
    Location,
    Statement,
    bits,
    boolean,
    count,
    dimension,
    energy,
    length,
    names,
    number,
    offset,
    path,
    statements,
    vector,
    wavelength,
    word,
)

__all__ = ["BadRegion", "CrystfelGeometry", "GeometryPanel", "MaskPart", "parse_geometry"]

MOST_DIMENSIONS = 16
MOST_MASKS = 8
"""Masks of a panel, as CrystFEL has them."""

PANEL_KEYS: Mapping[str, Callable[[str], Any]] = {
    "min_fs": count,
    "max_fs": count,
    "min_ss": count,
    "max_ss": count,
    "corner_x": number,
    "corner_y": number,
    "coffset": offset,
    "fs": vector,
    "ss": vector,
    "res": number,
    "adu_per_photon": number,
    "adu_per_eV": number,
    "max_adu": number,
    "data": path,
    "mask_edge_pixels": count,
    "no_index": boolean,
    "saturation_map": path,
    "saturation_map_file": word,
    "flag_lessthan": number,
    "flag_morethan": number,
    "flag_equal": number,
    "badrow_direction": word,
}
"""What may be said of a panel, or once for all panels that are named further below."""

FILE_KEYS: Mapping[str, Callable[[str], Any]] = {
    "clen": length,
    "detector_shift_x": length,
    "detector_shift_y": length,
    "photon_energy": energy,
    "wavelength": wavelength,
    "bandwidth": number,
    "peak_list": path,
    "peak_list_type": word,
}
"""What is said once."""

BAD_KEYS: Mapping[str, Callable[[str], Any]] = {
    "min_x": number,
    "max_x": number,
    "min_y": number,
    "max_y": number,
    "min_fs": count,
    "max_fs": count,
    "min_ss": count,
    "max_ss": count,
    "panel": word,
}

MASK_KEYS: Mapping[str, Callable[[str], Any]] = {
    "data": path,
    "file": word,
    "goodbits": bits,
    "badbits": bits,
}
OLD_MASK_KEYS: Mapping[str, str] = {
    "mask": "mask0_data",
    "mask_file": "mask0_file",
    "mask_good": "mask0_goodbits",
    "mask_bad": "mask0_badbits",
}
NEEDED = ("min_fs", "max_fs", "min_ss", "max_ss", "corner_x", "corner_y", "fs", "ss", "res")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskPart:
    """One mask of a panel.

    Parameters
    ----------
    data, file : str
        Dataset, and the file it is in; empty for that of the frames.
    good_bits, bad_bits : int
        A pixel is bad unless all of the former are set, and if any of the latter is.
    """

    data: str
    file: str = ""
    good_bits: int = 0
    bad_bits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryPanel:
    """One panel.

    Parameters
    ----------
    data : str
        Dataset of its pixels.
    dims : tuple of str and int
        What each axis of that dataset is.
    fs, ss : tuple of int
        First pixel and the one after the last along either.
    corner : tuple of float
        (x, y) of the outer corner of the first pixel, in pixels from the beam.
    fast, slow : tuple of float
        (x, y, z) steps in pixels.
    offset_m : float
        Distance beyond that of the detector.
    res : float
        Pixels a metre.
    gain : tuple of (float, str)
        ADU a photon or an eV, and which of the two it is; NaN if unknown.
    max_adu : float
        Largest value that is a measurement; infinite if unknown.
    flags : tuple of (str, float)
        Values that mark a bad pixel: "lessthan", "morethan" or "equal" to a number.
    edge_pixels : int
        Width of its border of bad pixels.
    """

    name: str
    data: str
    dims: tuple[str | int, ...]
    fs: tuple[int, int]
    ss: tuple[int, int]
    corner: tuple[float, float]
    fast: tuple[float, float, float]
    slow: tuple[float, float, float]
    res: float
    offset_m: float = 0.0
    gain: tuple[float, str] = (math.nan, "photon")
    max_adu: float = math.inf
    masks: tuple[MaskPart, ...] = ()
    flags: tuple[tuple[str, float], ...] = ()
    edge_pixels: int = 0
    no_index: bool = False

    @property
    def modules(self) -> tuple[int, ...]:
        """Fixed indices of the axes that are neither pixels nor events."""
        return tuple(dim for dim in self.dims if isinstance(dim, int))


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRegion:
    """A rectangle of bad pixels.

    Parameters
    ----------
    panel : str
        Empty for a region of the laboratory.
    low, high : tuple of float
        (fs, ss) of the first and of the last pixel, or (x, y) in pixels from the beam.
    """

    name: str
    panel: str
    low: tuple[float, float]
    high: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CrystfelGeometry:
    """A CrystFEL geometry file.

    Parameters
    ----------
    file, text : str
        As the user named it, and all of it.
    energy, distance : GeometryValue or None
        Photon energy and detector distance; None if the file does not say.
    shift : tuple of GeometryValue
        Of the whole detector, along x and y.
    groups : mapping of str to tuple of str
        Panels and groups of each group.
    """

    file: str
    text: str = field(repr=False)
    panels: tuple[GeometryPanel, ...]
    bad: tuple[BadRegion, ...] = ()
    energy: GeometryValue | None = None
    distance: GeometryValue | None = None
    shift: tuple[GeometryValue, GeometryValue] = (
        GeometryValue(value=0.0),
        GeometryValue(value=0.0),
    )
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    peak_list: str = ""

    def corners_m(
        self, *, distance_m: float = math.nan, shift_m: tuple[float, float] = (math.nan, math.nan)
    ) -> NDArray[np.float64]:
        """Outer corners of the panels in the laboratory, x, y and z in metres.

        Parameters
        ----------
        distance_m, shift_m : float
            Stand in for what the file leaves to the data.

        Returns
        -------
        ndarray of float64
            Shape (panel, 4, 3): at the first pixel, at the end of its row, at the end of its
            column, and opposite.

        Examples
        --------
        >>> text = '''clen = 0.1
        ... res = 10000
        ... p/min_fs = 0
        ... p/max_fs = 19
        ... p/min_ss = 0
        ... p/max_ss = 9
        ... p/corner_x = -10
        ... p/corner_y = -5
        ... p/fs = x
        ... p/ss = y'''
        >>> parse_geometry(text, file="one.geom").corners_m()[0, 3].tolist()
        [0.001, 0.0005, 0.1]
        """
        given = math.nan if self.distance is None else self.distance.value
        z = distance_m if math.isnan(given) else given
        shifts = zip(self.shift, shift_m, strict=True)
        x, y = (s if math.isnan(q.value) else q.value for q, s in shifts)
        corners = np.empty((len(self.panels), 4, 3))
        for panel, of in zip(self.panels, corners, strict=True):
            n_fs, n_ss = panel.fs[1] - panel.fs[0], panel.ss[1] - panel.ss[0]
            first = np.array([*panel.corner, 0.0])
            fast, slow = n_fs * np.array(panel.fast), n_ss * np.array(panel.slow)
            of[:] = [first, first + fast, first + slow, first + fast + slow]
            of /= panel.res
            of += [x, y, z + panel.offset_m]
        return corners


def parse_geometry(text: str, *, file: str) -> CrystfelGeometry:
    """Parse a CrystFEL geometry file.

    Parameters
    ----------
    file : str
        Its path, for messages.

    Raises
    ------
    SchemaError
        If a statement is not known, or its value is none of its kind, naming line and column; or if
        a panel is incomplete.
    """
    parser = _Parser(file)
    for statement in statements(text, file=file):
        parser.take(statement)
    return parser.geometry(text)


class _Parser:
    """What the statements so far have said."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.top: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {"data": "/data/data", "dim0": "ss", "dim1": "fs"}
        self.unused: Statement | None = None
        self.panels: dict[str, dict[str, Any]] = {}
        self.first: dict[str, Location] = {}
        self.bad: dict[str, dict[str, Any]] = {}
        self.groups: list[tuple[str, tuple[str, ...], Location]] = []

    def take(self, statement: Statement) -> None:
        """Take one statement."""
        owner = statement.owner
        if owner:
            self.first.setdefault(owner, statement.at)
        if owner.startswith("bad"):
            of = self.bad.setdefault(owner, {})
            of[statement.key] = _value(statement, BAD_KEYS.get(statement.key))
        elif owner.startswith(("group", "rigid_group")):
            raise statement.at.error(f"expected another name of a panel, found '{owner}'")
        elif owner:
            if owner not in self.panels:
                self.panels[owner], self.unused = dict(self.defaults), None
            _put(self.panels[owner], statement)
        else:
            self._take_top(statement)

    def _take_top(self, statement: Statement) -> None:
        """Take a statement on the file, or on all panels that follow."""
        key = statement.key
        if key.startswith("rigid_group"):
            return  # CrystFEL 0.11 and later pass over them
        if key.startswith("group_"):
            self.groups.append((key[6:], _value(statement, names), statement.value_at))
        elif key in FILE_KEYS:
            known = ("photon_energy", "wavelength")
            if key in self.top or (key in known and any(name in self.top for name in known)):
                raise statement.at.error(f"expected '{key}' once, found it again; drop one of them")
            self.top[key] = _value(statement, FILE_KEYS[key])
        else:
            _put(self.defaults, statement)
            self.unused = statement

    def geometry(self, text: str) -> CrystfelGeometry:
        """Everything that was said, once it is complete."""
        if not self.panels:
            raise SchemaError(f"{self.file}: expected panels, found none; is it a geometry file?")
        if self.unused is not None:
            raise self.unused.at.error(
                f"'{self.unused.key}' stands for panels that are named further below, and none is; "
                "move it up"
            )
        layout = self.top.get("peak_list_type", "auto")
        if layout not in ("cxi", "list3", "auto"):
            raise SchemaError(
                f"{self.file}: expected peak_list_type to be cxi, list3 or auto, found '{layout}'"
            )
        zero = GeometryValue(value=0.0)
        return CrystfelGeometry(
            file=self.file,
            text=text,
            panels=tuple(self._panel(name, of) for name, of in self.panels.items()),
            bad=tuple(self._region(name, of) for name, of in self.bad.items()),
            energy=self.top.get("photon_energy", self.top.get("wavelength")),
            distance=self.top.get("clen"),
            shift=(
                self.top.get("detector_shift_x", zero),
                self.top.get("detector_shift_y", zero),
            ),
            groups=self._groups(),
            peak_list=self.top.get("peak_list", ""),
        )

    def _panel(self, name: str, of: dict[str, Any]) -> GeometryPanel:
        at = self.first[name]
        missing = [key for key in NEEDED if key not in of]
        if missing:
            raise at.error(f"panel '{name}': expected {', '.join(missing)}, found none")
        if of["max_fs"] < of["min_fs"] or of["max_ss"] < of["min_ss"] or of["res"] <= 0:
            raise at.error(
                f"panel '{name}': expected a range of pixels and a res above 0, found fs "
                f"{of['min_fs']} to {of['max_fs']}, ss {of['min_ss']} to {of['max_ss']}, res "
                f"{of['res']}"
            )
        return GeometryPanel(
            name=name,
            data=of["data"],
            dims=self._dims(name, of),
            fs=(of["min_fs"], of["max_fs"] + 1),
            ss=(of["min_ss"], of["max_ss"] + 1),
            corner=(of["corner_x"], of["corner_y"]),
            fast=of["fs"],
            slow=of["ss"],
            res=of["res"],
            offset_m=of.get("coffset", 0.0),
            gain=of.get("gain", (math.nan, "photon")),
            max_adu=of.get("max_adu", math.inf),
            masks=self._masks(name, of),
            flags=of.get("flags", ()),
            edge_pixels=of.get("mask_edge_pixels", 0),
            no_index=of.get("no_index", False),
        )

    def _dims(self, name: str, of: dict[str, Any]) -> tuple[str | int, ...]:
        """Axes of a panel's data, the slowest first."""
        given = {int(key[3:]): of[key] for key in of if re.fullmatch(r"dim\d+", key)}
        dims = tuple(given[axis] for axis in sorted(given))
        pixels = [axis for axis in dims if axis in ("ss", "fs")]
        if sorted(given) != list(range(len(given))) or pixels != ["ss", "fs"]:
            raise self.first[name].error(
                f"panel '{name}': expected every axis from dim0 on, one of them ss and a later one "
                f"fs, found {', '.join(f'dim{axis} = {given[axis]}' for axis in sorted(given))}"
            )
        return dims

    def _masks(self, name: str, of: dict[str, Any]) -> tuple[MaskPart, ...]:
        """Masks of a panel."""
        masks = []
        for place in range(MOST_MASKS):
            said = {key: of.get(f"mask{place}_{key}") for key in MASK_KEYS}
            if said["data"] is not None:
                masks.append(
                    MaskPart(
                        data=said["data"],
                        file=said["file"] or "",
                        good_bits=said["goodbits"] or 0,
                        bad_bits=said["badbits"] or 0,
                    )
                )
            elif any(said.values()):
                raise self.first[name].error(
                    f"panel '{name}': expected mask{place}_data, which says where the mask is, "
                    "found none"
                )
        return tuple(masks)

    def _region(self, name: str, of: dict[str, Any]) -> BadRegion:
        at = self.first[name]
        axes = next((a for a in (("x", "y"), ("fs", "ss")) if f"min_{a[0]}" in of), ("x", "y"))
        limits = [f"{end}_{axis}" for axis in axes for end in ("min", "max")]
        if set(of) - {"panel"} != set(limits):
            raise at.error(
                f"bad region '{name}': expected min and max of x and y, or of fs and ss, found "
                f"{', '.join(sorted(of))}"
            )
        low, high = (tuple(float(of[f"{end}_{axis}"]) for axis in axes) for end in ("min", "max"))
        panel = of.get("panel", "")
        if axes == ("fs", "ss"):
            panel = panel or (next(iter(self.panels)) if len(self.panels) == 1 else "")
            if panel not in self.panels:
                raise at.error(
                    f"bad region '{name}': expected the name of a panel, found '{panel}'"
                )
            whole = self.panels[panel]
            if any(
                low[i] < whole.get(f"min_{axis}", 0) or high[i] > whole.get(f"max_{axis}", 0)
                for i, axis in enumerate(axes)
            ):
                raise at.error(
                    f"bad region '{name}': expected pixels of panel '{panel}', found others"
                )
        return BadRegion(
            name=name,
            panel=panel if axes == ("fs", "ss") else "",
            low=(low[0], low[1]),
            high=(high[0], high[1]),
        )

    def _groups(self) -> dict[str, tuple[str, ...]]:
        """Groups, whose members are panels and groups named before."""
        groups: dict[str, tuple[str, ...]] = {}
        for name, members, at in self.groups:
            unknown = [m for m in members if m not in self.panels and m not in groups]
            if unknown:
                raise at.error(
                    f"expected panels, or groups that are defined before, found '{unknown[0]}'"
                )
            groups[name] = members
        return groups


def _put(of: dict[str, Any], statement: Statement) -> None:
    """Take a statement on a panel."""
    key = OLD_MASK_KEYS.get(statement.key, statement.key)
    mask = re.fullmatch(r"mask([0-7])_(\w+)", key)
    axis = re.fullmatch(r"dim(\d{1,2})", key)
    if mask is not None:
        of[key] = _value(statement, MASK_KEYS.get(mask[2]))
    elif axis is not None and int(axis[1]) < MOST_DIMENSIONS:
        of[key] = _value(statement, dimension)
    elif key in ("adu_per_photon", "adu_per_eV"):
        of["gain"] = (_value(statement, number), key.rpartition("_")[2])
    elif key.startswith("flag_") and key in PANEL_KEYS:
        of["flags"] = (*of.get("flags", ()), (key[5:], _value(statement, number)))
    else:
        of[key] = _value(statement, PANEL_KEYS.get(key))


def _value(statement: Statement, read: Callable[[str], Any] | None) -> Any:
    """Value of a statement."""
    if read is None:
        hint = "; it is said once, for the whole detector" if statement.key in FILE_KEYS else ""
        raise statement.at.error(
            f"expected a name of CrystFEL's geometry format, found '{statement.key}'{hint}"
        )
    try:
        return read(statement.value)
    except BadValue as error:
        at = statement.value_at
        place = Location(file=at.file, line=at.line, column=at.column + error.offset)
        raise place.error(
            f"expected {error}, found '{statement.value[error.offset :][:60]}'"
        ) from error
