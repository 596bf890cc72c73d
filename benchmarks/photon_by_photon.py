"""Runs rendered photon by photon, by nothing that the product's own simulator is made of.

What differs from `sfxreduce.simulate`, so that a method tuned on it meets something else here:

- background: a Lorentzian around the beam and one diffuse ring with a two-fold modulation, each
  with a strength of its own in every event, instead of tabulated scattering of a jet;
- spots: every photon of a spot is thrown by itself, across and along the radius. Places are random
  and strengths exponential (Wilson statistics), so that no lattice and no structure factor helps;
- noise: each pixel has its own gain, its own readout noise and its own offset, rows drift, and a
  few pixels are three times as noisy as the others.

A peak counts as true by the rule of the simulator, from expected photons alone: its photons over
the noise of itself, of the background and of the readout within the noise-equivalent area [1]_.

References
----------
.. [1] I. R. King, Publ. Astron. Soc. Pac. 95 (1983) 163. doi:10.1086/131139
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

__all__ = ["Artefacts", "Camera", "Crystals", "Rendering", "RunPlan", "Truth", "write_run"]

COUNTED_SNR = 5.0
"""Signal to noise from which a peak counts."""

WEAK_SPOTS = (2, 9)
"""Fewest and most spots of a weak crystal."""

_BEAMSTOP_PX = 10.0
_PIXEL_VARIANCE = 1.0 / 12.0
_NOISE_STARTS = 2**20
_JOULE_PER_EV = 1.602176634e-19
_PIXEL_M = 110e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """A square detector with the beam in its middle.

    Parameters
    ----------
    side : int
        Pixels along an edge of the assembled picture.
    panels : int
        Slabs that frames are delivered in, (panel, y, x); 1 for whole frames.
    gain : float
        ADU per photon.
    readout : float
        Readout noise per pixel in photons, a standard deviation; 0 for a photon counter.
    dtype : str
        Of a pixel. Floating frames are calibrated ones: not rounded, with values below zero.
    full_scale : float
        Highest value in ADU.
    has_metadata : bool
        Whether the file has distance, photon energy, pixel size, gain, full scale and time stamps.
    """

    side: int
    panels: int = 1
    gain: float = 20.0
    readout: float = 0.2
    dtype: str = "int16"
    full_scale: float = 16383.0
    has_metadata: bool = True

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of a stored frame."""
        whole = (self.side, self.side)
        return whole if self.panels == 1 else (self.panels, self.side // self.panels, self.side)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crystals:
    """What a crystal shows.

    Parameters
    ----------
    spots : tuple of int
        Fewest and most spots of a crystal that is not weak.
    photons : float
        Mean photons of a spot at the beam; there are fewer at high angles.
    even : float
        How much of a strength is the same for all spots; the rest is exponential.
    sigma_px : float
        Width of a spot, a standard deviation.
    streak_px : float
        Full length of the longest spot along the radius; lengths are uniform from a third of it.
    bandwidth : float
        Relative width of the spectrum, a standard deviation: it draws a spot out along the radius.
    within_px : float
        All spots are as near to the beam; 0 for as far as the frame goes.
    weak : float
        Share of the crystals with `WEAK_SPOTS` spots only.
    """

    spots: tuple[int, int] = (12, 60)
    photons: float = 90.0
    even: float = 0.0
    sigma_px: float = 0.8
    streak_px: float = 0.0
    bandwidth: float = 0.0
    within_px: float = 0.0
    weak: float = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefacts:
    """What is on the frames besides background and crystals.

    Parameters
    ----------
    jets, rings, salt, ice, empty : float
        Share of the events with a jet streak, with powder rings of any radius (every other one of
        them grainy), with a few strong spots of salt, with grainy ice rings, and without beam.
    hot_columns, hot_pixels : int
        Number of columns and of pixels that are too bright in most frames, and masked in none.
    panel_offsets : float
        Offsets of the sixteen parts of a frame in photons, a standard deviation.
    off : str
        Whether half of the frame is ``masked`` or, without a mask, ``constant``; empty if neither.
    """

    jets: float = 0.0
    rings: float = 0.0
    salt: float = 0.0
    ice: float = 0.0
    empty: float = 0.0
    hot_columns: int = 0
    hot_pixels: int = 0
    panel_offsets: float = 0.0
    off: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """A run before it is rendered.

    Parameters
    ----------
    hit_rate : float
        Share of the events with a crystal.
    later_hit_rate : float or None
        The same in the second half of the run, if it is another.
    background : float
        Photons per pixel near the beam.
    later_background : float
        By how much the second half of the run is brighter.
    """

    name: str
    camera: Camera
    hit_rate: float
    later_hit_rate: float | None = None
    crystals: Crystals = field(default_factory=Crystals)
    background: float = 1.0
    later_background: float = 1.0
    artefacts: Artefacts = field(default_factory=Artefacts)
    n_events: int = 300
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """What is known of the events of a run.

    Parameters
    ----------
    has_crystal : ndarray of bool
        Shape (event,).
    n_peaks : ndarray of int32
        True peaks, shape (event,).
    """

    has_crystal: NDArray[np.bool_]
    n_peaks: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Spots:
    """Places in pixels, expected photons, and standard deviations along and across the radius."""

    y: NDArray[np.float64]
    x: NDArray[np.float64]
    photons: NDArray[np.float64]
    along: NDArray[np.float64]
    across: NDArray[np.float64]


class Rendering:
    """Frames of a run, one after the other; the same plan gives the same frames.

    Parameters
    ----------
    plan : RunPlan
    """

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        camera, side = plan.camera, plan.camera.side
        rng = np.random.default_rng([plan.seed, 0])
        self.has_crystal = _with_crystal(plan, rng)
        self.middle = (side - 1) / 2
        y, x = np.indices((side, side), np.float32) - np.float32(self.middle)
        self.radius = np.hypot(y, x)
        self.near, self.ring = _scattering(self.radius, np.arctan2(y, x), side, plan.background)
        self.gain = np.ones((side, side), np.float32)
        self.noise, self.offset = np.zeros((2, side, side), np.float32)
        if camera.readout:
            self.gain += np.float32(0.015) * rng.standard_normal((side, side), np.float32)
            self.noise += camera.readout * np.exp(0.1 * rng.standard_normal((side, side)))
            self.noise[rng.random((side, side)) < 5e-4] *= 3
            self.offset += 0.1 * camera.readout * rng.standard_normal((side, side))
        self.normals = rng.standard_normal(side * side + _NOISE_STARTS, np.float32)
        blocks = plan.artefacts.panel_offsets * rng.standard_normal((4, 4))
        cut = np.minimum(np.arange(side) * 4 // side, 3)
        self.offset += blocks[np.ix_(cut, cut)].astype(np.float32)
        self.hot = rng.integers(side, size=(2, plan.artefacts.hot_pixels))
        self.glow = rng.uniform(5, 150, plan.artefacts.hot_pixels)
        self.columns = rng.choice(side, plan.artefacts.hot_columns, replace=False)
        self.column_glow = rng.uniform(1, 6, plan.artefacts.hot_columns)
        self.streak_angle = rng.uniform(0, np.pi)

    @cached_property
    def working(self) -> NDArray[np.bool_]:
        """Pixels that deliver something, shape (y, x); half of eight slabs may not."""
        side = self.plan.camera.side
        rows = np.arange(side) * 8 // side % 2 == 0 if self.plan.artefacts.off else np.ones(side)
        return np.broadcast_to(rows.astype(bool)[:, np.newaxis], (side, side))

    def event(self, number: int) -> tuple[NDArray[np.generic], int]:
        """Render one event.

        Returns
        -------
        tuple of (ndarray, int)
            The frame as it is stored, in ADU, and its true peaks.
        """
        plan = self.plan
        rng = np.random.Generator(np.random.SFC64([plan.seed, 1, number]))
        later = number >= plan.n_events // 2
        level = plan.later_background if later else 1.0
        empty = rng.random() < plan.artefacts.empty
        strengths = rng.lognormal(0.0, 0.15, 2) * level * (not empty)
        expected = np.float32(strengths[0]) * self.near
        expected += np.float32(strengths[1]) * self.ring
        others = self._add_artefacts(expected, rng) if not empty else []
        photons = _arrived(expected, rng)
        n_peaks = 0
        if self.has_crystal[number] and not empty:
            spots = self._crystal(rng)
            n_peaks = self._n_true(spots, expected)
            others.append(spots)
        for spots in others:
            self._throw(photons, spots, rng)
        return self._read_out(photons, rng), n_peaks

    def _crystal(self, rng: np.random.Generator) -> _Spots:
        crystals, side = self.plan.crystals, self.plan.camera.side
        n = rng.integers(*crystals.spots, endpoint=True)
        if rng.random() < crystals.weak:
            n = rng.integers(*WEAK_SPOTS, endpoint=True)
        reach = crystals.within_px or 0.48 * side
        radius = np.sqrt(rng.uniform((2 * _BEAMSTOP_PX) ** 2, reach**2, n))
        strength = crystals.even + (1 - crystals.even) * rng.exponential(1.0, n)
        strength *= crystals.photons * rng.lognormal(0.0, 0.4)
        strength *= np.exp(-0.5 * (radius / (0.8 * reach)) ** 2)
        along = np.hypot(crystals.sigma_px, crystals.bandwidth * radius)
        if crystals.streak_px:
            # The standard deviation of a uniform length.
            along = rng.uniform(crystals.streak_px / 3, crystals.streak_px, n) / math.sqrt(12)
        return self._at(radius, strength, np.maximum(along, crystals.sigma_px), rng)

    def _at(
        self,
        radius: NDArray[np.float64],
        photons: NDArray[np.float64],
        along: NDArray[np.float64],
        rng: np.random.Generator,
        across: float | None = None,
    ) -> _Spots:
        """Spots of these radii all around the beam."""
        angle = rng.uniform(0, 2 * np.pi, radius.size)
        return _Spots(
            y=self.middle + radius * np.sin(angle),
            x=self.middle + radius * np.cos(angle),
            photons=photons,
            along=along,
            across=np.full(radius.size, self.plan.crystals.sigma_px if across is None else across),
        )

    def _n_true(self, spots: _Spots, expected: NDArray[np.float32]) -> int:
        """Count the spots that an observer of the expected photons would tell from noise."""
        y, x = np.rint(spots.y).astype(int), np.rint(spots.x).astype(int)
        area = (
            4
            * math.pi
            * np.sqrt((spots.along**2 + _PIXEL_VARIANCE) * (spots.across**2 + _PIXEL_VARIANCE))
        )
        under = area * (expected[y, x] + self.plan.camera.readout**2)
        snr = spots.photons / np.sqrt(spots.photons + under)
        return int(np.count_nonzero((snr >= COUNTED_SNR) & self.working[y, x]))

    def _throw(self, photons: NDArray[np.float32], spots: _Spots, rng: np.random.Generator) -> None:
        """Add spots to a frame, photon by photon, in place."""
        counts = rng.poisson(spots.photons)
        owner = np.repeat(np.arange(counts.size), counts)
        along = spots.along[owner]
        if self.plan.crystals.streak_px:
            along *= math.sqrt(12) * (rng.random(owner.size) - 0.5)
        else:
            along *= rng.standard_normal(owner.size)
        across = spots.across[owner] * rng.standard_normal(owner.size)
        angle = np.arctan2(spots.y - self.middle, spots.x - self.middle)[owner]
        sine, cosine = np.sin(angle), np.cos(angle)
        y = np.rint(spots.y[owner] + along * sine + across * cosine).astype(int)
        x = np.rint(spots.x[owner] + along * cosine - across * sine).astype(int)
        side = self.plan.camera.side
        on = (y >= 0) & (y < side) & (x >= 0) & (x < side)
        np.add.at(photons, (y[on], x[on]), np.float32(1))

    def _add_artefacts(
        self, expected: NDArray[np.float32], rng: np.random.Generator
    ) -> list[_Spots]:
        """Add streaks and smooth rings to the expected photons; return grains and salt."""
        artefacts, spots = self.plan.artefacts, []
        half = self.plan.camera.side / 2
        if rng.random() < artefacts.jets:
            self._add_jet(expected, rng)
        if rng.random() < artefacts.rings:
            radii = rng.uniform(0.1 * half, 0.95 * half, rng.integers(1, 5))
            profile = np.zeros(int(self.radius.max()) + 2, np.float32)
            at = np.arange(profile.size)
            for radius in radii:
                profile += rng.uniform(0.3, 3) * np.exp(-(((at - radius) / rng.uniform(1, 3)) ** 2))
            expected += profile[self.radius.astype(np.int32)]
            if rng.random() < 0.5:
                spots += [self._grains(radius, rng, photons=40) for radius in radii]
        if rng.random() < artefacts.ice:
            spots += [self._grains(at * half, rng, photons=150) for at in (0.61, 0.65, 0.69)]
        if rng.random() < artefacts.salt:
            radius = rng.uniform(0.2 * half, 0.95 * half, rng.integers(2, 6))
            bright = rng.uniform(500, 5000, radius.size)
            spots.append(self._at(radius, bright, np.full(radius.size, 1.2), rng, across=1.2))
        return spots

    def _grains(self, radius: float, rng: np.random.Generator, *, photons: float) -> _Spots:
        """Single grains of a powder ring."""
        n = int(rng.integers(8, 30))
        return self._at(
            radius + rng.standard_normal(n),
            photons * rng.exponential(1.0, n),
            np.full(n, 0.8),
            rng,
            across=0.8,
        )

    def _add_jet(self, expected: NDArray[np.float32], rng: np.random.Generator) -> None:
        """Add the streak of a jet: a straight line through the beam that flickers."""
        reach = min(160, self.plan.camera.side // 2 - 1)
        start = int(self.middle) - reach
        square = slice(start, start + 2 * reach)
        y, x = np.indices((2 * reach, 2 * reach)) + start - self.middle
        angle = self.streak_angle + rng.normal(0, 0.02)
        along = x * np.cos(angle) + y * np.sin(angle)
        across = y * np.cos(angle) - x * np.sin(angle)
        profile = np.exp(-0.5 * (across / rng.uniform(0.8, 1.6)) ** 2)
        profile *= np.exp(-np.abs(along) / rng.uniform(15, 50)) * rng.uniform(10, 150)
        knots = rng.gamma(2.0, 0.5, 2 * reach)
        profile *= knots[np.clip(along + reach, 0, 2 * reach - 1).astype(int)]
        expected[square, square] += profile.astype(np.float32)

    def _read_out(
        self, photons: NDArray[np.float32], rng: np.random.Generator
    ) -> NDArray[np.generic]:
        """Turn photons into a frame in ADU."""
        camera, artefacts = self.plan.camera, self.plan.artefacts
        photons *= self.gain
        photons += self.offset
        if camera.readout:
            start = rng.integers(_NOISE_STARTS)
            noise = self.normals[start : start + photons.size].reshape(photons.shape)
            photons += noise * self.noise
            rows = 0.1 * rng.standard_normal((camera.side, 1)) + 0.2 * rng.standard_normal()
            photons += (camera.readout * rows).astype(np.float32)
        if artefacts.hot_pixels:
            bright = rng.random(self.glow.size) < 0.8
            photons[tuple(self.hot)] += self.glow * bright * rng.uniform(0.5, 1.5, self.glow.size)
        if artefacts.hot_columns:
            flicker = rng.uniform(0.5, 1.5, self.columns.size) * self.column_glow
            photons[:, self.columns] += rng.exponential(flicker, (camera.side, self.columns.size))
        if artefacts.off:
            photons[~self.working] = 0
        photons *= camera.gain
        dtype = np.dtype(camera.dtype)
        if dtype.kind == "f":
            return photons.astype(dtype).reshape(camera.frame_shape)
        lowest = max(np.iinfo(dtype).min, -32768)
        adu = np.clip(np.rint(photons, out=photons), lowest, camera.full_scale, out=photons)
        return adu.astype(dtype).reshape(camera.frame_shape)


def _with_crystal(plan: RunPlan, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Events with a crystal: exactly as many as the hit rates ask for, in each half of the run."""
    later = plan.hit_rate if plan.later_hit_rate is None else plan.later_hit_rate
    cut = plan.n_events // 2
    halves = []
    for rate, size in ((plan.hit_rate, cut), (later, plan.n_events - cut)):
        halves.append(rng.permutation(size) < round(rate * size))
    return np.concatenate(halves)


def _scattering(
    radius: NDArray[np.float32], angle: NDArray[np.float32], side: int, level: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Expected photons around the beam and in the diffuse ring, behind a beamstop."""
    near = 0.06 + 1.1 / (1 + (radius / (0.12 * side + 20)) ** 2)
    ring = np.exp(-(((radius - 0.27 * side) / (0.09 * side)) ** 2))
    ring *= 0.7 * (1 + 0.25 * np.cos(2 * angle + 0.7))
    open_ = radius > _BEAMSTOP_PX
    return (level * near * open_).astype(np.float32), (level * ring * open_).astype(np.float32)


def _arrived(expected: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw Poisson numbers of photons.

    Of less than about a photon a pixel it is faster to let them arrive one after the other: the
    waiting times are exponential, and a pixel counts until its time is over.
    """
    if expected.mean() > 1:
        return rng.poisson(expected).astype(np.float32)
    photons = np.zeros(expected.size, np.float32)
    left = expected.ravel() - rng.standard_exponential(expected.size, np.float32)
    at = np.flatnonzero(left > 0)
    left = left[at]
    while at.size:
        photons[at] += 1
        left -= rng.standard_exponential(at.size, np.float32)
        more = left > 0
        at, left = at[more], left[more]
    return photons.reshape(expected.shape)


def write_run(plan: RunPlan, path: Path) -> Truth:
    """Render a run into a CXI file.

    The frames lie in chunks of one event, not packed: what is measured is judgement, not decoding.

    Returns
    -------
    Truth
        It is not in the file.
    """
    rendering, camera = Rendering(plan), plan.camera
    n_peaks = np.zeros(plan.n_events, np.int32)
    with h5py.File(path, "w") as file:
        shape = camera.frame_shape
        frames = file.create_dataset(
            "/entry_1/data_1/data", (plan.n_events, *shape), camera.dtype, chunks=(1, *shape)
        )
        for event in range(plan.n_events):
            frame, n_peaks[event] = rendering.event(event)
            frames.id.write_direct_chunk((event, *([0] * len(shape))), frame.tobytes())
        if camera.has_metadata:
            _write_metadata(file, plan)
        if plan.artefacts.off == "masked":
            mask = np.where(rendering.working, 0, 0x80).astype(np.uint16).reshape(shape)
            file["/entry_1/instrument_1/detector_1/mask"] = mask
    return Truth(has_crystal=rendering.has_crystal, n_peaks=n_peaks)


def _corners(camera: Camera) -> NDArray[np.float64]:
    """First corner of each slab, (x, y, z) in metres from the beam, shape (panel, 3).

    They are a pixel further apart than they were rendered: of slabs without a gap nobody believes
    that their places are known.
    """
    left = np.full(camera.panels, -camera.side / 2)
    from_middle = np.arange(camera.panels) - (camera.panels - 1) / 2
    top = from_middle * (camera.frame_shape[1] + 1) - camera.frame_shape[1] / 2
    return _PIXEL_M * np.stack([left, top, np.zeros(camera.panels)], axis=1)


def _write_metadata(file: h5py.File, plan: RunPlan) -> None:
    """Add what a CXI file says of beam, detector and time."""
    detector = file.require_group("/entry_1/instrument_1/detector_1")
    detector["distance"], detector["x_pixel_size"] = 0.15, _PIXEL_M
    if plan.camera.panels > 1:
        detector["corner_position"] = _corners(plan.camera)
    detector["adu_per_photon"] = plan.camera.gain
    detector["saturation_value"] = plan.camera.full_scale
    n = plan.n_events
    file["/entry_1/instrument_1/source_1/energy"] = np.full(n, 8000.0 * _JOULE_PER_EV)
    file["/LCLS/machineTime"] = 1_500_000_000 + np.arange(n) // 120
    file["/LCLS/machineTimeNanoSeconds"] = np.arange(n) % 120 * 8_333_333
