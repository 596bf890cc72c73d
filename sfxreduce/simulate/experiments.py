"""Named experiments: crystal form, beam, jet, sample, camera and distance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from sfxreduce.errors import UsageError
from sfxreduce.simulate import layouts
from sfxreduce.simulate.background import LIPID_MESOPHASE, WATER, Medium
from sfxreduce.simulate.crystal import CrystalForm
from sfxreduce.simulate.detector import Camera, Defects

__all__ = [
    "EXPERIMENTS",
    "BeamSettings",
    "Experiment",
    "JetSettings",
    "SampleSettings",
    "experiment_named",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSettings:
    """X-ray pulses.

    Parameters
    ----------
    photon_energy_ev : float
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
    repetition_hz : float
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
    medium : Medium
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

    medium: Medium
    thickness_um: float
    thickness_spread: float = 0.25
    air_mm: float = 0.01
    aperture_photons: float = 0.1
    streak_rate: float = 0.02
    ice_rate: float = 0.01
    salt_rate: float = 0.01
    streak_angle_deg: float = 90.0
    streak_photons: float = 150.0
    powder_photons: float = 4.0


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
    """Everything that stays the same from event to event.

    Parameters
    ----------
    name, title : str
    form : CrystalForm
    beam : BeamSettings
    jet : JetSettings
    sample : SampleSettings
    camera : Camera
    distance_m : float
    """

    name: str
    title: str
    form: CrystalForm
    beam: BeamSettings
    jet: JetSettings
    sample: SampleSettings
    camera: Camera
    distance_m: float


_LYSOZYME = CrystalForm(
    name="lysozyme",
    cell=(79.0, 79.0, 38.0, 90.0, 90.0, 90.0),
    point_group="422",
    centring="P",
    b_factor_a2=22.0,
    matthews_a3_per_da=2.05,
    source="PDB 4ET8; S. Boutet et al., Science 337 (2012) 362. doi:10.1126/science.1217737",
)
_PHOTOSYSTEM_I = CrystalForm(
    name="photosystem I",
    cell=(281.0, 281.0, 165.2, 90.0, 90.0, 120.0),
    point_group="6",
    centring="P",
    b_factor_a2=60.0,
    matthews_a3_per_da=5.0,
    source="PDB 1JB0; P. Jordan et al., Nature 411 (2001) 909. doi:10.1038/35082000",
)

_CAMERA_1750 = Camera(
    name="camera-1750",
    panel_shape=(1750, 1750),
    panels=partial(layouts.one_panel, 1750, 1750),
    pixel_size_m=110e-6,
    dtype="int16",
    adu_per_photon=20.0,
    readout_adu=4.0,
    saturation_adu=16383.0,
    pedestal_adu=1.0,
    common_mode_adu=0.5,
    defects=Defects(),
)

EXPERIMENTS = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Experiment(
                name="lysozyme-8kev",
                title="lysozyme microcrystals in a liquid jet, small cell",
                form=_LYSOZYME,
                beam=BeamSettings(photon_energy_ev=8000.0, photons=8e11),
                jet=JetSettings(medium=WATER, thickness_um=2.0),
                sample=SampleSettings(size_um=0.8),
                camera=_CAMERA_1750,
                distance_m=0.15,
            ),
            Experiment(
                name="photosystem-i-8kev",
                title="photosystem I in a liquid jet, large cell: many peaks near the centre",
                form=_PHOTOSYSTEM_I,
                beam=BeamSettings(photon_energy_ev=8000.0, photons=8e11),
                jet=JetSettings(medium=WATER, thickness_um=3.0),
                sample=SampleSettings(size_um=1.2, size_spread=0.6, domain_a=2500.0),
                camera=_CAMERA_1750,
                distance_m=0.15,
            ),
        )
    }
)
"""Experiments by name."""


def experiment_named(name: str) -> Experiment:
    """Experiment of a name.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    if name not in EXPERIMENTS:
        raise UsageError(f"experiment '{name}' is not known; expected one of {sorted(EXPERIMENTS)}")
    return EXPERIMENTS[name]
