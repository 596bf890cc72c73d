"""Compiled kernels of the peak finder: connected pixels, their surroundings, what is a peak.

Everything here works on flat arrays of one frame, so that panels, tiles and whole detectors are
one case. `sfxreduce.scorers.peaks.finder` is the interface and holds the description of the method.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.scorers.peaks._rings import (
    Bins,
    Counts,
    Floats,
    PeakLimits,
    Pixels,
    Rings,
    thresholds,
)

__all__ = ["search"]

RING_GAP = 1
"""Pixels between a peak and its ring: the foot of the peak is not background."""

MIN_RING_PIXELS = 16
"""A peak with fewer good pixels around it cannot be checked against its surroundings: the standard
deviation of 16 values is uncertain by 18 %. Chosen, not measured."""

N_COLUMNS = 7
"""panel, y, x, intensity, max_intensity, snr, n_pixels"""

Image: TypeAlias = tuple[Pixels, Bins, Pixels]
"""A frame, the ring of each of its pixels, and the threshold of each ring; infinity at the end,
for the pixels that never count."""


@compiled(borrows=True)
def list_waiting(waiting: NDArray[np.bool_], words: NDArray[np.uint64], found: Counts) -> None:
    """Flat positions, ascending, of all pixels that wait; `words` is the same memory."""
    n = 0
    for word in range(len(words)):
        if words[word]:
            for i in range(8 * word, 8 * word + 8):
                if waiting[i]:
                    found[n] = i
                    n += 1


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
def search(
    frame: Pixels,
    rings: Rings,
    shape: tuple[int, int, int],
    limits: PeakLimits,
    desk: tuple[NDArray[np.bool_], NDArray[np.uint64]],
) -> Floats:
    """All peaks of a frame in the order of their first pixel, shape (peak, `N_COLUMNS`).

    Parameters
    ----------
    frame : ndarray of float32
        Flat, with a NaN after the last pixel.
    desk : tuple
        A flag for each pixel, none of which is set before and after, and the same memory by words.
    """
    waiting, words = desk
    threshold, n_waiting = thresholds(frame, rings, limits, waiting)
    image = (frame, rings.bins, threshold)
    seeds: Counts = np.empty(n_waiting, np.int64)
    members = np.empty(n_waiting, np.int64)
    peaks = np.empty((n_waiting, N_COLUMNS))
    n_peaks = 0
    if n_waiting:
        list_waiting(waiting, words, seeds)
    for seed in seeds:
        if not waiting[seed]:
            continue
        n = connected(seed, waiting, shape, members)
        if not limits.min_pixels <= n <= limits.max_pixels:
            continue
        if measure(image, shape, members[:n], limits, peaks[n_peaks]):
            n_peaks += 1
    return peaks[:n_peaks]
