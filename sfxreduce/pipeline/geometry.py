"""``sfxreduce geometry show``: where the panels of a geometry file lie, as a drawing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from sfxreduce.io.geometry.statements import EV_ANGSTROM
from sfxreduce.io.placed import detector_of_geometry, read_geometry
from sfxreduce.pipeline.audit import write_text
from sfxreduce.run.detector import Detector, Sensor
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window

__all__ = ["GeometryFacts", "draw_detector", "show_geometry"]

RINGS_ANGSTROM = (20.0, 10.0, 7.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.8, 1.5, 1.2, 1.0)
"""Resolutions at which rings are drawn, as far as the detector reaches."""

DRAWING_PIXELS = 900
"""Longer side of the drawing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryFacts:
    """What a geometry file says.

    Parameters
    ----------
    panels : int
        Rectangles of pixels that lie in one plane each.
    frame_shape : tuple of int
        Of the frames that it is for.
    pixel_size_m, distance_m, photon_energy_ev : float or None
        None where neither it nor the run says.
    bad_pixels : int
        Pixels that it calls bad, or that belong to no panel.
    out : str
        Path of the drawing.
    """

    panels: int
    frame_shape: tuple[int, ...]
    pixel_size_m: float | None
    distance_m: float | None
    photon_energy_ev: float | None
    bad_pixels: int
    out: str


def show_geometry(
    path: Path, *, run: Run | None = None, out: Path, overwrite: bool = False
) -> GeometryFacts:
    """Draw panels, beam, resolution rings and the window of a geometry file.

    Parameters
    ----------
    path : Path
        CrystFEL geometry file.
    run : Run, optional
        A run that it places, whose distance and photon energy stand in for what it leaves open.
    out : Path
        SVG file to write.

    Raises
    ------
    SchemaError
        If the geometry cannot be understood.
    OutputError
        If the file is there already, or cannot be written.
    """
    if run is None:
        found = read_geometry(path)
        detector = detector_of_geometry(found)
        distance = math.nan if found.distance is None else found.distance.value
        energy = math.nan if found.energy is None else found.energy.value
    else:
        detector, distance = run.detector, run.detector.distance_m
        energies = run.columns["photon_energy_ev"].values
        known = energies[np.isfinite(energies)]
        energy = float(np.median(known)) if known.size else math.nan
    svg = draw_detector(detector, distance_m=distance, photon_energy_ev=energy, title=path.name)
    write_text(out, svg, overwrite=overwrite)
    numbers = (detector.pixel_size_m, distance, energy)
    pixel, far, ev = (value if math.isfinite(value) else None for value in numbers)
    return GeometryFacts(
        panels=len(detector.placed()),
        frame_shape=detector.frame_shape,
        pixel_size_m=pixel,
        distance_m=far,
        photon_energy_ev=ev,
        bad_pixels=int(np.count_nonzero(detector.mask)),
        out=str(out),
    )


def draw_detector(
    detector: Detector, *, distance_m: float, photon_energy_ev: float, title: str
) -> str:
    """Drawing of a detector in SVG, seen against the beam: x to the right, y upwards.

    Parameters
    ----------
    distance_m, photon_energy_ev : float
        NaN if unknown; there are no rings then.
    """
    corners = np.concatenate([_corners(sensor) for sensor in detector.placed()])
    margin = 0.04 * float(np.ptp(corners, axis=0).max())
    low = np.minimum(corners.min(axis=0), 0) - margin
    width, height = np.maximum(corners.max(axis=0), 0) + margin - low
    scale = DRAWING_PIXELS / max(width, height)
    # The drawing is turned over once, so that y is upwards; text is turned back.
    shapes = [
        *_panels(detector),
        *_window(detector),
        *_rings(detector, distance_m, photon_energy_ev, reach=float(np.hypot(*corners.T).max())),
        f'<path d="M{-margin:.3f} 0H{margin:.3f}M0 {-margin:.3f}V{margin:.3f}" class="beam">'
        "<title>beam</title></path>",
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * scale:.0f}" '
        f'height="{height * scale:.0f}" viewBox="{low[0]:.3f} {-low[1] - height:.3f} '
        f'{width:.3f} {height:.3f}">\n<title>{escape(title)}</title>\n<style>'
        f".panel{{fill:#dbe7f3;stroke:#345;stroke-width:{1 / scale:.4f}}}.bad{{fill:#bbb}}"
        f".window{{fill:#f6c34333;stroke:#b8860b;stroke-width:{2 / scale:.4f}}}"
        f".ring{{fill:none;stroke:#777;stroke-width:{1 / scale:.4f}}}"
        f".beam{{stroke:#c00;stroke-width:{2 / scale:.4f}}}"
        f"text{{font:{13 / scale:.3f}px sans-serif;fill:#444}}</style>\n"
        '<g transform="scale(1 -1)">\n' + "\n".join(shapes) + "\n</g>\n</svg>\n"
    )


def _corners(sensor: Sensor) -> Any:
    """Outer corners of a sensor in pixels from the beam, in turn, shape (4, 2)."""
    n_y, n_x = sensor.rows[1] - sensor.rows[0], sensor.columns[1] - sensor.columns[0]
    first = np.array(sensor.corner)
    fast, slow = n_x * np.array(sensor.fast), n_y * np.array(sensor.slow)
    return np.array([first, first + fast, first + fast + slow, first + slow])


def _panels(detector: Detector) -> Iterator[str]:
    """Every panel as a polygon that tells its name."""
    mask = detector.mask.reshape(-1, detector.panel_shape[1])
    for sensor in detector.placed():
        points = " ".join(f"{x:.3f},{y:.3f}" for x, y in _corners(sensor))
        is_bad = mask[slice(*sensor.rows), slice(*sensor.columns)].all()
        kind = "panel bad" if is_bad else "panel"
        name = escape(sensor.name)
        yield f'<polygon class="{kind}" points="{points}"><title>{name}</title></polygon>'


def _window(detector: Detector) -> Iterator[str]:
    """Tile in the middle of the assembled picture."""
    window = Window.centre(detector)
    row, column = window.origins[0]
    covered = detector.covered()
    left, bottom = (float(place[covered].min()) - 0.5 for place in detector.positions())
    yield (
        f'<rect class="window" x="{left + column:.3f}" y="{bottom + row:.3f}" '
        f'width="{window.tile_shape[1]}" height="{window.tile_shape[0]}">'
        "<title>centre window</title></rect>"
    )


def _rings(
    detector: Detector, distance_m: float, energy_ev: float, *, reach: float
) -> Iterator[str]:
    """Rings of equal resolution that cross the detector, `reach` in pixels from the beam."""
    known = (distance_m, energy_ev, detector.pixel_size_m)
    if not all(math.isfinite(value) and value > 0 for value in known):
        return
    for resolution in RINGS_ANGSTROM:
        sine = EV_ANGSTROM / energy_ev / (2 * resolution)
        two_theta = 2 * math.asin(sine) if sine < 1 else math.inf
        radius = distance_m * math.tan(two_theta) / detector.pixel_size_m if two_theta < 1.5 else 0
        if 0 < radius <= reach:
            yield (
                f'<circle class="ring" r="{radius:.3f}"/><text transform="translate(0 '
                f'{radius:.3f}) scale(1 -1)">{resolution:g} Å</text>'
            )
