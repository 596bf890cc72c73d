"""Named experiments: crystal form, beam, jet, sample, camera and distance of each."""

from __future__ import annotations

from types import MappingProxyType

from sfxreduce.errors import UsageError
from sfxreduce.simulate import layouts
from sfxreduce.simulate.background import LIPID_MESOPHASE
from sfxreduce.simulate.crystal import CrystalForm
from sfxreduce.simulate.detector import Camera, Defects
from sfxreduce.simulate.settings import BeamSettings, Experiment, JetSettings, SampleSettings

__all__ = ["EXPERIMENTS", "experiment_named"]

_CAMERA_1750 = Camera(
    name="camera-1750",
    panel_shape=(1750, 1750),
    pixel_size_m=110e-6,
    dtype="int16",
    adu_per_photon=20.0,
    readout_adu=4.0,
    saturation_adu=16383.0,
    pedestal_adu=1.0,
    common_mode_adu=0.5,
    beamstop_px=10.0,
)
_RAYONIX = Camera(
    name="rayonix-mx340-4x4",
    panel_shape=(1920, 1920),
    pixel_size_m=177e-6,
    dtype="uint16",
    adu_per_photon=6.0,
    readout_adu=3.0,
    saturation_adu=65535.0,
    blur_px=0.5,
    efficiency=0.8,
    baseline_adu=40.0,
    pedestal_adu=1.5,
    chip_shape=(480, 480),
    beamstop_px=12.0,
    defects=Defects(unmasked_hot=1, hot_level=60.0),
)
_EIGER_4M = Camera(
    name="eiger-4m",
    panel_shape=(2167, 2070),
    pixel_size_m=75e-6,
    dtype="uint16",
    adu_per_photon=1.0,
    readout_adu=0.0,
    saturation_adu=65534.0,
    blur_px=0.3,
    efficiency=0.8,
    chip_shape=(514, 1030),
    gap_px=(37, 10),
    beamstop_px=30.0,
    defects=Defects(dead=40, hot=15, stuck=0),
)
_JUNGFRAU_4M = Camera(
    name="jungfrau-4m",
    panel_shape=(512, 1024),
    panels=layouts.jungfrau_4m,
    pixel_size_m=75e-6,
    dtype="int32",
    adu_per_photon=100.0,
    readout_adu=4.0,
    saturation_adu=1.0e6,
    blur_px=0.2,
    chip_shape=(256, 256),
    seam_area=2.0,
    pedestal_adu=2.0,
    common_mode_adu=1.0,
    defects=Defects(dead=150, hot=60),
)
_CSPAD = Camera(
    name="cspad",
    panel_shape=(185, 388),
    panels=layouts.cspad,
    pixel_size_m=110e-6,
    dtype="int16",
    adu_per_photon=27.0,
    readout_adu=5.0,
    saturation_adu=14000.0,
    gain_spread=0.03,
    chip_shape=(185, 194),
    seam_area=2.5,
    pedestal_adu=3.0,
    common_mode_adu=2.0,
    edge_masked=True,
    defects=Defects(dead=300, hot=100, stuck=30, unmasked_hot=2, hot_level=30.0),
)
_AGIPD_1M = Camera(
    name="agipd-1m",
    panel_shape=(512, 128),
    panels=layouts.agipd_1m,
    pixel_size_m=200e-6,
    dtype="int32",
    adu_per_photon=100.0,
    readout_adu=11.0,
    saturation_adu=1.0e6,
    blur_px=0.1,
    chip_shape=(64, 128),
    pedestal_adu=3.0,
    common_mode_adu=2.0,
    edge_masked=True,
    defects=Defects(dead=300, hot=100),
)

