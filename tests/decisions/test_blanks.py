"""A run's gap can only save hits, at a bounded price, and its blanks tell what is unusual."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import Calibrated, crystals_run, known_scores
from scipy.special import expit, logit

from sfxreduce.cluster import Pool
from sfxreduce.decisions.decide import (
    FEWEST_BLANKS,
    Decision,
    Decisions,
    blank_peaks,
    decide,
    keep_by_peaks,
)
from sfxreduce.decisions.method import FEWEST_LOW, Gap, find_gap
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.reasons import Reason
from sfxreduce.scorers.calibration.record import Reference

PROMISED = 0.1
KNOWN = expit(np.random.default_rng(1).normal(-6.0, 0.5, 5_000)).astype(np.float32)


def run_of(n: int, rate: float, *, lost: int = 0, seed: int = 0) -> np.ndarray:
    """Scores of a run in source order: blanks, hits, and hits just below the promised threshold."""
    rng = np.random.default_rng(seed)
    n_hits = round(n * rate)
    scores = np.concatenate(
        [
            rng.normal(-6.0, 0.5, n - n_hits - lost),
            rng.normal(6.0, 2.0, n_hits),
            rng.normal(-2.5, 0.05, lost),
        ]
    )
    return expit(rng.permutation(scores)).astype(np.float32)


def gap_of(scores: np.ndarray, *, most: float = 0.02, known: np.ndarray = KNOWN) -> Gap | str:
    reference = Reference(blank_scores=known)
    return find_gap(scores, promised=PROMISED, reference=reference, max_blanks=most)


@pytest.mark.parametrize("rate", [0.0, 0.005, 0.02, 0.3, 0.6, 0.9, 0.95])
@pytest.mark.parametrize("lost", [1, 3, 12])
def test_at_any_hit_rate_hits_below_the_promised_threshold_are_won_back(
    rate: float, lost: int
) -> None:
    scores = run_of(1000, rate, lost=lost)
    found = gap_of(scores)
    assert isinstance(found, Gap), found
    assert found.moved == lost
    assert found.edge < found.threshold < PROMISED
    blanks = scores[scores < 0.03]
    assert np.mean(blanks >= found.threshold) <= 0.02


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(-20, 20), min_size=0, max_size=120),
    promised=st.floats(1e-3, 0.999),
    most=st.floats(0, 1),
    known=st.lists(st.floats(0, 1, width=32), min_size=0, max_size=60),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_threshold_never_rises_and_costs_no_more_blanks_than_allowed(
    values: list[float], promised: float, most: float, known: list[float], seed: int
) -> None:
    scores, reference = expit(np.array(values)), Reference(blank_scores=np.float32(known))
    found = find_gap(scores, promised=promised, reference=reference, max_blanks=most)
    if isinstance(found, str):
        assert found
        return
    assert found.promised == promised
    assert 0.0 < found.edge < found.threshold < promised
    assert found.blanks_kept <= most + 1 / len(known) + 1e-9
    between = (scores >= found.threshold) & (scores < promised)
    assert found.moved == np.count_nonzero(between)
    assert np.count_nonzero(scores < promised) >= FEWEST_LOW
    # By the order alone of the events its edges do not move: only the draws can.
    shuffled = np.random.default_rng(seed).permutation(scores)
    again = find_gap(shuffled, promised=promised, reference=reference, max_blanks=most)
    assert again in (found, "where the blanks of the run end depends on single events")


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.5, 0.95])
@pytest.mark.parametrize("lost", [0, 4])
def test_the_order_of_the_events_of_a_usual_run_does_not_matter(rate: float, lost: int) -> None:
    scores = run_of(800, rate, lost=lost)
    rng = np.random.default_rng(2)
    found = gap_of(scores)
    assert all(gap_of(rng.permutation(scores)) == found for _ in range(8))
    nowhere = np.concatenate([scores, np.full(30, np.nan)])
    assert gap_of(nowhere) == found


@pytest.mark.parametrize(
    ("scores", "known", "most", "why"),
    [
        (run_of(500, 0.1, lost=3), np.zeros(0), 0.02, "no calibrated blanks"),
        (run_of(500, 0.1, lost=3), np.append(KNOWN, 0.9), 0.0, "up to the promised threshold"),
        (run_of(FEWEST_LOW - 1, 0.0), KNOWN, 0.02, f"fewer than {FEWEST_LOW}"),
        (run_of(200, 0.92), KNOWN, 0.02, f"fewer than {FEWEST_LOW}"),
        (expit(np.linspace(-6, 6, 2000)), KNOWN, 0.02, "up to the promised threshold"),
        (np.zeros(0), KNOWN, 0.02, f"fewer than {FEWEST_LOW}"),
        (np.full(100, np.nan), KNOWN, 0.02, f"fewer than {FEWEST_LOW}"),
        (
            # Two heaps of blanks, nearly as large: which is the lower half is chance.
            expit(np.repeat([-12.0, -6.5], [11, 10])), KNOWN, 0.02, "depends on single events",
        ),
    ],
)  # fmt: skip
def test_where_there_is_no_gap_it_is_said_why(
    scores: np.ndarray, known: np.ndarray, most: float, why: str
) -> None:
    found = gap_of(scores, most=most, known=known)
    assert isinstance(found, str)
    assert why in found


@pytest.mark.parametrize("promised", [0.0, 1.0, float("-inf")])
def test_without_a_promised_threshold_there_is_none_to_lower(promised: float) -> None:
    scores = run_of(500, 0.1, lost=3)
    known = Reference(blank_scores=KNOWN)
    assert isinstance(find_gap(scores, promised=promised, reference=known, max_blanks=0.02), str)


def test_scores_of_nothing_are_scores() -> None:
    # Their logit is no number.
    scores = np.concatenate([np.zeros(100), np.full(5, 0.05), np.ones(9)])
    for known in (np.append(np.zeros(50), KNOWN), np.append(KNOWN, 0.0)):
        for most in (0.0, 0.02, 1.0):
            found = gap_of(scores, most=most, known=known)
            assert isinstance(found, Gap)
            assert (found.moved, found.threshold > found.edge) == (5, True)


LOW = known_scores(hits=(0.5, 0.999), blanks=(1e-4, 1e-3))
"""Blanks of which none reaches the hits of a run that are lost."""


def test_lost_hits_are_hits_by_the_runs_own_gap_on_any_pool(serial: Pool, cluster: Pool) -> None:
    run = crystals_run(200, hits=range(0, 200, 20), lost=(3, 77), brightest=440)
    chosen = FilterSettings(scorer=Calibrated(known=LOW), audit_share=0.0)
    one, other = (plan_filter(run, chosen, pool=pool) for pool in (serial, cluster))
    assert one.method == other.method
    np.testing.assert_array_equal(one.decisions.decision, other.decisions.decision)
    assert isinstance(one.method.gap, Gap)
    assert one.method.gap.moved == 2
    assert one.method.threshold == one.method.gap.threshold < 0.5
    assert (one.decisions.decision[[3, 77]] == Decision.HIT).all()
    assert one.decisions.count(Decision.REJECT) == 188
    claims = one.method.claims
    assert (claims["gap"], claims["gap_reason"]) == (one.method.gap.to_json(), None)
    assert claims["certified"]


@pytest.mark.parametrize(
    ("options", "highest"),
    [({"threshold": 0.5}, []), ({"max_blanks_kept": 0.0}, [0.9]), ({}, [0.9] * 20)],
)
def test_where_it_may_not_be_lowered_the_threshold_is_the_promised_one(
    options: dict[str, object], highest: list[float], serial: Pool
) -> None:
    known = replace(LOW, blank_scores=np.append(LOW.blank_scores, np.float32(highest)))
    run = crystals_run(200, hits=range(0, 200, 20), lost=(3, 77), brightest=440)
    chosen = FilterSettings(scorer=Calibrated(known=known), drift=False, **options)  # type: ignore[arg-type]
    method = plan_filter(run, chosen, pool=serial).method
    assert method.threshold == 0.5
    assert method.claims["gap"] is None
    assert method.claims["gap_reason"]


# Peaks


@settings(max_examples=150, deadline=None)
@given(
    share=st.floats(0, 0.7),
    n=st.integers(20, 400),
    mean=st.sampled_from([0.0, 0.3, 2.0, 10.0, 60.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_hits_among_the_rejects_do_not_make_peaks_usual(
    share: float, n: int, mean: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    hits = round(share * n)
    blanks = rng.poisson(mean, n - hits)
    counts = rng.permutation(np.concatenate([blanks, rng.poisson(mean + 300, hits)]))
    most = blank_peaks(counts)
    assert most < 250 + mean
    # What all blanks have is usual, however few of the rejects they are; of two peaks a blank, one
    # in 200 has more than six, and chance adds three of them once in 10^5 examples.
    assert np.count_nonzero(blanks > most) <= 0.02 * blanks.size + 3


@pytest.mark.parametrize("n", range(FEWEST_BLANKS))
def test_of_too_few_blanks_nothing_is_usual(n: int) -> None:
    assert blank_peaks(np.full(n, 90)) == 0.0
    assert blank_peaks(np.full(FEWEST_BLANKS, 90)) > 90


def judged(peaks: list[int], *, scores: list[float] | None = None) -> tuple[Decisions, np.ndarray]:
    score = np.float32(scores or [0.01] * len(peaks))
    return decide(score, np.zeros(score.size, np.uint32), threshold=0.5), np.array(peaks, np.int16)


@settings(max_examples=150, deadline=None)
@given(
    peaks=st.lists(st.integers(-1, 120), min_size=0, max_size=60),
    fewest=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_kept_are_rejects_with_many_peaks_and_clearly_more_than_blanks(
    peaks: list[int], fewest: int, seed: int
) -> None:
    scores = np.random.default_rng(seed).random(len(peaks)).tolist()
    before, counted = judged(peaks, scores=scores)
    after = keep_by_peaks(before, counted, fewest=fewest)
    rejected = before.decision == Decision.REJECT
    most = blank_peaks(counted[rejected & (counted >= 0)])
    expected = rejected & (counted >= fewest) & (counted > most) & (fewest > 0)
    changed = before.decision != after.decision
    np.testing.assert_array_equal(changed, expected)
    assert (after.decision[changed] == Decision.UNDECIDED).all()
    np.testing.assert_array_equal(
        after.reason, np.where(changed, before.reason | Reason.PEAK_COUNT, before.reason)
    )
    np.testing.assert_array_equal(after.score, before.score)


def test_what_a_peak_finder_would_keep_is_kept_where_blanks_are_clean() -> None:
    before, peaks = judged([0, 1, 0, 2, 0, 0, 1, 3, 0, 7, 8, 9, 80])
    after = keep_by_peaks(before, peaks, fewest=8)
    assert np.flatnonzero(after.decision == Decision.UNDECIDED).tolist() == [10, 11, 12]


@pytest.mark.parametrize("seed", range(5))
def test_of_blanks_that_all_have_60_to_90_peaks_none_is_kept(seed: int) -> None:
    """Hot pixels, offsets of panels, streaks of the jet: the plain rule kept 76 of 76."""
    rng = np.random.default_rng(seed)
    before, peaks = judged(rng.integers(60, 91, 76).tolist())
    after = keep_by_peaks(before, peaks, fewest=8)
    assert after.count(Decision.UNDECIDED) == 0
    with_hits, peaks = judged([*peaks.tolist(), 300, 350])
    kept = keep_by_peaks(with_hits, peaks, fewest=8).decision == Decision.UNDECIDED
    assert np.flatnonzero(kept).tolist() == [76, 77]


def test_blanks_of_experiments_at_other_levels_are_no_wider_for_it() -> None:
    quiet, loud = (expit(np.random.default_rng(1).normal(m, 0.5, 500)) for m in (-7.0, -3.5))
    both = np.concatenate([quiet, loud]).astype(np.float32)
    groups = np.repeat([0, 1], 500).astype(np.int32)
    scores = run_of(1000, 0.1, lost=3)
    told_apart = Reference(blank_scores=both, blank_groups=groups)
    mixed = Reference(blank_scores=both)
    apart, together = (
        find_gap(scores, promised=PROMISED, reference=known, max_blanks=0.02)
        for known in (told_apart, mixed)
    )
    alone = gap_of(scores)
    assert isinstance(apart, Gap)
    assert isinstance(alone, Gap)
    assert logit(apart.edge) == pytest.approx(logit(alone.edge), abs=0.2)
    assert isinstance(together, str) or together.edge > 2 * apart.edge
