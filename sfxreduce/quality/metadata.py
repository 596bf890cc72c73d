"""What the columns of a run say about its events, before any pixel is looked at."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.run.columns import MISSING_TIME
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason

__all__ = ["TELLING_STAMPS", "check_events"]

TELLING_STAMPS = 0.99
"""Share of time stamps that have to differ for two equal ones to mean the same pulse: some sources
write stamps of whole seconds. Chosen, not measured."""

_Flags = NDArray[np.bool_]


def check_events(columns: xr.Dataset, detector: Detector) -> NDArray[np.uint32]:
    """Reasons that lie in an event's identity and metadata.

    Parameters
    ----------
    columns : Dataset
        Per-event columns on dimension ``event``. Optional columns ``dark`` and ``no_image`` mark
        events that were taken without beam, and those of which the detector delivered nothing.

    Returns
    -------
    ndarray of uint32
        `Reason` bits, shape (event,).

    Examples
    --------
    >>> from sfxreduce.run.columns import event_columns
    >>> columns = event_columns(3, event_id=["a", "b", "a"], photon_energy_ev=[9e3, np.nan, 9e3])
    >>> detector = Detector.centred("camera", (4, 4), distance_m=0.1)
    >>> [Reason(int(r)).name for r in check_events(columns, detector)]
    ['DUP_ID', 'META_MISSING', 'DUP_ID']
    """
    found = np.zeros(columns.sizes["event"], np.uint32)
    for reason, flags in (
        (Reason.DUP_ID, _duplicates(columns)),
        (Reason.TS_ORDER, _out_of_order(columns["timestamp_ns"].values)),
        (Reason.META_MISSING, _without_metadata(columns, detector)),
        (Reason.DARK, _marked(columns, "dark")),
        (Reason.NO_IMAGE, _marked(columns, "no_image")),
    ):
        found[flags] |= np.uint32(reason)
    return found


def _duplicates(columns: xr.Dataset) -> _Flags:
    """Events that share their name, or a time stamp that is one pulse's own, with another."""
    names = columns["event_id"].values.astype(object)
    stamps = columns["timestamp_ns"].values
    flags: _Flags = _repeated(names) & np.array([bool(name) for name in names], np.bool_)
    known = stamps != MISSING_TIME
    if np.unique(stamps[known]).size >= TELLING_STAMPS * np.count_nonzero(known):
        flags[known] |= _repeated(stamps[known])
    return flags


def _repeated(values: NDArray[np.generic]) -> _Flags:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    repeated: _Flags = counts[places] > 1
    return repeated


def _out_of_order(stamps: NDArray[np.int64]) -> _Flags:
    """Events without a time stamp, where others have one, or earlier than one before them."""
    known = stamps != MISSING_TIME
    if not known.any():
        return np.zeros(stamps.size, np.bool_)
    latest = np.maximum.accumulate(np.where(known, stamps, np.iinfo(np.int64).min))
    flags: _Flags = ~known | (stamps < latest)
    return flags


def _without_metadata(columns: xr.Dataset, detector: Detector) -> _Flags:
    """Events without a photon energy, without a pulse energy that others have, or a distance."""
    pulse = np.isfinite(columns["pulse_energy_mj"].values)
    photon = np.isfinite(columns["photon_energy_ev"].values)
    flags: _Flags = ~photon | (~pulse & pulse.any()) | math.isnan(detector.distance_m)
    return flags


def _marked(columns: xr.Dataset, name: str) -> _Flags:
    if name not in columns:
        return np.zeros(columns.sizes["event"], np.bool_)
    marked: _Flags = columns[name].values != 0
    return marked
