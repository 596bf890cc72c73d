"""What happens in one event: the pulse, the jet, the crystals that were hit, what else shone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfxreduce.simulate.background import ICE, SALT, PowderKind, Streak
from sfxreduce.simulate.excitation import HC_EV_A, Crystal
from sfxreduce.simulate.random import key_of, normal, uniform_block
from sfxreduce.simulate.settings import Experiment

__all__ = ["Powder", "Shot", "shoot"]

_DRAWS = 48
_A_PER_UM = 1e4
_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Powder:
    """Powder in the beam: photons per pixel on its strongest ring, and single grains.

    Parameters
    ----------
    grain_photons : float
        Expected photons in the spot of an average grain.
    """

    kind: PowderKind
    photons: float
    n_grains: int
    grain_photons: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shot:
    """One event before any photon is counted.

    Parameters
    ----------
    pulse_photons : float
        Photons at the sample.
    medium_um : float
        Thickness of the jet or stream in the beam, in micrometres.
    streak : Streak
        Of zero photons if there is none.
    """

    pulse_energy_mj: float
    photon_energy_ev: float
    pulse_photons: float
    medium_um: float
    crystals: tuple[Crystal, ...]
    streak: Streak
    powder: Powder | None

    @property
    def wavelength_a(self) -> float:
        """Wavelength in ångström."""
        return HC_EV_A / self.photon_energy_ev


def shoot(experiment: Experiment, *, hit_rate: float, seed: int, event: int) -> Shot:
    """Draw one event. It depends on these arguments alone.

    Parameters
    ----------
    hit_rate : float
        Probability that the beam meets at least one crystal.
    seed : int
        Of the run.
    """
    draws = _Draws("shot", experiment.name, seed, event)
    run = _Draws("run", experiment.name, seed)
    beam, jet, sample = experiment.beam, experiment.jet, experiment.sample
    pulse_energy = beam.pulse_energy_mj * max(1.0 + beam.pulse_jitter * draws.normal(), 0.05)
    photon_energy = beam.photon_energy_ev * (1.0 + beam.energy_jitter * draws.normal())
    medium = jet.thickness_um * math.exp(0.1 * run.normal() + jet.thickness_spread * draws.normal())
    photons = beam.photons * pulse_energy / beam.pulse_energy_mj
    n_crystals = 0
    if draws.uniform() < hit_rate:
        n_crystals = 1
        # Each further crystal is as likely as the last: a geometric number of neighbours.
        while n_crystals < 4 and draws.uniform() < sample.multi_rate:
            n_crystals += 1
    growth = math.exp(0.1 * run.normal())
    crystals = tuple(
        _crystal(experiment, photons, growth, _Draws("crystal", experiment.name, seed, event, n))
        for n in range(n_crystals)
    )
    streak, powder = _artefact(experiment, photons / beam.photons, draws)
    return Shot(
        pulse_energy_mj=pulse_energy,
        photon_energy_ev=photon_energy,
        pulse_photons=photons,
        medium_um=medium,
        crystals=crystals,
        streak=streak,
        powder=powder,
    )


class _Draws:
    """Random numbers of one key, one after the other."""

    def __init__(self, *parts: str | int) -> None:
        self._numbers: Iterator[float] = iter(uniform_block(key_of(*parts), _DRAWS).tolist())

    def uniform(self) -> float:
        return next(self._numbers)

    def normal(self) -> float:
        return normal(self.uniform())

    def log_normal(self, median: float, spread: float) -> float:
        return median * math.exp(spread * self.normal())


def _crystal(experiment: Experiment, photons: float, growth: float, draws: _Draws) -> Crystal:
    """Draw a crystal: orientation, size, quality, and how well the beam met it."""
    sample, beam = experiment.sample, experiment.beam
    turn = _rotation(draws.uniform(), draws.uniform(), draws.uniform())
    size = growth * draws.log_normal(sample.size_um, sample.size_spread)
    sigma = beam.focus_um / _FWHM
    # Uniform over a disc of two standard deviations of the beam around its centre.
    met = math.exp(-2.0 * draws.uniform())
    fluence = met * photons / (2.0 * math.pi * (sigma * _A_PER_UM) ** 2)
    lit = min(size, beam.focus_um) ** 2 * size
    return Crystal(
        reciprocal=experiment.form.reciprocal @ turn.T,
        volume_a3=lit * _A_PER_UM**3,
        domain_a=min(draws.log_normal(sample.domain_a, 0.4), size * _A_PER_UM),
        mosaicity=math.radians(draws.log_normal(sample.mosaicity_deg, 0.5)),
        b_factor_a2=experiment.form.b_factor_a2 - sample.b_spread_a2 * math.log(draws.uniform()),
        fluence=fluence,
    )


def _rotation(u1: float, u2: float, u3: float) -> NDArray[np.float64]:
    """Rotation matrix, uniform over all orientations.

    Source: K. Shoemake, in Graphics Gems III (1992) 124. doi:10.1016/B978-0-08-050755-2.50036-1
    """
    a, b = 2.0 * math.pi * u2, 2.0 * math.pi * u3
    r, t = math.sqrt(1.0 - u1), math.sqrt(u1)
    x, y, z, w = r * math.sin(a), r * math.cos(a), t * math.sin(b), t * math.cos(b)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _artefact(experiment: Experiment, pulse: float, draws: _Draws) -> tuple[Streak, Powder | None]:
    """Draw a jet streak, an ice ring or a salt ring, or none of them."""
    jet = experiment.jet
    u = draws.uniform()
    strength = pulse * draws.log_normal(1.0, 0.5)
    lit = jet.streak_photons * strength if u < jet.streak_rate else 0.0
    streak = Streak(
        photons=lit,
        angle=math.radians(jet.streak_angle_deg + 2.0 * draws.normal()),
        length=draws.log_normal(60.0, 0.3),
        width=draws.log_normal(1.2, 0.3),
        fringe=draws.log_normal(9.0, 0.4),
        phase=2.0 * math.pi * draws.uniform(),
    )
    u -= jet.streak_rate
    kind = ICE if u < jet.ice_rate else SALT
    if not 0.0 <= u < jet.ice_rate + jet.salt_rate:
        return streak, None
    powder = Powder(
        kind=kind,
        photons=jet.powder_photons * strength,
        n_grains=int(draws.log_normal(80.0, 0.5)),
        grain_photons=jet.powder_photons * strength * draws.log_normal(80.0, 0.5),
    )
    return streak, powder
