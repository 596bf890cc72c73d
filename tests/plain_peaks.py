"""The peak finder's method written plainly with NumPy and scipy.ndimage.

The oracle of the compiled one, and what it is compared with in ``benchmarks/peak_finder.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sfxreduce.scorers.peaks.finder import PeakFinder

MIN_BIN_PIXELS = 200
MIN_RING_PIXELS = 16
CLIP_ROUNDS = 8


def plain_peaks(
    frame: NDArray[np.generic],
    good: NDArray[np.bool_],
    radius: NDArray[np.float64],
    finder: PeakFinder,
    min_sigma: float = 0.5,
) -> NDArray[np.float64]:
    """Rows of (panel, y, x, intensity, max_intensity, snr, n_pixels), ordered by first pixel."""
    stack = (1, *frame.shape)[-3:]
    pixels = frame.astype(np.float64).reshape(stack)
    usable = (good & np.isfinite(frame)).reshape(stack)
    rings = ring_numbers(good.reshape(stack), radius.reshape(stack))
    limit = np.full(rings.max() + 1, np.inf)
    for ring, values in grouped(rings[usable], pixels[usable]):
        mean, spread = clipped(values, finder.min_snr, min_sigma)
        limit[ring] = max(finder.min_adc, mean + finder.min_snr * spread)
    # The threshold is compared as float32, like the pixels of a frame of any dtype.
    threshold = limit.astype(np.float32)[rings]
    above = usable & (np.nan_to_num(pixels) > threshold)
    calm = usable & ~above
    touching = np.zeros((3, 3, 3), bool)
    touching[1] = True
    labels, _ = ndimage.label(above, touching)
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        inside = np.argwhere(labels[box] == number) + [part.start for part in box]
        if finder.min_pixels <= len(inside) <= finder.max_pixels:
            row = measured(pixels, calm, inside, finder, min_sigma)
            if row is not None:
                found.append((np.ravel_multi_index(tuple(inside[0]), stack), row))
    return np.array([row for _, row in sorted(found)]).reshape(-1, 7)


def ring_numbers(good: NDArray[np.bool_], radius: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ring of each pixel: one pixel wide, joined until there are enough good pixels."""
    whole = radius.astype(int)
    counts = np.bincount(whole[good], minlength=whole.max() + 1)
    ring_of, ring, held = [], 0, 0
    for r, count in enumerate(counts):
        ring_of.append(ring)
        held += count
        if held >= MIN_BIN_PIXELS and counts[r + 1 :].sum() >= MIN_BIN_PIXELS:
            ring, held = ring + 1, 0
    numbers: NDArray[np.int64] = np.array(ring_of)[whole]
    return numbers


def grouped(
    rings: NDArray[np.int64], values: NDArray[np.float64]
) -> list[tuple[int, NDArray[np.float64]]]:
    """Values of each ring."""
    order = np.argsort(rings, kind="stable")
    numbers, starts = np.unique(rings[order], return_index=True)
    return list(zip(numbers.tolist(), np.split(values[order], starts[1:]), strict=True))


def clipped(values: NDArray[np.float64], min_snr: float, min_sigma: float) -> tuple[float, float]:
    """Mean and upward standard deviation by iterative clipping."""
    mean = sigma = excess = 0.0
    kept = values
    for _ in range(CLIP_ROUNDS):
        if kept.size == 0:
            break
        mean, sigma = kept.mean(), kept.std()
        excess = ((kept - mean) ** 3).mean() / sigma**2 if sigma > 0 else 0.0
        reach = min_snr * max(sigma, min_sigma)
        if np.all(np.abs(kept - mean) <= reach):
            break
        kept = values[np.abs(values - mean) <= reach]
    share = max(min_snr**2 - 1, 0.0) / (6 * min_snr)
    return mean, max(sigma + share * max(excess, 0.0), min_sigma)


def measured(
    pixels: NDArray[np.float64],
    calm: NDArray[np.bool_],
    inside: NDArray[np.int64],
    finder: PeakFinder,
    min_sigma: float,
) -> tuple[float, ...] | None:
    """Row of one group of pixels, or None if it does not stand out from its surroundings."""
    panel = inside[0, 0]
    (y0, x0), (y1, x1) = inside[:, 1:].min(0) - 1, inside[:, 1:].max(0) + 1
    reach = finder.local_radius
    ring = np.zeros(calm.shape[1:], bool)
    ring[max(y0 - reach, 0) : y1 + reach + 1, max(x0 - reach, 0) : x1 + reach + 1] = True
    ring[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = False
    around = pixels[panel][ring & calm[panel]]
    if around.size < MIN_RING_PIXELS:
        return None
    sigma = max(around.std(), min_sigma)
    above = pixels[tuple(inside.T)] - around.mean()
    total, n = above.sum(), len(inside)
    noise = sigma * np.sqrt(n + n * n / around.size)
    if total <= 0 or total < finder.min_snr * noise or above.max() < finder.min_snr * sigma:
        return None
    y, x = (above @ inside[:, 1:]) / total
    return (panel, y, x, total, above.max(), total / noise, n)
