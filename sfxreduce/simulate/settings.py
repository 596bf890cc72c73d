"""What an experiment is made of: beam, jet, sample, camera."""

from __future__ import annotations

from dataclasses import dataclass

from sfxreduce.simulate.background import WATER, Medium
from sfxreduce.simulate.crystal import CrystalForm
from sfxreduce.simulate.detector import Camera

__all__ = ["BeamSettings", "Experiment", "JetSettings", "SampleSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSettings:
    """X-ray pulses.

    Parameters
    ----------
    photons : float
        Photons at the sample in an average pulse.
    pulse_energy_mj : float
        Average pulse energy at the source.
    focus_um : float
        Full width at half maximum at the sample.
    bandwidth : float
        Relative, standard deviation.
    divergence_mrad : float
        Standard deviation.
    pulse_jitter, energy_jitter : float
        Relative spread of pulse energy and photon energy from event to event.
    polarisation : float
        Share polarised along the frame's x axis.
    """

    photon_energy_ev: float
    photons: float
    pulse_energy_mj: float = 2.0
    focus_um: float = 3.0
    bandwidth: float = 8e-4
    divergence_mrad: float = 0.1
    pulse_jitter: float = 0.12
    energy_jitter: float = 1.5e-3
    polarisation: float = 1.0
    repetition_hz: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JetSettings:
    """What carries the crystals, and the scattering that comes with it.

    Parameters
    ----------
    thickness_um, thickness_spread : float
        Median in micrometres, and the spread of its logarithm from event to event.
    air_mm : float
        Path through air, or what the residual gas is worth, in millimetres at one atmosphere.
    aperture_photons : float
        Scattering from apertures at 100 pixels from the beam, photons per pixel.
    streak_rate, ice_rate, salt_rate : float
        Share of events with a jet streak, ice or salt in the beam.
    streak_angle_deg : float
        Direction of the streak from the frame's x axis.
    streak_photons, powder_photons : float
        Median photons per pixel at the streak's centre and on the strongest powder ring.
    """

    medium: Medium = WATER
    thickness_um: float
    thickness_spread: float = 0.25
    air_mm: float = 0.01
    aperture_photons: float = 0.1
    streak_rate: float = 0.02
    ice_rate: float = 0.01
    salt_rate: float = 0.01
    streak_angle_deg: float = 90.0
    streak_photons: float = 150.0
    powder_photons: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """Crystals in the stream.

    Parameters
    ----------
    size_um, size_spread : float
        Median edge in micrometres, and the spread of its logarithm.
    domain_a : float
        Median size of a coherent domain in ångström.
    mosaicity_deg : float
        Median mosaicity, a standard deviation in degrees.
    b_spread_a2 : float
        Mean of what single crystals add to the overall B factor, in ångström squared.
    multi_rate : float
        Probability that a hit crystal has a further one beside it.
    """

    size_um: float
    size_spread: float = 0.5
    domain_a: float = 4000.0
    mosaicity_deg: float = 0.02
    b_spread_a2: float = 6.0
    multi_rate: float = 0.12


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Everything that stays the same from event to event."""

    name: str
    title: str
    form: CrystalForm
    beam: BeamSettings
    jet: JetSettings
    sample: SampleSettings
    camera: Camera
    distance_m: float
