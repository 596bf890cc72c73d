"""Reasons not to trust an event, by its columns and by its pixels, before any scorer sees it."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.errors import SchemaError
from sfxreduce.run.columns import MISSING_TIME
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason

__all__ = [
    "MANY_NONFINITE",
    "MANY_SATURATED",
    "TELLING_STAMPS",
    "check_events",
    "flat_events",
    "inspect_pixels",
]

MANY_NONFINITE = 0.01
"""Share of good pixels that are not finite from which an event is not judged. Chosen, not
measured."""

MANY_SATURATED = 0.01
"""Share of saturated good pixels above which a low score proves nothing. Chosen, not measured."""

# Pixels that are looked at together: they stay in a core's own cache for a second look. Counts of
# them are kept in 32 bits, because four times as many pixels of 16 bits then fit into a vector.
_BLOCK = 4096

_Flags: TypeAlias = NDArray[np.bool_]


def inspect_pixels(
    pixels: NDArray[np.generic], good: NDArray[np.bool_], *, saturation_adu: float = math.nan
) -> NDArray[np.uint32]:
    """Reasons not to trust a score, event by event.

    Parameters
    ----------
    pixels : ndarray
        Shape (event, ...), in ADU.
    good : ndarray of bool
        Pixels that count, in the shape of one event.
    saturation_adu : float
        Full scale; NaN if unknown.

    Returns
    -------
    ndarray of uint32
        `Reason` bits, shape (event,).

    Raises
    ------
    SchemaError
        If the mask does not fit an event.

    Examples
    --------
    >>> noise = np.arange(12.0).reshape(1, 3, 4)
    >>> inspect_pixels(np.concatenate([noise, 0 * noise]), np.ones((3, 4), bool)).tolist()
    [0, 128]
    """
    if good.shape != pixels.shape[1:]:
        raise SchemaError(
            f"condition of an event: expected a mask of shape {pixels.shape[1:]}, found "
            f"{good.shape}; were the pixels read through another window?"
        )
    flat = flat_events(pixels)
    use = np.ascontiguousarray(good, np.bool_).reshape(-1)
    reasons = _where(_are_constant(flat, use), Reason.CONSTANT)
    limit = _full_scale(pixels.dtype, saturation_adu)
    if limit is None:
        return reasons
    n_bad, n_full = _count_odd(flat, use, limit).T
    if not (n_bad.any() or n_full.any()):
        return reasons
    # There is a good pixel, or nothing would have been counted.
    n_good = int(np.count_nonzero(use))
    many = n_bad / n_good >= MANY_NONFINITE
    reasons |= _where(many, Reason.MANY_NONFINITE)
    reasons |= _where((n_bad > 0) & ~many, Reason.FEW_NONFINITE)
    reasons |= _where(n_full > MANY_SATURATED * (n_good - n_bad), Reason.SATURATED)
    return reasons


def flat_events(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Every event as one row of numbers that compiled loops can take: no copy if they already are.

    Parameters
    ----------
    pixels : ndarray
        Shape (event, ...).

    Examples
    --------
    >>> flat_events(np.zeros((2, 3, 4), ">i2")).dtype == np.int16
    True
    """
    flat = pixels.reshape(len(pixels), math.prod(pixels.shape[1:]))
    native = np.float32 if flat.dtype == np.float16 else flat.dtype.newbyteorder("=")
    return np.ascontiguousarray(flat, native)


def _where(events: _Flags, reason: Reason) -> NDArray[np.uint32]:
    return np.where(events, np.uint32(reason), np.uint32(0))


def _full_scale(dtype: np.dtype[Any], saturation_adu: float) -> np.generic | None:
    """Number from which on a pixel is saturated; None if no pixel can be, nor be other than finite.

    Integers are compared as such, which is several times as fast as by way of floats.
    """
    if dtype.kind in "iu" and dtype.itemsize < 8:
        limits = np.iinfo(dtype)
        if not saturation_adu <= limits.max:  # NaN is neither above nor below
            return None
        limit: np.generic = dtype.type(math.ceil(max(saturation_adu, limits.min)))
        return limit
    full_scale = math.inf if math.isnan(saturation_adu) else saturation_adu
    with np.errstate(over="ignore"):
        limit = np.result_type(dtype, full_scale).type(full_scale)
    # Rounded as the pixels are, which compiled loops then take for wider ones.
    return np.float32(limit) if dtype == np.float16 else limit


@compiled
def _are_constant(flat: NDArray[np.generic], good: _Flags) -> _Flags:
    """Whether all finite good pixels of an event are one number."""
    constant = np.ones(len(flat), np.bool_)
    for event in range(len(flat)):
        values = flat[event]
        first = 0
        while first < values.size and not (good[first] and math.isfinite(values[first])):
            first += 1
        if first == values.size:
            continue
        value = values[first]
        # The first block settles it for nearly every event.
        for start in range(first, values.size, _BLOCK):
            block, use = values[start : start + _BLOCK], good[start : start + _BLOCK]
            n_others = np.int32(0)
            for i in range(block.size):
                other = use[i] & math.isfinite(block[i]) & (block[i] != value)
                n_others = np.int32(n_others + np.int32(other))
            if n_others:
                constant[event] = False
                break
    return constant


@compiled
def _count_odd(flat: NDArray[np.generic], good: _Flags, limit: np.generic) -> NDArray[np.int64]:
    """Good pixels of each event that are not finite, and those at full scale: (event, 2)."""
    n_odd = np.zeros((len(flat), 2), np.int64)
    for event in range(len(flat)):
        for start in range(0, flat.shape[1], _BLOCK):
            block = flat[event, start : start + _BLOCK]
            # Nearly all blocks hold nothing odd, on good pixels or on bad ones: no need of a mask.
            n_either = np.int32(0)
            for i in range(block.size):
                usual = (block[i] < limit) & math.isfinite(block[i])
                n_either = np.int32(n_either + np.int32(not usual))
            if n_either:
                n_bad, n_full = _count_odd_good(block, good[start : start + _BLOCK], limit)
                n_odd[event, 0] += n_bad
                n_odd[event, 1] += n_full
    return n_odd


@compiled
def _count_odd_good(
    block: NDArray[np.generic], good: _Flags, limit: np.generic
) -> tuple[np.int32, np.int32]:
    n_bad = n_full = np.int32(0)
    for i in range(block.size):
        finite = math.isfinite(block[i])
        n_bad = np.int32(n_bad + np.int32(good[i] & (not finite)))
        n_full = np.int32(n_full + np.int32(good[i] & finite & (block[i] >= limit)))
    return n_bad, n_full


TELLING_STAMPS = 0.99
"""Share of time stamps that have to differ for two equal ones to mean the same pulse: some sources
write stamps of whole seconds. Chosen, not measured."""


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
    ['DUPLICATE_ID', 'METADATA_MISSING', 'DUPLICATE_ID']
    """
    found = np.zeros(columns.sizes["event"], np.uint32)
    for reason, flags in (
        (Reason.DUPLICATE_ID, _duplicates(columns)),
        (Reason.TIMESTAMP_ORDER, _out_of_order(columns["timestamp_ns"].values)),
        (Reason.METADATA_MISSING, _without_metadata(columns, detector)),
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
