"""Cameras: what they are made of, and what is wrong with their pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import UsageError
from sfxreduce.run.detector import Detector, Panel, PixelFlag
from sfxreduce.simulate.random import key_of, normal_block, uniform_block

__all__ = ["Camera", "Defects", "Response", "cut", "manufacture"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Defects:
    """Pixels that do not do what the others do.

    Parameters
    ----------
    dead, hot, stuck : int
        Pixels per million that see nothing, glow, or always read the same.
    unmasked_hot : int
        Hot pixels per million that the mask does not know of.
    hot_level : float
        Typical glow of a hot pixel, in photons.
    """

    dead: int = 60
    hot: int = 30
    stuck: int = 10
    unmasked_hot: int = 0
    hot_level: float = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """One kind of detector, as it came from the maker.

    Parameters
    ----------
    name : str
        Defects and fixed patterns are a function of this name.
    panel_shape : tuple of int
        (y, x) pixels of a panel.
    panels : callable, optional
        Gives the panels; called when the camera is set up. One with the beam at its centre if not
        given.
    dtype : str
        Of a pixel; unsigned for photon counters.
    adu_per_photon, readout_adu, saturation_adu : float
        Gain, readout noise (standard deviation) and full scale. Without readout noise the camera
        counts photons.
    blur_px : float
        Charge sharing, a standard deviation in pixels.
    efficiency : float
        Share of the photons that is detected.
    gain_spread : float
        Relative spread of the gain from pixel to pixel.
    chip_shape : tuple of int
        (y, x) pixels of one readout chip; equal to `panel_shape` if there are no seams.
    seam_area : float
        Area of the pixels along inner seams, relative to the others.
    baseline_adu : float
        Reading of a pixel that saw nothing; keeps unsigned readings above zero.
    pedestal_adu, common_mode_adu : float
        Spread of what is left of each chip's pedestal, and of each panel's drift from event to
        event.
    gap_px : tuple of int
        (y, x) width of the dead cross-bars between chips of a picture delivered assembled.
    edge_masked : bool
        Whether the outermost pixels of every panel and seam are masked.
    beamstop_px : float
        Radius of the beamstop's shadow in pixels.
    """

    name: str
    panel_shape: tuple[int, int]
    panels: Callable[[], tuple[Panel, ...]] | None = None
    pixel_size_m: float
    dtype: str
    adu_per_photon: float
    readout_adu: float
    saturation_adu: float
    blur_px: float = 0.15
    efficiency: float = 1.0
    gain_spread: float = 0.01
    chip_shape: tuple[int, int] = (0, 0)
    seam_area: float = 1.0
    baseline_adu: float = 0.0
    pedestal_adu: float = 0.0
    common_mode_adu: float = 0.0
    gap_px: tuple[int, int] = (0, 0)
    edge_masked: bool = False
    beamstop_px: float = 0.0
    defects: Defects = Defects()


class Response(NamedTuple):
    """What each pixel makes of photons; maps in the shape (panel, y, x).

    ``area`` relative to a whole pixel (zero where nothing is detected), ``gain`` in ADU per photon,
    ``offset`` in ADU; ``hot`` and ``stuck`` are flat pixel indices with the ``glow`` in photons
    and the ``reading`` in ADU.
    """

    area: NDArray[np.float32]
    gain: NDArray[np.float32]
    offset: NDArray[np.float32]
    hot: NDArray[np.int64]
    glow: NDArray[np.float64]
    stuck: NDArray[np.int64]
    reading: NDArray[np.float64]


def manufacture(camera: Camera, distance_m: float) -> tuple[Detector, Response]:
    """Set up a camera at a distance: its geometry and mask, and its pixels' response.

    Returns
    -------
    Detector, Response
        The same for the same camera, whoever asks.
    """
    n_y, n_x = camera.panel_shape
    centred = (Panel(name="p0", corner=(-n_x / 2, -n_y / 2)),)
    panels = camera.panels() if camera.panels else centred
    stacked = len(panels) > 1
    detector = Detector(
        name=camera.name,
        panel_shape=camera.panel_shape,
        panels=panels,
        stacked=stacked,
        pixel_size_m=camera.pixel_size_m,
        distance_m=distance_m,
        adu_per_photon=camera.adu_per_photon,
        saturation_adu=camera.saturation_adu,
    )
    shape = (len(panels), *camera.panel_shape)
    mask = np.zeros(shape, np.uint32)
    area = np.ones(shape, np.float32)
    _lay_chips(camera, mask, area)
    if camera.beamstop_px:
        shadow = detector.radius().reshape(shape) < camera.beamstop_px
        mask[shadow] |= np.uint32(PixelFlag.SHADOWED)
        area[shadow] = 0.0
    response = _spoil(camera, mask, area)
    return detector.with_mask(mask.reshape(detector.frame_shape)), response


def cut(
    detector: Detector, response: Response, frame_shape: tuple[int, int]
) -> tuple[Detector, Response]:
    """Keep only the centre of a camera of one panel.

    Parameters
    ----------
    frame_shape : tuple of int
        (y, x).

    Raises
    ------
    UsageError
        If the detector has several panels or is smaller than that.
    """
    n_y, n_x = detector.panel_shape
    y0, x0 = (n_y - frame_shape[0]) // 2, (n_x - frame_shape[1]) // 2
    if detector.stacked or min(y0, x0, *frame_shape) < 0 or min(frame_shape) < 1:
        raise UsageError(
            f"frame shape {frame_shape[0]}x{frame_shape[1]}: expected the centre of one panel, "
            f"found '{detector.name}' of {detector.frame_shape}; leave the frame shape out or "
            "choose another experiment"
        )
    part = (slice(y0, y0 + frame_shape[0]), slice(x0, x0 + frame_shape[1]))
    old = detector.panels[0]
    panel = replace(old, corner=(old.corner[0] + x0, old.corner[1] + y0))
    number = np.full(detector.panel_shape, -1, np.int64)
    number[part] = np.arange(frame_shape[0] * frame_shape[1]).reshape(frame_shape)
    hot, stuck = number.ravel()[response.hot], number.ravel()[response.stuck]
    area, gain, offset = (np.ascontiguousarray(m[0][part])[None] for m in response[:3])
    return (
        replace(
            detector, panel_shape=frame_shape, panels=(panel,), mask=detector.mask[part].copy()
        ),
        Response(
            area=area,
            gain=gain,
            offset=offset,
            hot=hot[hot >= 0],
            glow=response.glow[hot >= 0],
            stuck=stuck[stuck >= 0],
            reading=response.reading[stuck >= 0],
        ),
    )


def _lay_chips(camera: Camera, mask: NDArray[np.uint32], area: NDArray[np.float32]) -> None:
    """Mark gaps, wide pixels along seams and masked edges, in place."""
    for axis in (0, 1):
        n, chip, gap = camera.panel_shape[axis], camera.chip_shape[axis], camera.gap_px[axis]
        edges = {0, n - 1}
        for start in range(chip, n, chip + gap) if chip else ():
            blind = np.arange(start, start + gap)
            np.moveaxis(mask, axis + 1, 0)[blind] |= np.uint32(PixelFlag.GAP)
            np.moveaxis(area, axis + 1, 0)[blind] = 0.0
            seam = [start - 1, start + gap]
            np.moveaxis(area, axis + 1, 0)[seam] *= camera.seam_area
            edges.update(seam)
        if camera.edge_masked:
            np.moveaxis(mask, axis + 1, 0)[sorted(edges)] |= np.uint32(PixelFlag.BAD)


def _spoil(camera: Camera, mask: NDArray[np.uint32], area: NDArray[np.float32]) -> Response:
    """Draw the fixed pattern and the defects of a camera; masks what is known to be bad."""
    size = mask.size
    d = camera.defects
    counts = [round(n * size / 1e6) for n in (d.dead, d.hot, d.stuck, d.unmasked_hot)]
    place, level = np.split(uniform_block(key_of("defects", camera.name), 2 * sum(counts)), 2)
    dead, hot, stuck, sly = np.split((place * size).astype(np.int64), np.cumsum(counts)[:-1])
    _, hot_level, stuck_level, sly_level = np.split(level, np.cumsum(counts)[:-1])
    flat = mask.reshape(-1)
    flat[dead] |= np.uint32(PixelFlag.DEAD)
    flat[hot] |= np.uint32(PixelFlag.HOT)
    flat[stuck] |= np.uint32(PixelFlag.BAD)
    area.reshape(-1)[dead] = 0.0
    pattern = normal_block(key_of("gain", camera.name), size).reshape(mask.shape)
    glow = -camera.defects.hot_level * np.log(np.concatenate([hot_level, sly_level]))
    hot = np.concatenate([hot, sly])
    # Where there is no sensor, nothing glows.
    alive, seen = (area.reshape(-1)[pixels] > 0.0 for pixels in (hot, stuck))
    return Response(
        area=area,
        gain=(camera.adu_per_photon * (1.0 + camera.gain_spread * pattern)).astype(np.float32),
        offset=_pedestals(camera, mask.shape),
        hot=hot[alive],
        glow=glow[alive],
        stuck=stuck[seen],
        reading=np.floor(stuck_level * camera.saturation_adu)[seen],
    )


def _pedestals(camera: Camera, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What is left of the pedestals after correction: one level per chip, in ADU."""
    steps = [c or n for c, n in zip(camera.chip_shape, camera.panel_shape, strict=True)]
    rows, columns = (np.arange(n) // s for n, s in zip(camera.panel_shape, steps, strict=True))
    n_y, n_x = int(rows[-1]) + 1, int(columns[-1]) + 1
    level = normal_block(key_of("pedestal", camera.name), shape[0] * n_y * n_x)
    level = level.reshape(shape[0], n_y, n_x) * camera.pedestal_adu
    level += camera.baseline_adu
    return np.ascontiguousarray(level[:, rows[:, None], columns[None, :]], np.float32)