_LYSOZYME = Experiment(
    name="lysozyme-8kev",
    title="lysozyme in a liquid jet: small cell, few peaks near the centre",
    form=CrystalForm(
        name="lysozyme",
        cell=(79.0, 79.0, 38.0, 90.0, 90.0, 90.0),
        point_group="422",
        centring="P",
        b_factor_a2=16.0,
        matthews_a3_per_da=2.05,
        source="PDB 4ET8; S. Boutet et al., Science 337 (2012) 362. doi:10.1126/science.1217737",
    ),
    beam=BeamSettings(
        photon_energy_ev=8000.0, photons=1.0e12, bandwidth=5.0e-4, divergence_mrad=0.05
    ),
    jet=JetSettings(thickness_um=2.0, aperture_photons=0.05),
    sample=SampleSettings(size_um=0.6, size_spread=0.8, domain_a=8000.0, mosaicity_deg=0.01),
    camera=_CAMERA_1750,
    distance_m=0.15,
)
_PHOTOSYSTEM_I = Experiment(
    name="photosystem-i-8kev",
    title="photosystem I in a liquid jet: large cell, many peaks near the centre",
    form=CrystalForm(
        name="photosystem I",
        cell=(281.0, 281.0, 165.2, 90.0, 90.0, 120.0),
        point_group="6",
        centring="P",
        b_factor_a2=60.0,
        matthews_a3_per_da=3.5,
        source="PDB 1JB0; P. Jordan et al., Nature 411 (2001) 909. doi:10.1038/35082000",
    ),
    beam=BeamSettings(photon_energy_ev=8000.0, photons=8.0e11),
    jet=JetSettings(thickness_um=3.0, aperture_photons=0.3, streak_rate=0.03),
    sample=SampleSettings(size_um=0.7, size_spread=0.6, domain_a=5000.0, mosaicity_deg=0.006),
    camera=_CAMERA_1750,
    distance_m=0.15,
)
_POLYHEDRIN = Experiment(
    name="polyhedrin-6kev",
    title="polyhedrin on a far, blurring camera: body-centred, low energy",
    form=CrystalForm(
        name="polyhedrin",
        cell=(103.0, 103.0, 103.0, 90.0, 90.0, 90.0),
        point_group="23",
        centring="I",
        b_factor_a2=18.0,
        matthews_a3_per_da=1.65,
        source="PDB 2OH6; F. Coulibaly et al., Nature 446 (2007) 97. doi:10.1038/nature05628",
    ),
    beam=BeamSettings(photon_energy_ev=6000.0, photons=4.0e11, focus_um=5.0, bandwidth=1.2e-3),
    jet=JetSettings(
        thickness_um=5.0, air_mm=0.03, streak_rate=0.03, salt_rate=0.0, streak_photons=900.0
    ),
    sample=SampleSettings(size_um=0.7, size_spread=0.6, multi_rate=0.2),
    camera=_RAYONIX,
    distance_m=0.30,
)
_THAUMATIN = Experiment(
    name="thaumatin-eiger",
    title="thaumatin on a chip at a synchrotron: photon counter, sharp beam",
    form=CrystalForm(
        name="thaumatin",
        cell=(58.0, 58.0, 150.0, 90.0, 90.0, 90.0),
        point_group="422",
        centring="P",
        b_factor_a2=25.0,
        matthews_a3_per_da=2.85,
        source="PDB 1RQW; Q. Ma, G. M. Sheldrick (2004)",
    ),
    beam=BeamSettings(
        photon_energy_ev=12800.0,
        photons=2.0e10,
        focus_um=8.0,
        bandwidth=1.0e-4,
        divergence_mrad=0.3,
        pulse_jitter=0.02,
        energy_jitter=2.0e-5,
        polarisation=0.99,
    ),
    jet=JetSettings(
        thickness_um=40.0,
        air_mm=3.0,
        aperture_photons=1.0,
        streak_rate=0.0,
        ice_rate=0.005,
        salt_rate=0.03,
        powder_photons=3.0,
    ),
    sample=SampleSettings(
        size_um=5.0, size_spread=0.55, domain_a=8000.0, mosaicity_deg=0.04, multi_rate=0.2
    ),
    camera=_EIGER_4M,
    distance_m=0.25,
)
_RECEPTOR = Experiment(
    name="receptor-lcp",
    title="5-HT2B receptor in lipidic cubic phase: base-centred, high background",
    form=CrystalForm(
        name="5-HT2B receptor",
        cell=(61.5, 122.2, 168.5, 90.0, 90.0, 90.0),
        point_group="222",
        centring="C",
        b_factor_a2=60.0,
        matthews_a3_per_da=3.2,
        source="PDB 4NC3; W. Liu et al., Science 342 (2013) 1521. doi:10.1126/science.1244142",
    ),
    beam=BeamSettings(photon_energy_ev=9500.0, photons=4.0e10, focus_um=1.5),
    jet=JetSettings(
        medium=LIPID_MESOPHASE,
        thickness_um=40.0,
        thickness_spread=0.15,
        aperture_photons=0.5,
        streak_rate=0.005,
        ice_rate=0.0,
        salt_rate=0.02,
    ),
    sample=SampleSettings(size_um=1.8, size_spread=0.7, mosaicity_deg=0.05, multi_rate=0.15),
    camera=_CAMERA_1750,
    distance_m=0.13,
)
_PHOTOSYSTEM_II = Experiment(
    name="photosystem-ii-jungfrau",
    title="photosystem II on tape: large cell, eight modules with gaps",
    form=CrystalForm(
        name="photosystem II",
        cell=(117.0, 221.8, 308.0, 90.0, 90.0, 90.0),
        point_group="222",
        centring="P",
        b_factor_a2=45.0,
        matthews_a3_per_da=3.16,
        source="PDB 8F4K; A. Bhowmick et al., Nature 617, 629. doi:10.1038/s41586-023-06038-z",
    ),
    beam=BeamSettings(photon_energy_ev=9500.0, photons=3.0e11, focus_um=4.0),
    jet=JetSettings(
        thickness_um=8.0, air_mm=0.05, streak_rate=0.0, ice_rate=0.02, powder_photons=8.0
    ),
    sample=SampleSettings(size_um=1.6, size_spread=0.6, domain_a=4000.0, mosaicity_deg=0.015),
    camera=_JUNGFRAU_4M,
    distance_m=0.20,
)
_YELLOW_PROTEIN = Experiment(
    name="pyp-cspad",
    title="photoactive yellow protein in a liquid jet: small cell, 32 askew sensors with seams",
    form=CrystalForm(
        name="photoactive yellow protein",
        cell=(66.9, 66.9, 40.8, 90.0, 90.0, 120.0),
        point_group="6",
        centring="P",
        b_factor_a2=14.0,
        matthews_a3_per_da=1.9,
        source="PDB 2PHY; J. Tenboer et al., Science 346 (2014) 1242. doi:10.1126/science.1259357",
    ),
    beam=BeamSettings(photon_energy_ev=9000.0, photons=6.0e11, focus_um=2.0, bandwidth=1.5e-3),
    jet=JetSettings(
        thickness_um=3.0,
        streak_rate=0.05,
        streak_angle_deg=35.0,
        streak_photons=300.0,
        powder_photons=15.0,
    ),
    sample=SampleSettings(size_um=0.5, size_spread=0.8),
    camera=_CSPAD,
    distance_m=0.10,
)
_LYSOZYME_AGIPD = Experiment(
    name="agipd-1m",
    title="lysozyme at a megahertz: sixteen modules around a hole, large pixels",
    form=_LYSOZYME.form,
    beam=BeamSettings(photon_energy_ev=9300.0, photons=4.0e11, focus_um=3.0),
    jet=JetSettings(thickness_um=3.0, aperture_photons=0.2),
    sample=SampleSettings(size_um=1.5, size_spread=0.6, domain_a=8000.0, mosaicity_deg=0.02),
    camera=_AGIPD_1M,
    distance_m=0.13,
)

EXPERIMENTS = MappingProxyType(
    {
        experiment.name: experiment
        for experiment in (
            _LYSOZYME,
            _PHOTOSYSTEM_I,
            _POLYHEDRIN,
            _THAUMATIN,
            _RECEPTOR,
            _PHOTOSYSTEM_II,
            _YELLOW_PROTEIN,
            _LYSOZYME_AGIPD,
        )
    }
)
"""Experiments by name; the first is the default."""


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
