"""Pixels and truth of one event."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sfxreduce.simulate.excitation import Reflections, excited
from sfxreduce.simulate.random import key_of, normal_block, poisson_table, uniform_block
from sfxreduce.simulate.readout import (
    Artefacts,
    Readout,
    add_artefacts,
    artefact_at,
    count,
    digitise,
)
from sfxreduce.simulate.shot import Powder, Shot
from sfxreduce.simulate.spots import Spots, add_spots, join, land, signal_to_noise
from sfxreduce.simulate.stage import Stage

__all__ = ["background_under", "bragg_spots", "expected_photons", "frame_of_event", "visible_peaks"]

_FAINTEST_SNR = 3.0


def bragg_spots(shot: Shot, setup: Stage) -> Spots:
    """Spots of all crystals of an event, detection efficiency included."""
    beam = setup.beam(shot.wavelength_a)
    camera = setup.experiment.camera
    parts = [
        land(excited(crystal, beam, setup.structure), setup.frame, camera.blur_px)
        for crystal in shot.crystals
    ]
    spots = join(parts)
    return spots._replace(photons=spots.photons * camera.efficiency)


def expected_photons(shot: Shot, setup: Stage, key: np.uint64) -> NDArray[np.float32]:
    """Expected photons in every pixel, shape (panel, y, x).

    Parameters
    ----------
    key : uint64
        Of the event: places the grains of a coarse powder.
    """
    pulse = np.float32(shot.pulse_photons / setup.experiment.beam.photons)
    photons = setup.medium * (pulse * np.float32(shot.medium_um))
    photons += setup.ambient * pulse
    if shot.streak.photons > 0.0 or shot.powder is not None:
        add_artefacts(photons, setup.response.area, _artefacts(shot, setup), setup.frame)
    spots = bragg_spots(shot, setup)
    if shot.powder is not None:
        spots = join([spots, _grains(shot, shot.powder, setup, key)])
    if spots.x.size:
        add_spots(photons, spots)
        # Charge on a pixel that detects nothing is lost.
        photons[setup.response.area == 0.0] = 0.0
    return photons


def background_under(spots: Spots, shot: Shot, setup: Stage) -> NDArray[np.float64]:
    """Expected photons of everything but crystals in the central pixel of each spot."""
    pixel = spots.pixel(setup.frame)
    pulse = shot.pulse_photons / setup.experiment.beam.photons
    medium = setup.medium.reshape(-1)[pixel].astype(np.float64)
    ambient = setup.ambient.reshape(-1)[pixel].astype(np.float64)
    total = pulse * (medium * shot.medium_um + ambient)
    if shot.streak.photons > 0.0 or shot.powder is not None:
        frame, artefacts = setup.frame, _artefacts(shot, setup)
        step = np.stack([spots.x + 0.5, spots.y + 0.5])[:, :, None]
        place = frame.corner[spots.panel] + step[0] * frame.fast[spots.panel]
        place += step[1] * frame.slow[spots.panel]
        total += np.array([artefact_at(x, y, artefacts) for x, y in place.tolist()]).reshape(-1)
    return total


def visible_peaks(shot: Shot, setup: Stage) -> tuple[Spots, NDArray[np.float64]]:
    """Peaks of an event on good pixels with a signal to noise of 3 or more, and that value.

    Everything comes from expectation values; no pixel is rendered.
    """
    spots = bragg_spots(shot, setup)
    good = np.equal(setup.detector.mask, 0).reshape(-1) & (setup.response.area.reshape(-1) > 0.0)
    spots = spots.take(good[spots.pixel(setup.frame)])
    camera = setup.experiment.camera
    readout = camera.readout_adu / camera.adu_per_photon
    snr = signal_to_noise(spots, background_under(spots, shot, setup), readout)
    shown = snr >= _FAINTEST_SNR
    return spots.take(shown), snr[shown]


def frame_of_event(shot: Shot, setup: Stage, key: np.uint64) -> NDArray[np.generic]:
    """Pixels of one event, in the shape of a frame, in ADU.

    Parameters
    ----------
    key : uint64
        Of the event: every random number of its pixels comes from it.
    """
    camera, response = setup.experiment.camera, setup.response
    photons = expected_photons(shot, setup, key)
    photons.reshape(-1)[response.hot] += response.glow
    out = np.empty(photons.shape, camera.dtype)
    quanta, noise = key_of("photons", int(key)), key_of("noise", int(key))
    if camera.readout_adu > 0.0:
        drift = camera.common_mode_adu * normal_block(key_of("drift", int(key)), len(out))
        lowest = float(np.iinfo(camera.dtype).min)
        readout = Readout(camera.readout_adu, lowest, camera.saturation_adu, drift)
        digitise(photons, response, readout, (quanta, noise), poisson_table(), out)
    else:
        count(photons.reshape(-1), camera.saturation_adu, quanta, poisson_table(), out.reshape(-1))
    out.reshape(-1)[response.stuck] = response.reading
    return out.reshape(setup.detector.frame_shape)


def _ring_radius(d_a: NDArray[np.float64], shot: Shot, setup: Stage) -> NDArray[np.float64]:
    """Radius in pixels of powder rings; not a number where they miss a flat detector."""
    sin_theta = shot.wavelength_a / (2.0 * d_a)
    two_theta = 2.0 * np.arcsin(np.minimum(sin_theta, 1.0))
    radius = setup.frame.distance * np.tan(two_theta)
    return np.where(two_theta < math.pi / 2.0, radius, np.nan)


def _artefacts(shot: Shot, setup: Stage) -> Artefacts:
    """Streak and smooth rings of an event for the kernels."""
    powder = shot.powder
    if powder is None:
        return Artefacts(shot.streak, np.zeros(0))
    corner = setup.frame.distance * math.tan(
        2.0 * math.asin(min(setup.s_max * shot.wavelength_a / 2.0, 0.7))
    )
    radius = (np.arange(int(corner * 4) + 4) + 0.5) / 4.0
    profile = np.zeros(radius.size)
    rings = _ring_radius(np.array(powder.kind.d_a), shot, setup)
    for at, relative in zip(rings, powder.kind.relative, strict=True):
        if np.isfinite(at):
            offset = (radius - at) / powder.kind.width_px
            profile += powder.photons * relative * np.exp(-0.5 * offset * offset)
    return Artefacts(shot.streak, profile)


def _grains(shot: Shot, powder: Powder, setup: Stage, key: np.uint64) -> Spots:
    """Spots of single grains, at random places on the rings, exponentially bright."""
    u = uniform_block(key_of("grains", int(key)), 3 * powder.n_grains).reshape(3, -1)
    share = np.cumsum(powder.kind.relative) / np.sum(powder.kind.relative)
    d_a = np.array(powder.kind.d_a)[np.searchsorted(share, u[0])]
    two_theta = 2.0 * np.arcsin(np.minimum(shot.wavelength_a / (2.0 * d_a), 1.0))
    azimuth = 2.0 * math.pi * u[1]
    sine = np.sin(two_theta)
    direction = np.stack([sine * np.cos(azimuth), sine * np.sin(azimuth), np.cos(two_theta)], 1)
    forward = direction[:, 2] > 0.1
    spread = np.full(powder.n_grains, powder.kind.width_px / setup.frame.distance)
    grains = Reflections(
        hkl=np.zeros((powder.n_grains, 3), np.int64),
        direction=direction,
        photons=-powder.grain_photons * np.log(u[2]),
        radial=0.2 * spread,
        tangential=spread,
    )
    return land(grains.take(forward), setup.frame, setup.experiment.camera.blur_px)
