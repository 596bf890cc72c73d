"""What is known of simulated events: their kind, and every peak a perfect observer could see."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.simulate.render import visible_peaks
from sfxreduce.simulate.shot import Shot, shoot
from sfxreduce.simulate.stage import Stage

__all__ = ["COUNTED_SNR", "HIT_PEAKS", "Kind", "truth_of"]

COUNTED_SNR = 5.0
"""Peaks with at least this signal to noise are counted."""
HIT_PEAKS = 10
"""A crystal with fewer counted peaks is a weak hit."""


class Kind(IntEnum):
    """What an event shows."""

    BLANK = 0
    HIT = 1
    WEAK = 2
    MULTI = 3
    ARTEFACT = 4


def truth_of(setup: Stage, *, hit_rate: float, seed: int, events: Sequence[int]) -> xr.Dataset:
    """Truth of some events, from expectation values alone.

    Returns
    -------
    Dataset
        On dimension ``event``: ``kind``, ``n_peaks``, ``n_crystals``. On dimension ``peak``,
        ordered by event: ``peak_event`` (position in the run), ``peak_panel``, ``peak_x`` and
        ``peak_y`` (pixels on the panel, whole numbers at pixel centres), ``peak_photons`` and
        ``peak_snr`` (3 and more).
    """
    n = len(events)
    kind, n_peaks = np.zeros(n, np.uint8), np.zeros(n, np.int32)
    n_crystals = np.zeros(n, np.int32)
    columns: list[tuple[NDArray[np.generic], ...]] = [(np.zeros(0),) * 6]
    for i, event in enumerate(events):
        shot = shoot(setup.experiment, hit_rate=hit_rate, seed=seed, event=event)
        n_crystals[i] = len(shot.crystals)
        if shot.crystals:
            spots, snr = visible_peaks(shot, setup)
            n_peaks[i] = np.count_nonzero(snr >= COUNTED_SNR)
            of_event = np.full(snr.size, event)
            columns.append((of_event, spots.panel, spots.x, spots.y, spots.photons, snr))
        kind[i] = _kind(shot, int(n_peaks[i]), setup)
    number, panel, x, y, photons, snr = (
        np.concatenate(column) for column in zip(*columns, strict=True)
    )
    flags = {
        "flag_values": np.array([k.value for k in Kind], np.uint8),
        "flag_meanings": " ".join(k.name.lower() for k in Kind),
    }
    pixel = {"units": "pixel"}
    return xr.Dataset(
        {
            "kind": ("event", kind, {"long_name": "what the event shows", **flags}),
            "n_peaks": ("event", n_peaks, {"long_name": "true peaks of signal to noise 5 or more"}),
            "n_crystals": ("event", n_crystals, {"long_name": "crystals in the beam"}),
            "peak_event": ("peak", number.astype(np.int64), {"long_name": "event of the peak"}),
            "peak_panel": ("peak", panel.astype(np.int16), {"long_name": "panel of the peak"}),
            "peak_x": ("peak", x.astype(np.float32), {"long_name": "fast-scan position", **pixel}),
            "peak_y": ("peak", y.astype(np.float32), {"long_name": "slow-scan position", **pixel}),
            "peak_photons": ("peak", photons.astype(np.float32), {"units": "photon"}),
            "peak_snr": ("peak", snr.astype(np.float32), {"long_name": "signal to noise"}),
        }
    )


def _kind(shot: Shot, n_peaks: int, setup: Stage) -> Kind:
    """Kind of an event; a powder whose rings all miss the detector leaves it blank."""
    if len(shot.crystals) > 1:
        return Kind.MULTI
    if shot.crystals:
        return Kind.HIT if n_peaks >= HIT_PEAKS else Kind.WEAK
    in_view = shot.powder is not None and max(shot.powder.kind.d_a) * setup.s_max > 1.0
    return Kind.ARTEFACT if in_view or shot.streak.photons > 0.0 else Kind.BLANK
