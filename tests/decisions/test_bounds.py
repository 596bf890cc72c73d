"""Exact bounds are exact: against enumeration, against their own promise, against known tables."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from sfxreduce.decisions.bounds import (
    audits_needed,
    evidence,
    number_lower,
    number_upper,
    number_upper_sequential,
    true_number_upper,
)
from sfxreduce.decisions.threshold import share_upper
from sfxreduce.errors import UsageError
from sfxreduce.train.metrics import Confusion

risks = st.sampled_from([0.01, 0.05, 0.2, 0.4])


def chance_of_at_most(found: int, number: int, population: int, audited: int) -> float:
    """Chance of so few finds, by counting the samples."""
    samples = sum(
        math.comb(number, k) * math.comb(population - number, audited - k)
        for k in range(min(found, audited) + 1)
    )
    return samples / math.comb(population, audited)


@given(lost=st.integers(0, 500), kept=st.integers(0, 500))
def test_the_bound_on_a_share_is_that_of_the_metrics(lost: int, kept: int) -> None:
    if lost + kept:
        metric = Confusion(tp=kept, fn=lost, fp=0, tn=0).hit_loss_upper95
        assert share_upper(lost, lost + kept, confidence=0.95) == pytest.approx(metric, abs=1e-12)


def test_without_a_sample_nothing_is_bounded() -> None:
    assert share_upper(0, 0, confidence=0.95) == 1.0
    assert number_upper(0, audited=0, population=7, risk=0.05) == 7
    assert number_lower(0, audited=0, population=7, risk=0.05) == 0
    assert number_upper_sequential([], population=7, risk=0.05) == 7


def test_a_whole_population_seen_leaves_no_doubt() -> None:
    seen = [False, True, False, False, True]
    assert number_upper(2, audited=5, population=5, risk=0.05) == 2
    assert number_lower(2, audited=5, population=5, risk=0.05) == 2
    assert number_upper_sequential(seen, population=5, risk=0.05) == 2


@given(data=st.data(), population=st.integers(1, 30), risk=risks)
def test_the_bound_on_a_number_is_the_largest_that_is_not_too_unlikely(
    data: st.DataObject, population: int, risk: float
) -> None:
    audited = data.draw(st.integers(0, population))
    found = data.draw(st.integers(0, audited))
    possible = range(found, population - (audited - found) + 1)
    chances = {m: chance_of_at_most(found, m, population, audited) for m in possible}
    # A chance equal to the risk falls on either side by the last digit of a floating number.
    assume(all(abs(chance - risk) > 1e-9 for chance in chances.values()))
    likely = [m for m, chance in chances.items() if chance > risk]
    assert number_upper(found, audited=audited, population=population, risk=risk) == max(likely)


@given(data=st.data(), population=st.integers(1, 25), risk=risks)
def test_a_number_exceeds_its_bound_no_more_often_than_promised(
    data: st.DataObject, population: int, risk: float
) -> None:
    audited = data.draw(st.integers(0, population))
    number = data.draw(st.integers(0, population))
    above = below = 0
    for found in range(max(0, audited - population + number), min(audited, number) + 1):
        samples = math.comb(number, found) * math.comb(population - number, audited - found)
        upper = number_upper(found, audited=audited, population=population, risk=risk)
        lower = number_lower(found, audited=audited, population=population, risk=risk)
        above += samples * (number > upper)
        below += samples * (number < lower)
    assert above <= risk * math.comb(population, audited) * (1 + 1e-9)
    assert below <= risk * math.comb(population, audited) * (1 + 1e-9)


@pytest.mark.parametrize("risk", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("number", [1, 2, 4, 7])
def test_no_look_in_between_makes_a_sequential_bound_wrong_more_often(
    number: int, risk: float
) -> None:
    population, wrong, orders = 9, 0, 0
    for places in combinations(range(population), number):
        found = np.isin(np.arange(population), places)
        orders += 1
        wrong += any(
            number_upper_sequential(found[:draws], population=population, risk=risk) < number
            for draws in range(population + 1)
        )
    assert wrong <= risk * orders


@pytest.mark.parametrize("number", [1, 3, 6])
@pytest.mark.parametrize("truth", [0, 1, 2])
def test_evidence_is_a_bet_that_does_not_gain_while_the_number_is_reached(
    number: int, truth: int
) -> None:
    population = 8
    paths = [
        np.exp(evidence(np.isin(range(population), p), population=population, number=number))
        for p in combinations(range(population), number + truth)
    ]
    assert np.all(np.mean(paths, axis=0) <= 1 + 1e-12)


@given(found=st.lists(st.booleans(), min_size=1, max_size=60), extra=st.integers(0, 40))
def test_evidence_grows_with_the_number_it_speaks_against(found: list[bool], extra: int) -> None:
    population = len(found) + extra
    paths = [
        evidence(found, population=population, number=number) for number in range(1, population + 1)
    ]
    for path, next_path in pairwise(paths):
        assert np.all(next_path >= path - 1e-9)


@given(found=st.lists(st.booleans(), max_size=40), extra=st.integers(0, 60), risk=risks)
def test_more_draws_never_loosen_a_sequential_bound_except_by_what_they_find(
    found: list[bool], extra: int, risk: float
) -> None:
    population = len(found) + extra
    bounds = [
        number_upper_sequential(found[:n], population=population, risk=risk)
        for n in range(len(found) + 1)
    ]
    for n in range(1, len(bounds)):
        assert bounds[n] <= max(bounds[n - 1], sum(found[:n]))


def test_looking_all_the_time_costs_a_fifth_more() -> None:
    population = 10**9
    once = audits_needed(population=population, allowed=population // 100 - 1, risk=0.05)
    path = evidence(np.zeros(400, bool), population=population, number=population // 100)
    always = 1 + int(np.argmax(path >= math.log(20)))
    assert (once, always) == (299, 356)


@pytest.mark.parametrize(
    ("loss", "hit_rate", "audits"),
    [
        (0.1, 0.02, 1320),
        (0.05, 0.1, 511),
        (0.02, 0.05, 2788),
        (0.01, 0.02, 14531),
        (0.01, 0.5, 296),
    ],
)
def test_the_audits_that_a_promise_needs(loss: float, hit_rate: float, audits: int) -> None:
    population = 10**9
    share = loss * hit_rate / ((1 - loss) * (1 - hit_rate))
    needed = audits_needed(population=population, allowed=int(share * population) - 1, risk=0.05)
    assert needed == pytest.approx(audits, abs=1)


@given(
    population=st.integers(1, 200), allowed=st.integers(0, 200), found=st.integers(0, 5), risk=risks
)
def test_no_smaller_audit_would_do(population: int, allowed: int, found: int, risk: float) -> None:
    needed = audits_needed(population=population, allowed=allowed, risk=risk, found=found)
    if found <= needed < population:
        bound = number_upper(found, audited=needed, population=population, risk=risk)
        assert bound <= allowed
    if found < needed <= population and allowed < population:
        bound = number_upper(found, audited=needed - 1, population=population, risk=risk)
        assert bound > allowed


@settings(deadline=None, max_examples=15)
@given(number=st.integers(0, 300), sensitivity=st.sampled_from([0.5, 0.8, 0.95, 1.0]), risk=risks)
def test_a_labeller_hides_more_than_the_bound_no_more_often_than_promised(
    number: int, sensitivity: float, risk: float
) -> None:
    seen = np.arange(number + 1)
    bounds = [true_number_upper(int(k), sensitivity=sensitivity, risk=risk) for k in seen]
    wrong = binom.pmf(seen, number, sensitivity)[np.array(bounds) < number].sum()
    assert wrong <= risk * (1 + 1e-9)
    assert all(k <= bound for k, bound in zip(seen, bounds, strict=True))


def test_a_labeller_that_recognises_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="a sensitivity of 0"):
        true_number_upper(0, sensitivity=0.0, risk=0.05)


@pytest.mark.parametrize(("found", "audited", "population"), [(3, 2, 9), (-1, 2, 9), (1, 10, 9)])
def test_counts_that_no_sample_has_are_refused(found: int, audited: int, population: int) -> None:
    with pytest.raises(UsageError, match="found <= audited <= population"):
        number_upper(found, audited=audited, population=population, risk=0.05)
