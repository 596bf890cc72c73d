"""Spots on the detector: where reflections land, how far they spread, how well they show."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.run.detector import Detector
from sfxreduce.simulate.excitation import Reflections

__all__ = ["Frame", "Spots", "add_spots", "frame_of", "join", "land", "signal_to_noise"]

_PIXEL_VARIANCE = 1.0 / 12.0


class Frame(NamedTuple):
    """Geometry of a detector as the kernels take it, in pixels.

    ``corner``, ``fast`` and ``slow`` have shape (panel, 2); see `sfxreduce.run.detector.Panel`.
    """

    corner: NDArray[np.float64]
    fast: NDArray[np.float64]
    slow: NDArray[np.float64]
    n_y: int
    n_x: int
    distance: float


class Spots(NamedTuple):
    """Spots on panels, one row each.

    ``x`` and ``y`` are positions on the panel with whole numbers at pixel centres. A spot is a
    Gaussian of ``photons`` with standard deviations ``long`` and ``short`` in pixels, the long
    axis along (``ux``, ``uy``).
    """

    panel: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    photons: NDArray[np.float64]
    long: NDArray[np.float64]
    short: NDArray[np.float64]
    ux: NDArray[np.float64]
    uy: NDArray[np.float64]

    def pixel(self, frame: Frame) -> NDArray[np.int64]:
        """Flat index into a frame of the pixel that holds each spot's centre."""
        row = np.rint(self.y).astype(np.int64)
        column = np.rint(self.x).astype(np.int64)
        return (self.panel * frame.n_y + row) * frame.n_x + column

    def take(self, which: NDArray[np.generic]) -> Spots:
        """Return some of the spots."""
        return Spots(*(column[which] for column in self))


def frame_of(detector: Detector) -> Frame:
    """Geometry of a detector for the kernels."""
    return Frame(
        corner=np.array([p.corner for p in detector.panels], np.float64),
        fast=np.array([p.fast for p in detector.panels], np.float64),
        slow=np.array([p.slow for p in detector.panels], np.float64),
        n_y=detector.panel_shape[0],
        n_x=detector.panel_shape[1],
        distance=detector.distance_m / detector.pixel_size_m,
    )


