"""Random numbers of the simulator: stateless, and of the laws they are named after."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import poisson as poisson_law

from sfxreduce.simulate.random import (
    key_of,
    normal,
    normal_block,
    poisson,
    poisson_table,
    uniform,
    uniform_block,
)

N = 40_000


@settings(deadline=None)
@given(st.integers(0, 2**40), st.text(max_size=8))
def test_a_number_depends_on_key_and_counter_alone(counter: int, name: str) -> None:
    key = key_of("stream", name)
    assert uniform(key, np.uint64(counter)) == uniform(key, np.uint64(counter))
    assert 0.0 < uniform(key, np.uint64(counter)) < 1.0


@settings(deadline=None)
@given(st.integers(0, 500))
def test_a_block_begins_with_the_shorter_block(n: int) -> None:
    key = key_of("blocks")
    assert np.array_equal(uniform_block(key, n), uniform_block(key, 500)[:n])


@settings(deadline=None)
@given(st.floats(1e-9, 1 - 1e-9))
def test_normal_inverts_the_normal_distribution(u: float) -> None:
    assert normal(u) == pytest.approx(ndtri(u), abs=2e-6)


def test_normal_deviates_have_zero_mean_and_unit_variance() -> None:
    z = normal_block(key_of("normal"), N)
    assert abs(z.mean()) < 5 / np.sqrt(N)
    assert z.var() == pytest.approx(1.0, abs=5 * np.sqrt(2 / N))


# Below, at and above the end of the table, and rates on and between its grid points.
@pytest.mark.parametrize("rate", [0.02, 0.125, 0.9, 3.3, 17.06, 63.99, 64.0, 90.3, 2000.0])
def test_poisson_deviates_follow_the_poisson_law(rate: float) -> None:
    key, table = key_of("poisson", str(rate)), poisson_table()
    k = np.array([poisson(rate, key, np.uint64(i), table) for i in range(N)])
    edges = np.unique(poisson_law.ppf(np.linspace(0.02, 0.98, 13), rate))
    found = np.bincount(np.searchsorted(edges, k), minlength=edges.size + 1)
    cumulative = np.concatenate([[0.0], poisson_law.cdf(edges, rate), [1.0]])
    expected = N * np.diff(cumulative)
    chi_square = np.sum((found - expected) ** 2 / expected)
    assert chi_square < edges.size + 5 * np.sqrt(2 * edges.size)


def test_nothing_comes_of_a_rate_of_zero() -> None:
    table = poisson_table()
    assert not any(poisson(0.0, key_of("zero"), np.uint64(i), table) for i in range(1000))
