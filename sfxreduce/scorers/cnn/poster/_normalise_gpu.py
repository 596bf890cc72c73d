"""Pixels on the device: from the bytes of a source to numbers, and to units of the noise.

The same meaning as `sfxreduce.scorers.cnn.poster.normalise`, in operations that a graphics card
does well. Box sums are taken directly, along x and then along y, of differences from the tile's
median: no running sum carries one bright pixel's rounding into the rows after it. In 32 bits the
result keeps within 0.01 sigma as long as the background is less than some 100 sigma away from the
median.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import avg_pool2d

from sfxreduce.scorers.cnn.poster.normalise import Normalisation

__all__ = ["in_noise_units", "least_variance"]

# As in `normalise`: one sentinel value must not swallow the digits of its neighbours.
_FARTHEST_ADU = float(2**20)

# Every ninth pixel is enough for a median. Nine divides no usual width, so all columns have a say.
_SAMPLE_STEP = 9


def least_variance(how: Normalisation, adu_per_photon: float) -> float:
    """Variance below which none is taken, in ADU squared; one photon is one ADU if unknown."""
    gain = adu_per_photon if math.isfinite(adu_per_photon) and adu_per_photon > 0 else 1.0
    return (how.floor_photons * gain) ** 2


def in_noise_units(
    values: torch.Tensor,
    good: torch.Tensor,
    how: Normalisation,
    *,
    least: float,
    finite: bool = False,
) -> torch.Tensor:
    """Express every pixel in units of the noise around it; see `normalise`.

    Parameters
    ----------
    values : Tensor of float32
        Shape (tile, y, x), in ADU.
    good : Tensor of bool
        Shape (tile, y, x), or (1, y, x) for one mask of all tiles.
    least : float
        See `least_variance`.
    finite : bool
        Whether all values are known to be finite, as integers are: one mask of all tiles is then
        counted once for all of them.

    Returns
    -------
    Tensor of float32
        Shape (tile, y, x), in units of sigma, without NaN.
    """
    seen = good if finite else good & values.isfinite()
    off = _off_the_median(values, seen)
    mean, variance, use = off, torch.full_like(off, least), seen
    for done in range(how.passes):
        if done:
            limit = how.reject_sigma**2 * variance
            use = seen & ((off - mean).square() <= limit)
        mean, variance = _local_moments(off, use, mean, variance, how=how, least=least)
    sigmas = torch.where(seen, (off - mean) / variance.sqrt(), 0.0)
    return sigmas.clamp(how.lowest, how.highest)


def _off_the_median(values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Subtract the median of a sample of a tile's good pixels; zero where there is none."""
    sample = torch.where(seen, values, math.nan).flatten(1)[:, ::_SAMPLE_STEP]
    median = sample.nanmedian(dim=1).values.nan_to_num(0.0)
    off = torch.where(seen, values - median[:, None, None], 0.0)
    return off.clamp(-_FARTHEST_ADU, _FARTHEST_ADU)


def _local_moments(
    off: torch.Tensor,
    use: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    *,
    how: Normalisation,
    least: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and floored variance of the used pixels of every box; the old ones if there are few."""
    weight = use.float()
    used = off * weight
    n, total, squares = (_box_sums(plane, how.radius) for plane in (weight, used, used * off))
    enough = n >= how.fewest_pixels
    here = total / n
    spread = ((squares - total * here) / (n - 1.0)).clamp_min(least)
    return torch.where(enough, here, mean), torch.where(enough, spread, variance)


def _box_sums(plane: torch.Tensor, radius: int) -> torch.Tensor:
    """Sums of the square boxes around all pixels, shape (tile, y, x)."""
    side = 2 * radius + 1
    rows = avg_pool2d(plane.unsqueeze(1), (1, side), 1, (0, radius), divisor_override=1)
    return avg_pool2d(rows, (side, 1), 1, (radius, 0), divisor_override=1).squeeze(1)
