"""Pixel values that are no measurement, turned into a mask.

Photon-counting detectors write numbers that mean something else than counts: -1 between modules,
-2 at dead pixels, a huge one where the counter ran over. A run has one mask, so what is masked is
what stands in the same place in several frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.run.detector import PixelFlag

__all__ = ["MASK_FRAMES", "lasting_sentinels", "lasting_underloads", "sentinel_mask"]

MASK_FRAMES = 5
"""Frames, spread evenly over a run, that its mask is made from."""

LEAST_FRAMES = 2
GAP = -1
LOWEST_SENTINEL = -2


def sentinel_mask(
    frames: Sequence[NDArray[Any]], *, count_cutoff: float = math.nan, counts: bool = False
) -> NDArray[np.uint32]:
    """Mask the pixels whose values are sentinels.

    Negative integers are sentinels if the detector counts photons, or if none is below -2: an
    integrating detector has noise on both sides of zero, and those are measurements. A value above
    the cutoff, or the highest one of an unsigned integer, is an overload. It is masked where at
    least two frames have it, that is at hot pixels and beside the beam; in a single frame it may
    be a Bragg peak, and masking it in all frames would cost peaks.

    Parameters
    ----------
    frames : sequence of ndarray
        Some frames of a run, each (y, x), in counts or ADU.
    count_cutoff : float
        Highest value that is a measurement; NaN if unknown.
    counts : bool
        Whether the detector is known to count photons.

    Returns
    -------
    ndarray of uint32
        `PixelFlag` bits, shape (y, x).

    Examples
    --------
    >>> frame = np.array([[7, -1], [-2, 2000]], np.int32)
    >>> sentinel_mask([frame, frame], count_cutoff=1000)
    array([[  0, 512],
           [128,   2]], dtype=uint32)
    """
    mask = np.zeros(frames[0].shape, np.uint32)
    overloads = np.zeros(frames[0].shape, np.uint8)
    limit = _highest(frames[0].dtype, count_cutoff)
    for frame in frames:
        mask[~np.isfinite(frame)] |= np.uint32(PixelFlag.BAD)
        if counts or (frame.dtype.kind == "i" and frame.min() >= LOWEST_SENTINEL):
            mask[frame == GAP] |= np.uint32(PixelFlag.GAP)
            mask[frame < GAP] |= np.uint32(PixelFlag.BAD)
        overloads += frame > limit
    mask[overloads >= min(2, len(frames))] |= np.uint32(PixelFlag.SATURATED)
    return mask


def lasting_sentinels(
    frames: Sequence[NDArray[Any]], *, count_cutoff: float = math.nan
) -> NDArray[np.uint32] | None:
    """Mask the pixels that are sentinels in every frame, where the kind of detector is not known.

    A gap, a dead and a hot pixel are that in all frames; the noise of an integrating detector and
    a Bragg peak are not.

    Parameters
    ----------
    frames : sequence of ndarray
        Some frames of a run in one shape, in counts or ADU.
    count_cutoff : float
        Highest value that is a measurement; NaN if unknown.

    Returns
    -------
    ndarray of uint32 or None
        `PixelFlag` bits in the shape of a frame; None if one frame is all there is, or no pixel
        would be left.
    """
    if len(frames) < LEAST_FRAMES:
        return None
    masks = [sentinel_mask([frame], count_cutoff=count_cutoff) for frame in frames]
    lasting = np.all([mask != 0 for mask in masks], axis=0)
    return None if lasting.all() else np.where(lasting, masks[0], np.uint32(0))


def lasting_underloads(
    frames: Sequence[NDArray[Any]], *, least: float
) -> NDArray[np.uint32] | None:
    """Mask the pixels that are below the least measurement in every frame.

    Parameters
    ----------
    frames : sequence of ndarray
        Some frames of a run in one shape, in counts or ADU.
    least : float
        Lowest value that is a measurement.

    Returns
    -------
    ndarray of uint32 or None
        `PixelFlag` bits in the shape of a frame; None if there is no frame, or no pixel would be
        left.

    Examples
    --------
    >>> frame = np.array([[7, -1], [-2, 0]], np.int32)
    >>> lasting_underloads([frame, frame + 1], least=0)
    array([[  0,   0],
           [128,   0]], dtype=uint32)
    """
    lasting = np.all([frame < least for frame in frames], axis=0)
    if not frames or lasting.all():
        return None
    return np.where(lasting, np.uint32(PixelFlag.BAD), np.uint32(0))


def _highest(dtype: np.dtype[Any], count_cutoff: float) -> float:
    """Highest value that is a measurement."""
    if math.isfinite(count_cutoff):
        return count_cutoff
    return float(np.iinfo(dtype).max) - 1 if dtype.kind == "u" else math.inf
