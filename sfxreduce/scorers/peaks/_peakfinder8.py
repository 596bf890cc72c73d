"""Compiled kernels of the peak finder: radial background, candidates, connected pixels, ring.

Everything here works on flat arrays of one frame, so that panels, tiles and whole detectors are
one case. `sfxreduce.scorers.peaks.finder` is the interface and holds the description of the method.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sfxreduce._numba import compiled

__all__ = ["PeakLimits", "background", "radial_bins", "search"]

MIN_BIN_PIXELS = 200
"""Rings with fewer good pixels are joined with the next: a standard deviation of fewer values
is too uncertain (of 200, by 5 %), and one Bragg peak among them would hide itself. Chosen, not
measured."""

CLIP_ROUNDS = 8
"""Clipping stops earlier where a round changes nothing; beyond this it hunts single pixels. Chosen,
not measured."""

RING_GAP = 1
"""Pixels between a peak and its ring: the foot of the peak is not background."""

MIN_RING_PIXELS = 16
"""A peak with fewer good pixels around it cannot be checked against its surroundings: the standard
deviation of 16 values is uncertain by 18 %. Chosen, not measured."""

N_COLUMNS = 7
"""panel, y, x, intensity, max_intensity, snr, n_pixels"""

Floats: TypeAlias = NDArray[np.float64]
Pixels: TypeAlias = NDArray[np.float32]
Bins: TypeAlias = NDArray[np.uint16]
Counts: TypeAlias = NDArray[np.int64]
Image: TypeAlias = tuple[Pixels, Bins, Pixels]
"""A frame, the ring of each of its pixels, and the threshold of each ring; infinity at the end,
for the pixels that never count."""


class PeakLimits(NamedTuple):
    """What a group of candidates has to satisfy to be a peak."""

    min_snr: float
    min_sigma: float
    min_pixels: int
    max_pixels: int
    local_radius: int


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
    starts : ndarray of int64
        Where the values of each ring start once they lie sorted by ring; one more than rings.
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
    starts = np.zeros(int(widest) + 2, np.int64)
    n_rings, held, left = 0, 0, counts.sum()
    for r in range(int(widest) + 1):
        ring[r] = n_rings
        held += counts[r]
        left -= counts[r]
        starts[n_rings + 1] = starts[n_rings] + held
        if held >= MIN_BIN_PIXELS and left >= MIN_BIN_PIXELS:
            n_rings, held = n_rings + 1, 0
    n_rings += 1
    ring[65534] = n_rings
    for i in range(bins.size):
        bins[i] = ring[bins[i]]
    return bins, starts[: n_rings + 1]


@compiled
def clipped_moments(values: Pixels, min_snr: float, min_sigma: float) -> tuple[float, float, float]:
    """Mean, standard deviation and excess of the values near the mean, by iterative clipping.

    A value stays while it lies within `min_snr` standard deviations of the mean, each taken as at
    least `min_sigma`. The excess is the third central moment over the variance: zero for Gaussian
    noise, one photon for Poisson noise.
    """
    low, high = -np.inf, np.inf
    mean, sigma, excess = 0.0, 0.0, 0.0
    if values.size:
        mean = np.float64(values[0])
    for _ in range(CLIP_ROUNDS):
        n, lowest, highest = 0, np.inf, -np.inf
        # Sums of powers about the last mean: about zero they would cancel to noise.
        one, two, three = 0.0, 0.0, 0.0
        for value in values:
            if low <= value <= high:
                off = value - mean
                n += 1
                one += off
                two += off * off
                three += off * off * off
                lowest, highest = min(lowest, value), max(highest, value)
        if n == 0:
            break
        shift = one / n
        variance = max(two / n - shift * shift, 0.0)
        third = three / n - 3 * shift * two / n + 2 * shift**3
        mean, sigma = mean + shift, math.sqrt(variance)
        excess = third / variance if variance > 0 else 0.0
        reach = min_snr * max(sigma, min_sigma)
        low, high = mean - reach, mean + reach
        if lowest >= low and highest <= high:
            break
    return mean, sigma, excess


@compiled
def background(
    frame: Pixels, bins: Bins, starts: Counts, min_snr: float, min_sigma: float
) -> tuple[Floats, Floats]:
    """Mean and upward standard deviation of every ring.

    Returns
    -------
    mean, spread : ndarray of float64
        Shape (ring,). The spread is what `min_snr` is multiplied with: the standard deviation,
        raised by the Cornish-Fisher term where the noise has a longer tail upwards.
    """
    n_rings = starts.size - 1
    stops = starts[:n_rings].copy()
    values = np.empty(starts[n_rings], np.float32)
    for i in range(frame.size):
        ring = bins[i]
        if ring < n_rings and math.isfinite(frame[i]):
            values[stops[ring]] = frame[i]
            stops[ring] += 1
    share = max(min_snr * min_snr - 1, 0.0) / (6 * min_snr)
    mean, spread = np.empty(n_rings), np.empty(n_rings)
    for ring in range(n_rings):
        inside = values[starts[ring] : stops[ring]]
        mean[ring], sigma, excess = clipped_moments(inside, min_snr, min_sigma)
        spread[ring] = max(sigma + share * max(excess, 0.0), min_sigma)
    return mean, spread


@compiled
def candidates(image: Image) -> Counts:
    """Flat positions, ascending, of finite pixels above the threshold of their ring."""
    frame, bins, threshold = image
    # Room for all of them costs nothing: memory that is never touched is never given.
    found = np.empty(frame.size, np.int64)
    n = 0
    for i in range(frame.size):
        if frame[i] > threshold[bins[i]] and frame[i] < np.inf:
            found[n] = i
            n += 1
    return found[:n]


@compiled
def connected(
    seed: int, waiting: NDArray[np.bool_], shape: tuple[int, int, int], members: Counts
) -> int:
    """Collect the candidates that touch the seed, also across corners, never across panels.

    `members` receives their flat positions; the number of them is returned and they no longer
    wait.
    """
    n_y, n_x = shape[1], shape[2]
    members[0] = seed
    waiting[seed] = False
    n, at = 1, 0
    while at < n:
        pixel = members[at]
        at += 1
        y, x = pixel // n_x % n_y, pixel % n_x
        for dy in range(-1 if y > 0 else 0, 2 if y < n_y - 1 else 1):
            for dx in range(-1 if x > 0 else 0, 2 if x < n_x - 1 else 1):
                other = pixel + dy * n_x + dx
                if waiting[other]:
                    waiting[other] = False
                    members[n] = other
                    n += 1
    return n


@compiled
def surroundings(
    image: Image, shape: tuple[int, int, int], members: Counts, local_radius: int
) -> tuple[float, float, int]:
    """Mean, standard deviation and number of the background pixels around one peak.

    They lie within `local_radius` of the box around the peak, with a gap of `RING_GAP`, on the
    same panel; neighbouring peaks are left out.
    """
    frame, bins, threshold = image
    n_y, n_x = shape[1], shape[2]
    rows, columns = members // n_x, members % n_x
    panel_row = rows[0] // n_y * n_y
    y0, y1 = rows.min() - RING_GAP, rows.max() + RING_GAP
    x0, x1 = columns.min() - RING_GAP, columns.max() + RING_GAP
    n, total, squares = 0, 0.0, 0.0
    for y in range(max(y0 - local_radius, panel_row), min(y1 + local_radius + 1, panel_row + n_y)):
        for x in range(max(x0 - local_radius, 0), min(x1 + local_radius + 1, n_x)):
            if y0 <= y <= y1 and x0 <= x <= x1:
                continue
            i = y * n_x + x
            if bins[i] == threshold.size - 1 or not math.isfinite(frame[i]):
                continue
            if frame[i] <= threshold[bins[i]]:
                n += 1
                total += frame[i]
                squares += np.float64(frame[i]) ** 2
    if n == 0:
        return 0.0, 0.0, 0
    mean = total / n
    return mean, math.sqrt(max(squares / n - mean * mean, 0.0)), n


@compiled
def measure(
    image: Image, shape: tuple[int, int, int], members: Counts, limits: PeakLimits, row: Floats
) -> bool:
    """Whether connected candidates stand out from their surroundings; if so, `row` is filled."""
    frame = image[0]
    n_y, n_x = shape[1], shape[2]
    mean, sigma, n_ring = surroundings(image, shape, members, limits.local_radius)
    if n_ring < MIN_RING_PIXELS:
        return False
    sigma = max(sigma, limits.min_sigma)
    n = members.size
    highest, total, sum_y, sum_x = -np.inf, 0.0, 0.0, 0.0
    for pixel in members:
        above = np.float64(frame[pixel]) - mean
        highest = max(highest, above)
        total += above
        sum_y += above * (pixel // n_x % n_y)
        sum_x += above * (pixel % n_x)
    # The noise of the sum, and that of the background taken from each of its pixels.
    noise = sigma * math.sqrt(n + n * n / n_ring)
    if total <= 0 or total < limits.min_snr * noise or highest < limits.min_snr * sigma:
        return False
    row[0] = members[0] // (n_y * n_x)
    row[1], row[2] = sum_y / total, sum_x / total
    row[3], row[4], row[5], row[6] = total, highest, total / noise if noise > 0 else np.inf, n
    return True


@compiled
def search(image: Image, shape: tuple[int, int, int], limits: PeakLimits) -> Floats:
    """All peaks of a frame in the order of their first pixel, shape (peak, `N_COLUMNS`)."""
    seeds = candidates(image)
    waiting = np.zeros(image[0].size, np.bool_)
    waiting[seeds] = True
    members = np.empty(seeds.size, np.int64)
    peaks = np.empty((seeds.size, N_COLUMNS))
    n_peaks = 0
    for seed in seeds:
        if not waiting[seed]:
            continue
        n = connected(seed, waiting, shape, members)
        if not limits.min_pixels <= n <= limits.max_pixels:
            continue
        if measure(image, shape, members[:n], limits, peaks[n_peaks]):
            n_peaks += 1
    return peaks[:n_peaks]
