"""Compiled kernels of the peak finder's background: rings around the beam, and their thresholds.

Everything here works on flat arrays of one frame, so that panels, tiles and whole detectors are
one case. The rings are prepared once for a detector: which pixels they have, in groups of rings
whose values are added side by side (decision 31).
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.scorers.peaks._lanes import LANES, sums_within

__all__ = ["PeakLimits", "Rings", "radial_bins", "side_by_side", "thresholds"]

MIN_BIN_PIXELS = 200
"""Rings with fewer good pixels are joined with the next: a standard deviation of fewer values
is too uncertain (of 200, by 5 %), and one Bragg peak among them would hide itself. Chosen, not
measured."""

CLIP_ROUNDS = 8
"""Clipping stops earlier where a round changes nothing; beyond this it hunts single pixels. Chosen,
not measured."""

LARGEST = float(np.finfo(np.float32).max)

Floats: TypeAlias = NDArray[np.float64]
Pixels: TypeAlias = NDArray[np.float32]
Bins: TypeAlias = NDArray[np.uint16]
Counts: TypeAlias = NDArray[np.int64]


class PeakLimits(NamedTuple):
    """What a group of candidates has to satisfy to be a peak."""

    min_snr: float
    min_sigma: float
    min_adc: float
    min_pixels: int
    max_pixels: int
    local_radius: int


class Rings(NamedTuple):
    """Rings of a detector, and their pixels in groups of rings side by side.

    Parameters
    ----------
    bins : ndarray of uint16
        Ring of each pixel, `n_rings` for a pixel that never counts.
    ring : ndarray of int64
        Shape (group, lane), `n_rings` for a lane without any.
    starts : ndarray of int64
        Shape (group + 1,): first row of each group.
    pixel : ndarray of uint32
        Shape (row, lane): flat positions, those of a ring ascending, and then the number of pixels.
    """

    n_rings: int
    bins: Bins
    ring: Counts
    starts: Counts
    pixel: NDArray[np.uint32]


class Desk(NamedTuple):
    """Room for the work on one group of rings after the other, a column for each lane.

    Parameters
    ----------
    reach, sums : ndarray of float64
        See `sums_within`.
    moments : ndarray of float64
        Mean, standard deviation and excess.
    highest : ndarray of float64
        Highest finite value, shape (lane,).
    """

    reach: Floats
    sums: Floats
    moments: Floats
    highest: Floats


@compiled
def radial_bins(good: NDArray[np.bool_], radius: NDArray[np.floating]) -> tuple[Bins, Counts]:
    """Sort the good pixels into rings one pixel wide, wider where there are few of them.

    Parameters
    ----------
    good, radius : ndarray
        Flat; distances from the beam in pixels.

    Returns
    -------
    bins : ndarray of uint16
        Ring of each pixel, the number of rings for a pixel that never counts.
    sizes : ndarray of int64
        Pixels of each ring.
    """
    widest = np.uint16(0)
    bins = np.empty(good.size, np.uint16)
    counts = np.zeros(65535, np.int64)
    for i in range(good.size):
        # A radius that is no number fails both comparisons: such a pixel never counts.
        if good[i] and 0 <= radius[i] < 65534:
            bins[i] = np.uint16(radius[i])
            counts[bins[i]] += 1
            widest = max(widest, bins[i])
        else:
            bins[i] = 65534
    ring = np.empty(65535, np.uint16)
    sizes = np.zeros(int(widest) + 1, np.int64)
    n_rings, left = 0, counts.sum()
    for r in range(int(widest) + 1):
        ring[r] = n_rings
        sizes[n_rings] += counts[r]
        left -= counts[r]
        if sizes[n_rings] >= MIN_BIN_PIXELS and left >= MIN_BIN_PIXELS:
            n_rings += 1
    n_rings += 1
    ring[65534] = n_rings
    for i in range(bins.size):
        bins[i] = ring[bins[i]]
    return bins, sizes[:n_rings]


@compiled
def side_by_side(bins: Bins, sizes: Counts, by_size: Counts) -> Rings:
    """Put rings of about the same size into the lanes of a group; see `radial_bins`.

    Parameters
    ----------
    by_size : ndarray of int64
        All rings, the smallest first. (A sort that Numba compiles takes a second of the first run.)
    """
    n_rings, n_groups = sizes.size, (sizes.size + LANES - 1) // LANES
    ring = np.full((n_groups, LANES), n_rings)
    ring.ravel()[:n_rings] = by_size
    starts, first = np.zeros(n_groups + 1, np.int64), np.zeros(n_rings, np.int64)
    for group in range(n_groups):
        longest = 0
        for lane in range(LANES):
            if ring[group, lane] < n_rings:
                longest = max(longest, sizes[ring[group, lane]])
                first[ring[group, lane]] = starts[group] * LANES + lane
        starts[group + 1] = starts[group] + longest
    pixel = np.full(starts[n_groups] * LANES, bins.size, np.uint32)
    for i in range(bins.size):
        if bins[i] < n_rings:
            pixel[first[bins[i]]] = i
            first[bins[i]] += LANES
    return Rings(n_rings, bins, ring, starts, pixel.reshape(-1, LANES))


@compiled(borrows=True)
def clip(values: Pixels, limits: PeakLimits, desk: Desk) -> None:
    """Mean, standard deviation and excess of the values near the mean, by iterative clipping.

    A value stays while it lies within `min_snr` standard deviations of the mean, each taken as at
    least `min_sigma`. The excess is the third central moment over the variance: zero for Gaussian
    noise, one photon for Poisson noise.
    """
    reach, sums, moments, highest = desk
    for lane in range(LANES):
        moments[0, lane], moments[1, lane], moments[2, lane] = 0.0, 0.0, 0.0
        reach[0, lane], reach[1, lane], reach[2, lane] = 0.0, -LARGEST, LARGEST
        for value in values[:, lane]:
            if -LARGEST <= value <= LARGEST:
                moments[0, lane] = reach[0, lane] = value
                break
    for turn in range(CLIP_ROUNDS):
        # Sums of powers about the last mean: about zero they would cancel to noise.
        sums_within(values, reach, sums)
        n_left = 0
        for lane in range(LANES):
            if turn == 0:
                highest[lane] = sums[5, lane]
            n_left += int(is_clipped_further(lane, limits, desk))
        if n_left == 0:
            break


@compiled(borrows=True)
def is_clipped_further(lane: int, limits: PeakLimits, desk: Desk) -> bool:
    """Take the moments of a lane from its sums; whether values lie beyond its new limits.

    If not, nothing is within its limits from now on, and its moments stay.
    """
    reach, sums, moments, _ = desk
    n, one, two, three = sums[0, lane], sums[1, lane], sums[2, lane], sums[3, lane]
    if n == 0:
        return False
    shift = one / n
    variance = max(two / n - shift * shift, 0.0)
    third = three / n - 3 * shift * two / n + 2 * shift**3
    mean, sigma = moments[0, lane] + shift, math.sqrt(variance)
    moments[0, lane], moments[1, lane] = mean, sigma
    moments[2, lane] = third / variance if variance > 0 else 0.0
    width = limits.min_snr * max(sigma, limits.min_sigma)
    # Never beyond the largest number: infinite pixels do not count.
    low, high = max(mean - width, -LARGEST), min(mean + width, LARGEST)
    is_done = sums[4, lane] >= low and sums[5, lane] <= high
    reach[0, lane] = mean
    reach[1, lane], reach[2, lane] = (np.inf, -np.inf) if is_done else (low, high)
    return not is_done


@compiled
def thresholds(
    frame: Pixels, rings: Rings, limits: PeakLimits, waiting: NDArray[np.bool_]
) -> tuple[Pixels, int]:
    """Threshold of every ring; finite pixels above it are set in `waiting`, and counted.

    The noise that `min_snr` is multiplied with is the standard deviation, raised by the
    Cornish-Fisher term where it has a longer tail upwards.

    Parameters
    ----------
    frame : ndarray of float32
        Flat, with a NaN after the last pixel.
    """
    threshold = np.full(rings.n_rings + 1, np.inf, np.float32)
    desk = Desk(np.empty((3, LANES)), np.empty((6, LANES)), np.empty((3, LANES)), np.empty(LANES))
    values = np.empty((np.diff(rings.starts).max(), LANES), np.float32)
    share = max(limits.min_snr * limits.min_snr - 1, 0.0) / (6 * limits.min_snr)
    n_found = 0
    for group in range(len(rings.ring)):
        pixel = rings.pixel[rings.starts[group] : rings.starts[group + 1]]
        inside = values[: len(pixel)]
        for row in range(len(pixel)):
            for lane in range(LANES):
                inside[row, lane] = frame[pixel[row, lane]]
        clip(inside, limits, desk)
        for lane in range(LANES):
            ring = rings.ring[group, lane]
            if ring == rings.n_rings:
                continue
            spread = desk.moments[1, lane] + share * max(desk.moments[2, lane], 0.0)
            above = limits.min_snr * max(spread, limits.min_sigma)
            threshold[ring] = max(desk.moments[0, lane] + above, limits.min_adc)
            # Most rings show nothing, and nobody has to look for it.
            if desk.highest[lane] > threshold[ring]:
                n_found += wait(inside[:, lane], pixel[:, lane], threshold[ring], waiting)
    return threshold, n_found


@compiled(borrows=True)
def wait(
    values: Pixels, pixel: NDArray[np.uint32], threshold: float, waiting: NDArray[np.bool_]
) -> int:
    """Let finite pixels above a threshold wait; how many they are."""
    n = 0
    for at in range(len(values)):
        if threshold < values[at] <= LARGEST:
            waiting[pixel[at]] = True
            n += 1
    return n
