"""The wall of awkward runs: each unlike the simulated ones in one way, and what is asked of it.

`inside` marks ordinary runs, for which the promise has to be given: 4 to 64 tiles with metadata,
spots of 0.5 to 2 px, hit rates of 2 to 50 %, gains of 1 to 40, backgrounds up to 4 photons a pixel
and readout noise up to half a photon. The list was written down before anything was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from photon_by_photon import Artefacts, Camera, Crystals, RunPlan

__all__ = ["WALL", "WallRun"]

TILE = 350
"""Pixels along the edge of a tile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WallRun:
    """One run of the wall.

    Parameters
    ----------
    inside : bool
        Whether the promise has to be given.
    small : bool
        Whether it belongs to the small wall.
    least_rejected : float or None
        Share of the blanks that has to be rejected, without a hit of 10 peaks lost, whatever the
        peak finder does; None if nothing of the kind is asked.
    """

    plan: RunPlan
    inside: bool = False
    small: bool = False
    least_rejected: float | None = None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.plan.name

    @property
    def n_tiles(self) -> int:
        """Tiles of a whole frame."""
        return (self.plan.camera.side // TILE) ** 2


def _run(
    name: str,
    n_tiles: int,
    hit_rate: float,
    *,
    camera: dict[str, Any] | None = None,
    crystals: dict[str, Any] | None = None,
    artefacts: dict[str, Any] | None = None,
    inside: bool = False,
    small: bool = False,
    least_rejected: float | None = None,
    **others: Any,
) -> WallRun:
    """One run from what is unusual about it."""
    plan = RunPlan(
        name=name,
        camera=Camera(side=TILE * round(n_tiles**0.5), **(camera or {})),
        hit_rate=hit_rate,
        crystals=Crystals(**(crystals or {})),
        artefacts=Artefacts(**(artefacts or {})),
        **others,
    )
    return WallRun(plan=plan, inside=inside, small=small, least_rejected=least_rejected)


_BARE = {"has_metadata": False}
_COUNTER = {"gain": 1.0, "readout": 0.0, "dtype": "uint16", "full_scale": 65534.0}
_CALIBRATED = {"gain": 8.0, "readout": 0.3, "dtype": "float32", "full_scale": 1e5}
_FEW = {"spots": (10, 15), "sigma_px": 0.2, "photons": 90.0, "even": 0.7, "weak": 0.1}
_BLURRED = {"spots": (71, 98), "photons": 800.0, "even": 0.3, "weak": 0.0}
_NEAR = {"within_px": 180.0}

WALL: tuple[WallRun, ...] = (
    # Ordinary runs, for which the promise has to be given.
    _run("4 tiles", 4, 0.1, inside=True, small=True),
    _run("4 tiles, 2 % hits", 4, 0.02, inside=True),
    _run("4 tiles, 50 % hits", 4, 0.5, inside=True, small=True),
    _run("4 tiles, sigma 1.5", 4, 0.2, crystals={"sigma_px": 1.5}, inside=True),
    _run("4 tiles, sigma 2", 4, 0.2, crystals={"sigma_px": 2.0, "photons": 150.0}, inside=True,
         small=True),
    _run("4 tiles, readout 0.5", 4, 0.2, camera={"readout": 0.5}, inside=True, small=True),
    _run("4 tiles, counter", 4, 0.1, camera=_COUNTER, inside=True, small=True),
    _run("9 tiles", 9, 0.1, inside=True, small=True),
    _run("9 tiles, 2 % hits", 9, 0.02, inside=True),
    _run("9 tiles, 30 % hits", 9, 0.3, inside=True),
    _run("9 tiles, 50 % hits", 9, 0.5, inside=True),
    _run("9 tiles, sigma 0.5", 9, 0.1, crystals={"sigma_px": 0.5}, inside=True),
    _run("9 tiles, sigma 2", 9, 0.1, crystals={"sigma_px": 2.0}, inside=True),
    _run("9 tiles, gain 5", 9, 0.1, camera={"gain": 5.0, "readout": 0.4}, inside=True),
    _run("9 tiles, gain 40", 9, 0.1, camera={"gain": 40.0, "readout": 0.1}, inside=True),
    _run("9 tiles, bright", 9, 0.1, background=4.0, inside=True),
    _run("9 tiles, dim", 9, 0.1, background=0.15, inside=True),
    _run("9 tiles, 6 panels", 9, 0.1, camera={"panels": 6}, inside=True),
    _run("16 tiles", 16, 0.1, inside=True),
    _run("25 tiles", 25, 0.1, inside=True),
    _run("25 tiles, 2 % hits", 25, 0.02, inside=True),
    _run("25 tiles, sigma 2", 25, 0.1, crystals={"sigma_px": 2.0}, inside=True),
    _run("25 tiles, 30 % hits, gain 8", 25, 0.3, camera={"gain": 8.0}, inside=True),
    _run("64 tiles, 5 % hits", 64, 0.05, inside=True),
    _run("64 tiles, 30 % hits", 64, 0.3, inside=True),
    # Runs on which the network alone was certified and lost hits, or kept blanks.
    _run("one tile, bare", 1, 0.057, camera=_BARE, crystals={"weak": 0.6, "photons": 300.0},
         small=True, least_rejected=0.95),
    _run("near the beam, bare", 9, 0.055, camera=_BARE, crystals=_NEAR | {"photons": 150.0},
         small=True, least_rejected=0.95),
    _run("25 tiles, sigma 2.5", 25, 0.07, crystals=_BLURRED | {"sigma_px": 2.5},
         least_rejected=0.95),
    _run("25 tiles, sigma 3", 25, 0.12, crystals=_BLURRED | {"sigma_px": 3.0},
         least_rejected=0.95),
    _run("25 tiles, near the beam", 25, 0.07, crystals=_NEAR | {"photons": 150.0},
         least_rejected=0.95),
    _run("few peaks, first", 9, 0.48, crystals=_FEW, small=True, least_rejected=0.95),
    _run("few peaks, second", 9, 0.48, crystals=_FEW, seed=2, least_rejected=0.95),
    _run("rings", 9, 0.15, artefacts={"rings": 0.6}, small=True, least_rejected=0.9),
    # Small pictures.
    _run("one tile", 1, 0.1),
    _run("one tile, 30 % hits", 1, 0.3),
    _run("one tile, bare, 50 % hits", 1, 0.5, camera=_BARE, small=True),
    _run("one tile, no hits", 1, 0.0, camera=_BARE),
    _run("one tile, 95 % hits", 1, 0.95, small=True),
    _run("one tile, sigma 2.5", 1, 0.1, crystals=_BLURRED | {"sigma_px": 2.5}),
    _run("one tile, counter", 1, 0.1, camera=_COUNTER),
    _run("one tile, jets", 1, 0.1, artefacts={"jets": 0.4}, small=True),
    # Spots.
    _run("9 tiles, sigma 0.3", 9, 0.1, crystals={"sigma_px": 0.3}),
    _run("4 tiles, sigma 2.5", 4, 0.1, crystals=_BLURRED | {"sigma_px": 2.5}, small=True,
         least_rejected=0.95),
    _run("9 tiles, sigma 3", 9, 0.1, crystals=_BLURRED | {"sigma_px": 3.0}),
    _run("9 tiles, sigma 4", 9, 0.1, crystals=_BLURRED | {"sigma_px": 4.0, "photons": 1500.0}),
    _run("9 tiles, streaks of 13 px", 9, 0.1, crystals={"streak_px": 13.0, "photons": 200.0}),
    _run("4 tiles, Laue", 4, 0.1,
         crystals={"spots": (80, 200), "bandwidth": 0.012, "photons": 150.0}, small=True),
    _run("25 tiles, Laue", 25, 0.1,
         crystals={"spots": (80, 300), "bandwidth": 0.006, "photons": 150.0}),
    _run("9 tiles, near the beam", 9, 0.1, crystals=_NEAR),
    _run("16 tiles, near the beam, bare, 2 % hits", 16, 0.02, camera=_BARE, crystals=_NEAR),
    _run("25 tiles, few peaks", 25, 0.3, crystals=_FEW),
    _run("64 tiles, near the beam, bare", 64, 0.1, camera=_BARE, crystals=_NEAR),
    # Hit rates.
    _run("4 tiles, no hits", 4, 0.0, small=True),
    _run("9 tiles, 0.5 % hits", 9, 0.005),
    _run("9 tiles, 95 % hits", 9, 0.95),
    _run("4 tiles, bare, 95 % hits", 4, 0.95, camera=_BARE),
    _run("9 tiles, from 2 to 40 % hits", 9, 0.02, later_hit_rate=0.4),
    # Light and noise.
    _run("9 tiles, readout 1.5", 9, 0.1, camera={"readout": 1.5}),
    _run("4 tiles, gain 1, readout 0.8", 4, 0.1, camera={"gain": 1.0, "readout": 0.8}),
    _run("4 tiles, bare, 30 % hits, gain 12", 4, 0.3, camera=_BARE | {"gain": 12.0}),
    _run("4 tiles, very bright", 4, 0.1, background=9.0),
    _run("4 tiles, light doubled", 4, 0.1, later_background=2.0, small=True),
    _run("9 tiles, empty beam", 9, 0.1, artefacts={"empty": 0.08}),
    # Damage and artefacts.
    _run("16 tiles, half masked", 16, 0.1, camera={"panels": 8}, artefacts={"off": "masked"}),
    _run("16 tiles, half constant", 16, 0.1, camera={"panels": 8}, artefacts={"off": "constant"}),
    _run("9 tiles, jets", 9, 0.1, artefacts={"jets": 0.4}),
    _run("4 tiles, rings, bare", 4, 0.057, camera=_BARE, artefacts={"rings": 0.6}),
    _run("9 tiles, salt", 9, 0.1, artefacts={"salt": 0.15}),
    _run("9 tiles, ice", 9, 0.1, artefacts={"ice": 0.1}),
    _run("9 tiles, hot columns", 9, 0.1, artefacts={"hot_columns": 5}),
    _run("4 tiles, hot pixels, offsets, jets", 4, 0.25,
         artefacts={"hot_pixels": 300, "panel_offsets": 0.5, "jets": 0.4}, small=True),
    _run("9 tiles, calibrated", 9, 0.1, camera=_CALIBRATED),
    _run("4 tiles, calibrated, bare", 4, 0.1, camera=_CALIBRATED | _BARE, small=True),
)  # fmt: skip
"""All runs by the kind of trouble they make."""
