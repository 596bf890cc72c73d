"""Keeping is the default: a reject needs a finite low score and nothing against it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sfxreduce.decisions.decide import Decision, decide
from sfxreduce.run.reasons import UNSAFE, Reason

REASONS = st.lists(st.sampled_from(list(Reason)), max_size=3).map(
    lambda found: int(sum(set(found), Reason(0)))
)
ROWS = st.lists(
    st.tuples(st.floats(width=32, allow_nan=True, allow_infinity=True), REASONS), max_size=30
)


@given(rows=ROWS, threshold=st.floats(-1e6, 1e6))
def test_a_reject_is_finite_low_and_safe(rows: list[tuple[float, int]], threshold: float) -> None:
    score = np.array([s for s, _ in rows], np.float32)
    reason = np.array([r for _, r in rows], np.uint32)
    made = decide(score, reason, threshold=threshold)
    rejected = made.decision == Decision.REJECT
    assert np.isfinite(score[rejected]).all()
    assert (score[rejected] < threshold).all()
    assert not (made.reason[rejected] & np.uint32(UNSAFE)).any()
    counts = [made.count(d) for d in Decision]
    assert sum(counts) == len(rows)
    assert made.kept.size == made.count(Decision.HIT) + made.count(Decision.UNDECIDED)


@given(rows=ROWS, threshold=st.floats(-1e6, 1e6))
def test_every_event_without_a_finite_score_is_undecided_with_a_reason(
    rows: list[tuple[float, int]], threshold: float
) -> None:
    score = np.array([s for s, _ in rows], np.float32)
    reason = np.array([r for _, r in rows], np.uint32)
    made = decide(score, reason, threshold=threshold)
    odd = ~np.isfinite(score)
    assert (made.decision[odd] == Decision.UNDECIDED).all()
    assert (made.reason[odd] != 0).all()


def test_a_few_bad_pixels_do_not_save_an_event_from_its_score() -> None:
    reason = np.full(2, Reason.FEW_NONFINITE, np.uint32)
    made = decide(np.float32([0.1, 0.9]), reason, threshold=0.5)
    assert made.decision.tolist() == [Decision.REJECT, Decision.HIT]


def test_reason_bits_never_change_their_meaning() -> None:
    assert {reason.name: int(reason) for reason in Reason} == {
        "FILE_UNREADABLE": 1,
        "READ_ERROR": 2,
        "DATA_HOLE": 4,
        "NO_IMAGE": 8,
        "PANELS_MISSING": 16,
        "FEW_NONFINITE": 32,
        "MANY_NONFINITE": 64,
        "CONSTANT": 128,
        "DARK": 256,
        "SATURATED": 512,
        "UNEXPECTED_FORMAT": 1024,
        "SCORE_INVALID": 2048,
        "WORKER_LOST": 4096,
        "DUPLICATE_ID": 8192,
        "TIMESTAMP_ORDER": 16384,
        "METADATA_MISSING": 32768,
        "AUDIT_SAMPLE": 65536,
        "UNLIKE_CALIBRATION": 131072,
        "PANEL_HOT": 262144,
        "GAIN_UNKNOWN": 524288,
        "UNSTABLE_READ": 1048576,
        "OUT_OF_DISTRIBUTION": 2097152,
        "PEAK_COUNT": 4194304,
        "CHANGED": 8388608,
        "DOUBTED_AT_FIRST": 16777216,
    }
