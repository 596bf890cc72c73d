"""Counts of decisions against the truth, and what follows from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from sfxreduce.decisions.decide import Decision, decide
from sfxreduce.errors import LabelError
from sfxreduce.train.metrics import Confusion, confusion, roc_auc

counts = st.integers(0, 2000)
confusions = st.builds(Confusion, tp=counts, fn=counts, fp=counts, tn=counts)
scored = st.lists(
    st.tuples(st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0, math.nan]), st.booleans()), max_size=40
)


@pytest.mark.parametrize(
    "printed",
    [
        # The smallest counts that round to the poster's matrix, and the matrix itself.
        Confusion(tp=1276, fn=157, fp=11, tn=1422),
        Confusion(tp=44522, fn=5478, fp=384, tn=49616),
    ],
)
def test_the_posters_matrix_with_rows_as_the_truth(printed: Confusion) -> None:
    assert printed.recall == pytest.approx(0.89044, abs=5.1e-6)
    assert printed.specificity == pytest.approx(0.99232, abs=5.1e-6)
    assert printed.precision == pytest.approx(0.99145, abs=5.1e-6)
    assert printed.npv == pytest.approx(0.90057, abs=5.1e-6)
    assert printed.accuracy == pytest.approx(0.94138, abs=5.1e-6)
    assert printed.hit_loss == pytest.approx(0.10956, abs=5.1e-6)


@given(found=confusions)
def test_hit_loss_is_what_recall_leaves_and_lies_below_its_bound(found: Confusion) -> None:
    if found.tp + found.fn == 0:
        assert math.isnan(found.recall)
        assert math.isnan(found.hit_loss)
        assert math.isnan(found.hit_loss_upper95)
        return
    assert found.recall + found.hit_loss == pytest.approx(1.0)
    assert found.hit_loss <= found.hit_loss_upper95 <= 1.0


@given(found=confusions.filter(lambda c: c.tp > 0))
def test_at_the_bound_so_few_losses_have_a_chance_of_one_in_twenty(found: Confusion) -> None:
    bound = found.hit_loss_upper95
    assert binom.cdf(found.fn, found.tp + found.fn, bound) == pytest.approx(0.05, rel=1e-6)
    one_sided = binomtest(found.fn, found.tp + found.fn, alternative="less")
    assert one_sided.proportion_ci(0.95).high == pytest.approx(bound, abs=1e-9)


@pytest.mark.parametrize(
    ("lost", "hits", "bound"),
    # Two lost of 1000 by a two-sided interval would be 0.00721.
    [(2, 1000, 0.00628), (0, 299, 0.00997), (0, 59, 0.04951), (7, 7, 1.0), (0, 1, 0.95)],
)
def test_the_bound_is_one_sided(lost: int, hits: int, bound: float) -> None:
    found = Confusion(tp=hits - lost, fn=lost, fp=0, tn=0)
    assert found.hit_loss_upper95 == pytest.approx(bound, abs=1e-5)


def test_a_ratio_without_a_base_is_nan() -> None:
    nothing = Confusion(tp=0, fn=0, fp=0, tn=0)
    for name in ("recall", "specificity", "precision", "npv", "accuracy", "hit_loss"):
        assert math.isnan(getattr(nothing, name))


@given(events=scored, threshold=st.sampled_from([0.3, 0.5, 0.7]))
def test_counts_agree_with_the_decisions_taken(
    events: list[tuple[float, bool]], threshold: float
) -> None:
    score = np.array([s for s, _ in events], np.float32)
    truth = np.array([t for _, t in events], bool)
    found = confusion(score, truth, threshold=threshold)
    made = decide(score, np.zeros(len(events), np.uint32), threshold=threshold)
    rejected = made.decision == Decision.REJECT
    assert found.fn == np.count_nonzero(rejected & truth)
    assert found.tn == np.count_nonzero(rejected & ~truth)
    assert found.tp + found.fp == len(made.kept)
    assert all(isinstance(n, int) for n in (found.tp, found.fn, found.fp, found.tn))


@given(events=scored)
def test_auc_is_the_share_of_pairs_in_the_right_order(events: list[tuple[float, bool]]) -> None:
    # An event without a score ranks first: it is kept at any threshold.
    hits = [math.inf if math.isnan(s) else s for s, t in events if t]
    misses = [math.inf if math.isnan(s) else s for s, t in events if not t]
    found = roc_auc([s for s, _ in events], [t for _, t in events])
    if not hits or not misses:
        assert math.isnan(found)
        return
    pairs = [(h > m) + 0.5 * (h == m) for h in hits for m in misses]
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_the_table_names_its_axes() -> None:
    table = Confusion(tp=123456, fn=7, fp=0, tn=89).table()
    assert table.splitlines() == [
        "             kept  rejected",
        "true hit   123456         7",
        "true miss       0        89",
    ]


def test_counts_are_counts() -> None:
    with pytest.raises(LabelError, match="fn=-1"):
        Confusion(tp=0, fn=-1, fp=0, tn=0)
    with pytest.raises(TypeError, match="integer"):
        Confusion(tp=0.5, fn=0, fp=0, tn=0)  # type: ignore[arg-type]


def test_scores_and_truth_of_different_lengths_are_refused() -> None:
    with pytest.raises(LabelError, match=r"found shapes \(2,\) and \(3,\)"):
        roc_auc([0.1, 0.2], [True, False, True])
    with pytest.raises(LabelError, match="one score and one label per event"):
        confusion([0.1, 0.2], [True], threshold=0.5)
