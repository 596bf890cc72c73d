"""What CrystFEL needs beside the frames: a geometry file and a list of events.

The geometry format is described in CrystFEL's manual page ``crystfel_geometry`` [1]_.

References
----------
.. [1] T. A. White et al., J. Appl. Cryst. 45 (2012) 335. doi:10.1107/S0021889812002312
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from sfxreduce.io.files.durable import output_errors
from sfxreduce.run.detector import Detector, Panel

__all__ = ["format_geometry", "write_event_list", "write_geometry"]

# CrystFEL cannot open a list of fewer bytes.
FEWEST_LIST_BYTES = 8


def write_geometry(path: Path, detector: Detector, *, photon_energy_ev: float = math.nan) -> None:
    """Write the geometry of a CXI file made by `write_cxi`; see `format_geometry`.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    _write(path, format_geometry(detector, photon_energy_ev=photon_energy_ev))


def write_event_list(path: Path, cxi_path: Path | str, n_events: int) -> None:
    """Write the list of all events of a CXI file, one ``file.cxi //0`` a line.

    Parameters
    ----------
    cxi_path : Path or str
        As CrystFEL is to open it.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    text = "".join(f"{cxi_path} //{event}\n" for event in range(n_events))
    if 0 < len(text.encode()) < FEWEST_LIST_BYTES:
        text = f"./{text}"
    _write(path, text)


def format_geometry(detector: Detector, *, photon_energy_ev: float = math.nan) -> str:
    """Geometry of slabs, one panel below the other, as CrystFEL reads it.

    Parameters
    ----------
    detector : Detector
        What is not known of it becomes a comment that says so.
    photon_energy_ev : float
        Photon energy of all events in eV; by default every event's own is taken from the file.

    Examples
    --------
    >>> detector = Detector.centred("camera", (4, 6), pixel_size_m=1e-4, distance_m=0.15)
    >>> print(format_geometry(detector))
    photon_energy = /LCLS/photon_energy_eV eV
    clen = 0.15 m
    res = 10000.0
    ; adu_per_photon is not known
    data = /entry_1/data_1/data
    dim0 = %
    dim1 = ss
    dim2 = fs
    peak_list = /entry_1/result_1
    mask0_data = /entry_1/data_1/mask
    mask0_goodbits = 0x0
    mask0_badbits = 0xffff
    p0/min_fs = 0
    p0/max_fs = 5
    p0/min_ss = 0
    p0/max_ss = 3
    p0/corner_x = -3.0
    p0/corner_y = -2.0
    p0/fs = +1.0x +0.0y
    p0/ss = +0.0x +1.0y
    <BLANKLINE>
    """
    from_file = math.isnan(photon_energy_ev)
    energy = "/LCLS/photon_energy_eV" if from_file else _decimal(photon_energy_ev)
    lines = [
        f"photon_energy = {energy} eV",
        _known("clen", detector.distance_m, " m"),
        _known("res", 1 / detector.pixel_size_m),
        _known("adu_per_photon", detector.adu_per_photon),
        "data = /entry_1/data_1/data",
        "dim0 = %",
        "dim1 = ss",
        "dim2 = fs",
        "peak_list = /entry_1/result_1",
        # CrystFEL ignores a mask that comes after the first panel.
        "mask0_data = /entry_1/data_1/mask",
        "mask0_goodbits = 0x0",
        "mask0_badbits = 0xffff",
    ]
    n_y, n_x = detector.panel_shape
    for i, panel in enumerate(detector.panels):
        lines += _panel_lines(f"p{i}", panel, first_row=i * n_y, shape=(n_y, n_x))
    return "\n".join(lines) + "\n"


def _panel_lines(name: str, panel: Panel, *, first_row: int, shape: tuple[int, int]) -> list[str]:
    """One panel: its rows and columns in the slab, and its place in pixels from the beam."""
    return [
        f"{name}/min_fs = 0",
        f"{name}/max_fs = {shape[1] - 1}",
        f"{name}/min_ss = {first_row}",
        f"{name}/max_ss = {first_row + shape[0] - 1}",
        f"{name}/corner_x = {_decimal(panel.corner[0])}",
        f"{name}/corner_y = {_decimal(panel.corner[1])}",
        f"{name}/fs = {_vector(panel.fast)}",
        f"{name}/ss = {_vector(panel.slow)}",
    ]


def _known(name: str, value: float, unit: str = "") -> str:
    """Give a line, or a comment where the value is not known."""
    return f"{name} = {_decimal(value)}{unit}" if math.isfinite(value) else f"; {name} is not known"


def _vector(step: tuple[float, float]) -> str:
    """Write a step along x and y as CrystFEL does."""
    return f"{_decimal(step[0], sign=True)}x {_decimal(step[1], sign=True)}y"


def _decimal(value: float, *, sign: bool = False) -> str:
    """Shortest decimal that reads back as the same number; CrystFEL knows no exponents here."""
    return np.format_float_positional(value + 0.0, trim="0", sign=sign)


def _write(path: Path, text: str) -> None:
    """Write a text file whole."""
    with output_errors(path):
        path.write_text(text, encoding="utf-8")
