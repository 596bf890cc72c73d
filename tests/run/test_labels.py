"""Labels from peak counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfxreduce.errors import LabelError, UsageError
from sfxreduce.run.labels import Label, label_counts
from sfxreduce.train.quartiles import MIN_COUNT, quartile_labels

counts_of_a_run = st.lists(st.integers(0, 300), min_size=1, max_size=60)


@given(counts=counts_of_a_run)
def test_every_event_has_one_label_and_the_quarters_are_at_least_quarters(
    counts: list[int],
) -> None:
    lower, upper = np.quantile(counts, [0.25, 0.75])
    if lower == upper or upper < MIN_COUNT:
        with pytest.raises(LabelError, match="leave 'quartiles' out"):
            quartile_labels(counts)
        return
    labels = quartile_labels(counts)
    assert labels.label.dtype == np.int8
    assert (labels.miss_at_most, labels.hit_at_least) == (lower, upper)
    assert sum(labels.count(label) for label in Label) == len(counts)
    assert labels.count(Label.MISS) >= len(counts) / 4
    assert labels.count(Label.HIT) >= len(counts) / 4


@given(counts=counts_of_a_run, lower=st.integers(0, 100), more=st.integers(1, 100))
def test_given_thresholds_are_the_rule(counts: list[int], lower: int, more: int) -> None:
    labels = label_counts(counts, miss_at_most=lower, hit_at_least=lower + more)
    for count, label in zip(counts, labels.label, strict=True):
        expected = Label.MAYBE
        if count <= lower:
            expected = Label.MISS
        elif count >= lower + more:
            expected = Label.HIT
        assert label == expected


@given(counts=counts_of_a_run)
def test_more_peaks_never_make_an_event_less_of_a_hit(counts: list[int]) -> None:
    labels = label_counts(counts, miss_at_most=3, hit_at_least=20)
    order = np.argsort(counts)
    assert np.all(np.diff(labels.label[order]) >= 0)


def test_an_event_without_a_count_stays_open_and_shifts_no_quartile() -> None:
    counts = [0, 1, 2, 9, 20, 30]
    with_gaps = quartile_labels([math.nan, *counts, math.nan])
    without = quartile_labels(counts)
    assert with_gaps.label[[0, -1]].tolist() == [Label.MAYBE, Label.MAYBE]
    np.testing.assert_array_equal(with_gaps.label[1:-1], without.label)


def test_equal_quartiles_are_refused() -> None:
    with pytest.raises(LabelError, match="a smaller lower one, found 7 and 7: "):
        quartile_labels([7] * 20)


def test_a_run_with_too_few_hits_for_quartiles_is_told_of_the_other_rule() -> None:
    counts = [0] * 14 + [1] * 8 + [50] * 2
    with pytest.raises(LabelError, match=r"at least 4 peaks .* found 1 and 0: .* default counts"):
        quartile_labels(counts)
    assert quartile_labels(counts, min_count=1).count(Label.HIT) == 10
    assert label_counts(counts, miss_at_most=2, hit_at_least=8).count(Label.HIT) == 2


@pytest.mark.parametrize("thresholds", [(5, 5), (6, 5), (math.nan, 5)])
def test_thresholds_that_contradict_each_other_are_refused(
    thresholds: tuple[float, float],
) -> None:
    with pytest.raises(UsageError, match="--miss-at-most below --min-peaks, found"):
        label_counts([1, 2, 30], miss_at_most=thresholds[0], hit_at_least=thresholds[1])


@pytest.mark.parametrize("counts", [[], [math.nan, math.nan]])
def test_without_any_count_there_are_no_quartiles(counts: list[float]) -> None:
    with pytest.raises(LabelError, match=f"none of {len(counts)} events has a peak count"):
        quartile_labels(counts)
