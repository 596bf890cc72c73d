"""The threshold follows the run's blanks, never downwards, and not where it sees none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import BrightestPixel, planted_run
from scipy.special import expit, logit

from sfxreduce.cluster import Pool
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.scorers.calibration.record import FEWEST_SCORES, LevelRule, level_of, level_rule

RULE = LevelRule(power=0.75, lowest=-6.0, highest=-4.0)


def scores_at(level: float, *, n: int = 200, hit_rate: float = 0.2) -> np.ndarray:
    """Blanks around a level and hits far above it."""
    blanks = level + np.linspace(0, 1, n - round(hit_rate * n))
    return expit(np.concatenate([blanks, np.full(round(hit_rate * n), 5.0)]))


@given(st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=80))
def test_the_threshold_never_moves_down_nor_further_than_calibrated(scores: list[float]) -> None:
    assert 0 <= RULE.move(scores) <= 0.75 * (RULE.highest - RULE.lowest)


@pytest.mark.parametrize("hit_rate", [0.0, 0.2, 0.8])
def test_the_hit_rate_hardly_moves_it(hit_rate: float) -> None:
    assert RULE.move(scores_at(-5.0, hit_rate=hit_rate)) == pytest.approx(0.75, abs=0.2)


def test_a_run_without_visible_blanks_keeps_the_lowest_threshold() -> None:
    assert RULE.move(scores_at(-5.0, hit_rate=1.0)) == 0
    assert RULE.move(scores_at(-5.0)[: FEWEST_SCORES - 1]) == 0
    assert RULE.move(np.full(50, np.nan)) == 0


@given(move=st.floats(0, 3), score=st.floats(1e-4, 0.999))
def test_an_event_is_below_the_moved_threshold_if_its_reduced_score_is_below(
    move: float, score: float
) -> None:
    calibrated = 0.17
    moved = RULE.threshold(calibrated, move)
    if abs(logit(score) - logit(moved)) > 1e-3:
        assert (score < moved) == (RULE.reduced(score, move) < calibrated)


def test_a_rule_covers_the_runs_it_was_made_from() -> None:
    runs = [scores_at(level) for level in (-5.5, -3.0, -4.0)]
    rule = level_rule(runs)
    assert (rule.lowest, rule.highest) == (level_of(runs[0]), level_of(runs[1]))
    assert rule.move(runs[0]) == 0 < rule.move(runs[2]) < rule.move(runs[1])
    assert level_rule([[0.5]]) == LevelRule()


def test_without_a_rule_scores_of_any_kind_stay_as_they_are(serial: Pool) -> None:
    counts = np.float32([0, 15, 900])
    np.testing.assert_array_equal(LevelRule().reduced(counts, LevelRule().move(counts)), counts)
    plan = plan_filter(planted_run(), FilterSettings(scorer=BrightestPixel()), pool=serial)
    assert plan.method.threshold == BrightestPixel().threshold
