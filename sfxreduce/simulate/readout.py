"""From expected photons to what the detector delivers."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.simulate.background import Streak, streak_at
from sfxreduce.simulate.detector import Response
from sfxreduce.simulate.random import PoissonTable, normal, poisson, uniform
from sfxreduce.simulate.spots import Frame

__all__ = ["Artefacts", "Readout", "add_artefacts", "artefact_at", "count", "digitise"]

_RING_STEPS = 4
"""Samples of a powder profile per pixel of radius."""


class Artefacts(NamedTuple):
    """What shines on a frame besides the medium and the crystals.

    ``rings`` are the photons per pixel of a smooth powder by radius, four samples per pixel; empty
    if there is none.
    """

    streak: Streak
    rings: NDArray[np.float64]


class Readout(NamedTuple):
    """Electronics of one event: noise, lowest and highest reading in ADU, each panel's drift."""

    noise: float
    lowest: float
    highest: float
    drift: NDArray[np.float64]


@compiled
def artefact_at(x: float, y: float, artefacts: Artefacts) -> float:
    """Photons of streak and powder rings at (x, y), in pixels from the beam."""
    photons = streak_at(x, y, artefacts.streak) if artefacts.streak.photons > 0.0 else 0.0
    if artefacts.rings.size:
        radius = int(math.sqrt(x * x + y * y) * _RING_STEPS)
        if radius < artefacts.rings.size:
            photons += artefacts.rings[radius]
    return photons


@compiled
def add_artefacts(
    photons: NDArray[np.float32], area: NDArray[np.float32], artefacts: Artefacts, frame: Frame
) -> None:
    """Add streak and powder rings to the expected photons of a frame, in place."""
    for p in range(photons.shape[0]):
        fx, fy = frame.fast[p]
        sx, sy = frame.slow[p]
        for j in range(photons.shape[1]):
            x0 = frame.corner[p, 0] + 0.5 * fx + (j + 0.5) * sx
            y0 = frame.corner[p, 1] + 0.5 * fy + (j + 0.5) * sy
            for i in range(photons.shape[2]):
                extra = artefact_at(x0 + i * fx, y0 + i * fy, artefacts)
                if extra > 0.0:
                    photons[p, j, i] += extra * area[p, j, i]


@compiled
def count(
    photons: NDArray[np.float32],
    full_scale: float,
    key: np.uint64,
    table: PoissonTable,
    out: NDArray[np.uint16],
) -> None:
    """Counts of a photon counter: Poisson deviates of the expected photons, capped."""
    for i in range(photons.size):
        out[i] = min(poisson(photons[i], key, np.uint64(i), table), int(full_scale))


@compiled
def digitise(
    photons: NDArray[np.float32],
    response: Response,
    readout: Readout,
    keys: tuple[np.uint64, np.uint64],
    table: PoissonTable,
    out: NDArray[np.int16],
) -> None:
    """Readings of an integrating detector: photons, gain, offset, drift and noise, rounded."""
    size = photons[0].size
    for p in range(photons.shape[0]):
        expected = photons[p].reshape(size)
        gain = response.gain[p].reshape(size)
        offset = response.offset[p].reshape(size)
        panel = out[p].reshape(size)
        for i in range(size):
            at = np.uint64(p * size + i)
            n = poisson(expected[i], keys[0], at, table)
            noise = readout.noise * normal(uniform(keys[1], at))
            level = gain[i] * n + offset[i] + readout.drift[p] + noise
            panel[i] = math.floor(min(max(level, readout.lowest), readout.highest) + 0.5)
