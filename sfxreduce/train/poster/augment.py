"""The same event as another experiment might have recorded it.

All changes are made to normalised pictures, where noise has the same size everywhere: more
background is more noise in the same units, another gain or pulse energy is another scale, and a
dead pixel is a zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfxreduce.scorers.cnn.poster.normalise import Normalisation

__all__ = ["vary"]

_FARTHEST_SHIFT = 12
_MOST_NOISE = 0.7
_MOST_SCALING = 0.25
_MOST_DEAD = 0.01
_GAP_CHANCE = 0.3
_WIDEST_GAP = 40


def vary(
    seen: NDArray[np.float32], *, normalisation: Normalisation, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Turn, mirror, shift, blur with noise, rescale and punch holes into each event.

    Parameters
    ----------
    seen : ndarray of float32
        Shape (event, tile, y, x), normalised; tiles are square.
    normalisation : Normalisation
        Where values are cut off.

    Returns
    -------
    ndarray of float32
        A varied copy.
    """
    return np.stack([_vary_event(tiles, normalisation, rng) for tiles in seen])


def _vary_event(
    tiles: NDArray[np.float32], limits: Normalisation, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Vary all tiles of one event alike."""
    turned = np.rot90(tiles, int(rng.integers(4)), axes=(-2, -1))
    if rng.random() < 0.5:
        turned = turned[..., ::-1]
    out = _shifted(turned, *rng.integers(-_FARTHEST_SHIFT, _FARTHEST_SHIFT + 1, 2))
    dead = out == 0.0  # masked here or out of the picture: noise must not fill it
    noise = _MOST_NOISE * np.float32(rng.random())
    scale = np.float32(np.exp(rng.uniform(-_MOST_SCALING, _MOST_SCALING)))
    out += noise * rng.standard_normal(out.shape, np.float32)
    out *= scale / np.sqrt(1 + noise**2)
    out[dead] = 0.0
    _punch(out, rng)
    return np.clip(out, limits.lowest, limits.highest, out=out)


def _shifted(tiles: NDArray[np.float32], down: int, right: int) -> NDArray[np.float32]:
    """Copy with the picture moved; what comes in from outside is zero."""
    out = np.zeros(tiles.shape, np.float32)
    n_y, n_x = tiles.shape[-2:]
    out[..., max(down, 0) : n_y + min(down, 0), max(right, 0) : n_x + min(right, 0)] = tiles[
        ..., max(-down, 0) : n_y + min(-down, 0), max(-right, 0) : n_x + min(-right, 0)
    ]
    return out


def _punch(tiles: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Set scattered pixels and, at times, a stripe between two panels to zero."""
    n_dead = int(rng.random() * _MOST_DEAD * tiles.size)
    tiles.reshape(-1)[rng.integers(0, tiles.size, n_dead)] = 0.0
    if rng.random() < _GAP_CHANCE:
        start = int(rng.integers(0, tiles.shape[-2]))
        stripe = slice(start, start + int(rng.integers(1, _WIDEST_GAP + 1)))
        across = tiles if rng.random() < 0.5 else tiles.swapaxes(-1, -2)
        across[..., stripe, :] = 0.0
