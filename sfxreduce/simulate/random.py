"""Random numbers that depend on a key and a counter alone.

A frame must come out the same whatever was rendered before it, so no generator carries state:
every number is a mixed hash of (key, counter). The mixer is the finaliser of SplitMix64 [1]_.
Normal deviates invert the normal distribution with Wichura's AS 241 [2]_. Poisson deviates are
exact: a tabulated part found with an index table [3]_ plus a small remainder by inversion, and
above the table Hörmann's transformed rejection [4]_.

References
----------
.. [1] G. L. Steele, D. Lea, C. H. Flood, OOPSLA (2014) 453. doi:10.1145/2660193.2660195
.. [2] M. J. Wichura, Appl. Stat. 37 (1988) 477. doi:10.2307/2347330
.. [3] H.-C. Chen, Y. Asau, AIIE Trans. 6 (1974) 163. doi:10.1080/05695557408974949
.. [4] W. Hörmann, Insur. Math. Econ. 12 (1993) 39. doi:10.1016/0167-6687(93)90997-4
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import pdtr

from sfxreduce._numba import compiled

__all__ = [
    "PoissonTable",
    "hashed",
    "key_of",
    "normal",
    "normal_block",
    "poisson",
    "poisson_table",
    "uniform",
    "uniform_block",
]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = (np.uint64(n) for n in (11, 27, 30, 31))
_TO_UNIT = 2.0**-53

_STEP = 0.125
_TABLE_END = 64.0
_GUIDES = 64
_SECOND = np.uint64(1 << 40)
"""Offset between the counters of a pixel's successive draws; frames are smaller than this."""


class PoissonTable(NamedTuple):
    """Cumulative Poisson probabilities on a grid of rates, and where to start looking.

    ``cumulative[i, k]`` is P(X <= k) at rate ``i * 0.125``; ``first[i, j]`` is the smallest k with
    ``cumulative[i, k] > j / 64``.
    """

    cumulative: NDArray[np.float64]
    first: NDArray[np.uint8]


def key_of(*parts: str | int) -> np.uint64:
    """Key of a stream of random numbers, from what it stands for.

    Examples
    --------
    >>> int(key_of("shot", 0, 7)) == int(key_of("shot", 7, 0))
    False
    """
    text = "\x1f".join(str(part) for part in parts)
    return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


@compiled
def hashed(key: np.uint64, counter: np.uint64) -> np.uint64:
    """64 mixed bits of a key and a counter."""
    z = key + counter * _GOLDEN
    z = (z ^ (z >> _S30)) * _MIX_A
    z = (z ^ (z >> _S27)) * _MIX_B
    return z ^ (z >> _S31)


@compiled
def uniform(key: np.uint64, counter: np.uint64) -> float:
    """Uniform deviate in the open interval (0, 1)."""
    return (float(hashed(key, counter) >> _S11) + 0.5) * _TO_UNIT


@compiled
def normal(u: float) -> float:
    """Standard normal deviate from a uniform one, to about seven digits."""
    q = u - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        top = ((59.10937472 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179
        return q * top / (((67.1875636 * r + 78.757757664) * r + 17.895169469) * r + 1.0)
    r = math.sqrt(-math.log(u if q < 0.0 else 1.0 - u))
    if r <= 5.0:
        r -= 1.6
        top = ((0.17023821103 * r + 1.3067284816) * r + 2.75681539) * r + 1.4234372777
        z = top / ((0.12021132975 * r + 0.7370016425) * r + 1.0)
    else:
        r -= 5.0
        top = ((0.017337203997 * r + 0.42868294337) * r + 3.081226386) * r + 6.657905115
        z = top / ((0.012258202635 * r + 0.24197894225) * r + 1.0)
    return -z if q < 0.0 else z


@compiled
def uniform_block(key: np.uint64, n: int) -> NDArray[np.float64]:
    """`n` uniform deviates of a key, counters from zero."""
    block = np.empty(n)
    for i in range(n):
        block[i] = uniform(key, np.uint64(i))
    return block


@compiled
def normal_block(key: np.uint64, n: int) -> NDArray[np.float64]:
    """`n` standard normal deviates of a key, counters from zero."""
    block = uniform_block(key, n)
    for i in range(n):
        block[i] = normal(block[i])
    return block


@lru_cache(maxsize=1)
def poisson_table() -> PoissonTable:
    """Table for `poisson`, computed once per process."""
    rates = np.arange(int(_TABLE_END / _STEP)) * _STEP
    # At a rate of 64 the probability beyond 143 counts is below 1e-16: the row ends at one.
    cumulative = np.asarray(pdtr(np.arange(144.0)[None, :], rates[:, None]), np.float64)
    cumulative[:, -1] = 1.0
    steps = np.arange(_GUIDES) / _GUIDES
    first = np.stack([np.searchsorted(row, steps, side="right") for row in cumulative])
    return PoissonTable(cumulative=cumulative, first=first.astype(np.uint8))


@compiled
def poisson(rate: float, key: np.uint64, counter: np.uint64, table: PoissonTable) -> int:
    """Poisson deviate of a given rate, exact at every rate.

    A sum of independent Poisson deviates is one: the rate is cut into a grid point, looked up in
    the table, and a remainder below 0.125 that is nearly always zero.
    """
    if rate >= _TABLE_END:
        return _poisson_large(rate, key, counter)
    row = int(rate / _STEP)
    u = uniform(key, counter)
    k = int(table.first[row, int(u * _GUIDES)])
    while table.cumulative[row, k] <= u:
        k += 1
    rest = rate - row * _STEP
    u = uniform(key, counter + _SECOND)
    # 1 - u decides before the exponential has to be computed: exp(-x) >= 1 - x.
    if u <= 1.0 - rest:
        return k
    p = math.exp(-rest)
    n = 0
    while u > p and n < 16:
        u -= p
        n += 1
        p *= rest / n
    return k + n


@compiled
def _poisson_large(rate: float, key: np.uint64, counter: np.uint64) -> int:
    """Hörmann's PTRS, for rates of 10 and more."""
    log_rate = math.log(rate)
    b = 0.931 + 2.53 * math.sqrt(rate)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    v_r = 0.9277 - 3.6224 / (b - 2.0)
    while True:
        counter += _SECOND
        u = uniform(key, counter) - 0.5
        counter += _SECOND
        v = uniform(key, counter)
        us = 0.5 - abs(u)
        k = math.floor((2.0 * a / us + b) * u + rate + 0.43)
        if us >= 0.07 and v <= v_r:
            return int(k)
        if k < 0.0 or (us < 0.013 and v > us):
            continue
        left = math.log(v) + math.log(inverse_alpha) - math.log(a / (us * us) + b)
        if left <= -rate + k * log_rate - math.lgamma(k + 1.0):
            return int(k)
