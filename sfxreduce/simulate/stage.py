"""One experiment with its camera set up: all that is computed once and used by every event."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sfxreduce.run.detector import Detector
from sfxreduce.simulate.background import air_per_mm, scattering_angle_factors
from sfxreduce.simulate.crystal import Structure
from sfxreduce.simulate.detector import Response, cut, manufacture
from sfxreduce.simulate.excitation import HC_EV_A, Beam
from sfxreduce.simulate.experiments import experiment_named
from sfxreduce.simulate.settings import Experiment
from sfxreduce.simulate.spots import Frame, frame_of

__all__ = ["Stage", "stage"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """An experiment, ready for events.

    Parameters
    ----------
    frame : Frame
        Geometry for the kernels.
    medium, ambient : ndarray of float32
        Shape (panel, y, x): expected photons per pixel of one micrometre of medium, and of air and
        apertures, at the average pulse.
    s_max : float
        Largest 1/d that reaches a pixel, in 1/ångström.
    """

    experiment: Experiment
    detector: Detector
    frame: Frame
    response: Response
    medium: NDArray[np.float32]
    ambient: NDArray[np.float32]
    structure: Structure
    s_max: float

    def beam(self, wavelength_a: float) -> Beam:
        """Beam of one event for the kernels."""
        settings = self.experiment.beam
        return Beam(
            wavelength_a=wavelength_a,
            bandwidth=settings.bandwidth,
            divergence=settings.divergence_mrad * 1e-3,
            polarisation=settings.polarisation,
            s_max=self.s_max,
        )


@lru_cache(maxsize=2)
def stage(name: str, frame_shape: tuple[int, int] | None, blur_px: float | None = None) -> Stage:
    """Set up an experiment; a process keeps the two it used last.

    Parameters
    ----------
    name : str
        Of the experiment.
    frame_shape : tuple of int, optional
        (y, x): only the centre of a camera of one panel.
    blur_px : float, optional
        Spread of a point on the detector in place of the camera's own.

    Raises
    ------
    UsageError
        If the experiment is not known or its camera cannot be cut to this shape.
    """
    experiment = experiment_named(name)
    if blur_px is not None:
        camera = replace(experiment.camera, blur_px=blur_px)
        experiment = replace(experiment, camera=camera)
    detector, response = manufacture(experiment.camera, experiment.distance_m)
    if frame_shape is not None:
        detector, response = cut(detector, response, frame_shape)
    frame = frame_of(detector)
    medium, ambient, s_max = _background(experiment, detector, response)
    return Stage(
        experiment=experiment,
        detector=detector,
        frame=frame,
        response=response,
        medium=medium,
        ambient=ambient,
        structure=experiment.form.structure(),
        s_max=s_max,
    )


def _background(
    experiment: Experiment, detector: Detector, response: Response
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Maps of the medium's and the ambient scattering, and the largest 1/d on the detector."""
    beam, jet = experiment.beam, experiment.jet
    x, y = (axis.reshape(response.area.shape) for axis in detector.positions())
    distance = detector.distance_m / detector.pixel_size_m
    sin_theta, weight = scattering_angle_factors(x, y, distance, beam.polarisation)
    s = 2.0 * sin_theta * beam.photon_energy_ev / HC_EV_A
    weight *= beam.photons * experiment.camera.efficiency * response.area
    medium = (jet.medium.per_um(s) * weight).astype(np.float32)
    near = np.minimum((100.0 / np.maximum(np.hypot(x, y), 5.0)) ** 2.5, 1e3)
    ambient = jet.air_mm * air_per_mm(s) * weight + jet.aperture_photons * near * response.area
    return medium, ambient.astype(np.float32), math.nextafter(float(s.max()), math.inf)