def join(parts: list[Spots]) -> Spots:
    """Spots of several crystals as one list."""
    if not parts:
        return Spots(np.zeros(0, np.int64), *(np.zeros(0) for _ in range(7)))
    return Spots(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def land(reflections: Reflections, frame: Frame, blur_px: float) -> Spots:
    """Spots where reflections meet the panels; what misses all panels is dropped.

    Parameters
    ----------
    blur_px : float
        Spread of a point on the detector: sensor and size of the source, a standard deviation.
    """
    n = reflections.direction
    cos_two_theta = n[:, 2]
    x, y = (frame.distance * n[:, axis] / cos_two_theta for axis in (0, 1))
    panel, i, j = _panels(x, y, frame)
    on = panel >= 0
    panel = panel[on]
    radius = np.maximum(np.hypot(x, y)[on], 1e-9)
    radial = np.hypot(reflections.radial[on] * frame.distance / cos_two_theta[on] ** 2, blur_px)
    tangential = np.hypot(reflections.tangential[on] * frame.distance / cos_two_theta[on], blur_px)
    outward = radial >= tangential
    ex = np.where(outward, x[on], -y[on]) / radius
    ey = np.where(outward, y[on], x[on]) / radius
    fast, slow = frame.fast[panel], frame.slow[panel]
    return Spots(
        panel=panel,
        x=i[on] - 0.5,
        y=j[on] - 0.5,
        photons=reflections.photons[on],
        long=np.maximum(radial, tangential),
        short=np.minimum(radial, tangential),
        ux=ex * fast[:, 0] + ey * fast[:, 1],
        uy=ex * slow[:, 0] + ey * slow[:, 1],
    )


def signal_to_noise(
    spots: Spots, background: NDArray[np.float64], readout_photons: float
) -> NDArray[np.float64]:
    """Signal to noise of spots under the best linear weighting, from expected photons.

    The area that counts is the noise-equivalent area of the spot's Gaussian after its
    convolution with a pixel, 4 pi times the product of its standard deviations [1]_.

    Parameters
    ----------
    background : ndarray
        Expected photons per pixel under each spot.
    readout_photons : float
        Readout noise per pixel in photons, a standard deviation.

    References
    ----------
    .. [1] I. R. King, Publ. Astron. Soc. Pac. 95 (1983) 163. doi:10.1086/131139
    """
    area = 4.0 * math.pi * np.hypot(spots.long, _PIXEL_VARIANCE**0.5)
    area *= np.hypot(spots.short, _PIXEL_VARIANCE**0.5)
    noise = spots.photons + area * (background + readout_photons**2)
    return np.asarray(spots.photons / np.sqrt(noise))


def add_spots(photons: NDArray[np.float32], spots: Spots) -> None:
    """Add spots to the expected photons of a frame, in place.

    Parameters
    ----------
    photons : ndarray of float32
        Shape (panel, y, x).
    """
    stretch = np.sqrt(np.maximum(spots.long**2 - spots.short**2, 0.0))
    _draw(photons, spots, stretch, np.empty((2, 64)))


@compiled
def _panels(
    x: NDArray[np.float64], y: NDArray[np.float64], frame: Frame
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Panel of every point, -1 if none, and its place in pixels from the panel's corner."""
    panel = np.full(x.size, -1, np.int64)
    i = np.zeros(x.size)
    j = np.zeros(x.size)
    for n in range(x.size):
        for p in range(frame.corner.shape[0]):
            dx, dy = x[n] - frame.corner[p, 0], y[n] - frame.corner[p, 1]
            fx, fy = frame.fast[p]
            sx, sy = frame.slow[p]
            determinant = fx * sy - fy * sx
            a = (dx * sy - dy * sx) / determinant
            b = (fx * dy - fy * dx) / determinant
            if 0.0 <= a < frame.n_x and 0.0 <= b < frame.n_y:
                panel[n], i[n], j[n] = p, a, b
                break
    return panel, i, j


@compiled
def _draw(
    photons: NDArray[np.float32],
    spots: Spots,
    stretch: NDArray[np.float64],
    edges: NDArray[np.float64],
) -> None:
    """Draw each spot as round Gaussians strung along its long axis, integrated over pixels."""
    for n in range(spots.x.size):
        short = spots.short[n]
        half = min(math.ceil(3.0 * stretch[n] / short), 24)
        total = 0.0
        for i in range(-half, half + 1):
            total += math.exp(-0.5 * (i * short / max(stretch[n], 1e-12)) ** 2)
        for i in range(-half, half + 1):
            part = math.exp(-0.5 * (i * short / max(stretch[n], 1e-12)) ** 2) / total
            at = (spots.x[n] + i * short * spots.ux[n], spots.y[n] + i * short * spots.uy[n])
            _draw_round(photons[spots.panel[n]], at, short, spots.photons[n] * part, edges)


@compiled
def _draw_round(
    panel: NDArray[np.float32],
    at: tuple[float, float],
    sigma: float,
    photons: float,
    edges: NDArray[np.float64],
) -> None:
    """Add a round Gaussian to a panel; each pixel gets its integral."""
    reach = min(math.ceil(4.0 * sigma) + 1, 30)
    column, row = round(at[0]), round(at[1])
    scale = 1.0 / (sigma * math.sqrt(2.0))
    for axis in range(2):
        centre = at[axis] - round(at[axis])
        below = math.erf((-reach - 0.5 - centre) * scale)
        for i in range(2 * reach + 1):
            above = math.erf((i - reach + 0.5 - centre) * scale)
            edges[axis, i] = 0.5 * (above - below)
            below = above
    for j in range(max(0, row - reach), min(panel.shape[0], row + reach + 1)):
        up = photons * edges[1, j - row + reach]
        for i in range(max(0, column - reach), min(panel.shape[1], column + reach + 1)):
            panel[j, i] += up * edges[0, i - column + reach]
