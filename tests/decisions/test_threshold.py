"""Thresholds keep their promise, and say when they cannot."""

from __future__ import annotations

import doctest
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binom

from sfxreduce.decisions.decide import Decision, decide
from sfxreduce.decisions.threshold import (
    Promise,
    at_most,
    binomial_threshold,
    given_threshold,
    hits_needed,
    losses_allowed,
    worst_run_threshold,
)
from sfxreduce.errors import LabelError, UsageError
from sfxreduce.scorers.calibration.probability import calibrate_probability, reliability_bins

PROMISE = Promise()
PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "how-many-hits-are-lost.md"

scores = hnp.arrays(
    np.float32,
    st.integers(0, 80),
    elements=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.7, 0.99, 1.0, math.nan]),
)
promises = st.builds(
    Promise,
    max_loss=st.sampled_from([0.02, 0.05, 0.1, 0.3]),
    confidence=st.sampled_from([0.5, 0.8, 0.95]),
)


@pytest.mark.parametrize(
    ("max_loss", "needed"),
    [
        (0.05, (59, 93, 124, 153, 208, 336, 577)),
        (0.02, (149, 236, 313, 386, 523, 845, 1449)),
        (0.01, (299, 473, 628, 773, 1049, 1693, 2902)),
        (0.005, (598, 947, 1258, 1549, 2100, 3389, 5808)),
        (0.001, (2995, 4742, 6294, 7752, 10511, 16959, 29058)),
    ],
)
def test_the_hits_that_a_promise_needs(max_loss: float, needed: tuple[int, ...]) -> None:
    promise = Promise(max_loss=max_loss)
    found = tuple(hits_needed(promise=promise, lost=k) for k in (0, 1, 2, 3, 5, 10, 20))
    assert found == needed


@given(n_hits=st.integers(1, 4000), promise=promises)
def test_the_losses_allowed_are_as_many_as_chance_permits_and_no_more(
    n_hits: int, promise: Promise
) -> None:
    allowed = losses_allowed(n_hits, promise=promise)
    assert binom.cdf(allowed, n_hits, promise.max_loss) <= promise.risk
    assert binom.cdf(allowed + 1, n_hits, promise.max_loss) > promise.risk


def test_no_experiment_loses_more_of_its_own_than_is_promised_of_all() -> None:
    strong, weak = np.linspace(5, 9, 900), np.linspace(1, 3, 100)
    groups = np.repeat([0, 1], [900, 100])
    both = np.concatenate([strong, weak])
    pooled = binomial_threshold(both, promise=Promise())
    apart = binomial_threshold(both, promise=Promise(), groups=groups)
    assert np.count_nonzero(weak < pooled.value) == 4
    assert np.count_nonzero(weak < apart.value) == apart.n_lost == 1
    assert apart.loss_upper == pooled.loss_upper
    assert binomial_threshold(strong[:50], promise=Promise(), groups=groups[:50]).value == -np.inf


@given(hit_scores=scores, promise=promises)
def test_a_threshold_rejects_no_more_hits_than_are_allowed(
    hit_scores: np.ndarray, promise: Promise
) -> None:
    chosen = binomial_threshold(hit_scores, promise=promise)
    made = decide(hit_scores, np.zeros(hit_scores.size, np.uint32), threshold=chosen.value)
    assert made.count(Decision.REJECT) == chosen.n_lost
    assert chosen.n_lost <= max(losses_allowed(hit_scores.size, promise=promise), 0)
    assert chosen.loss_upper <= promise.max_loss
    assert chosen.certified == (chosen.value > -math.inf)


@given(runs=st.lists(scores, max_size=30), promise=promises)
def test_a_worst_run_threshold_keeps_the_promise_in_every_run(
    runs: list[np.ndarray], promise: Promise
) -> None:
    chosen = worst_run_threshold(runs, promise=promise)
    n_runs = sum(run.size > 0 for run in runs)
    assert chosen.n_runs == n_runs
    for run in runs:
        assert np.count_nonzero(run < chosen.value) <= promise.max_loss * run.size + 1e-9
    if 1 / (n_runs + 1) > promise.risk:
        assert not chosen.certified


@pytest.mark.parametrize("n_hits", [0, 1, 298])
def test_with_too_few_hits_every_event_is_kept(n_hits: int) -> None:
    chosen = binomial_threshold(np.arange(float(n_hits)), promise=PROMISE)
    assert chosen.value == -math.inf
    assert chosen.loss_upper == 0.0
    assert "Every event is kept" in chosen.sentence(hit="a hit")


def test_hits_without_any_score_set_no_threshold() -> None:
    assert binomial_threshold(np.full(1000, np.nan), promise=PROMISE).value == -math.inf
    # They never fall below a threshold, but the ones with a score do.
    mixed = np.concatenate([np.full(995, np.nan), np.arange(5.0)])
    assert binomial_threshold(mixed, promise=PROMISE).value == 4.0


def test_a_threshold_that_was_given_promises_nothing() -> None:
    given_one = given_threshold(0.5, np.linspace(0.6, 1, 1000), promise=PROMISE)
    assert given_one.loss_upper < 0.01
    assert not given_one.certified
    assert given_one.sentence(hit="a frame with a crystal").startswith(
        "The threshold 0.5 was given"
    )


def test_sentences_name_the_promise_its_base_and_the_hit() -> None:
    chosen = binomial_threshold(np.arange(1000.0), promise=PROMISE)
    assert chosen.sentence(hit="an event with 10 peaks") == (
        "With 95 % confidence at most 0.92 % of the hits like the labelled score below 4; of 1000 "
        "labelled hits it loses 4. A hit is an event with 10 peaks."
    )
    runs = [np.arange(200.0)] * 19
    assert "of the hits of one more such run" in worst_run_threshold(
        runs, promise=PROMISE
    ).sentence(hit="a hit")


@given(share=st.floats(0, 1))
def test_a_share_in_words_is_never_smaller_than_it_is(share: float) -> None:
    assert float(at_most(share).removesuffix(" %")) / 100 >= share - 1e-9


@pytest.mark.parametrize(
    "setting", [{"max_loss": 0.0}, {"max_loss": 1.0}, {"confidence": 1.0}, {"max_loss": math.nan}]
)
def test_a_promise_of_everything_or_nothing_is_refused(setting: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--max-loss and --confidence between 0 and 1"):
        Promise(**setting)


def test_scores_come_one_per_hit() -> None:
    with pytest.raises(LabelError, match=r"one score per hit, found shape \(2, 2\)"):
        binomial_threshold(np.zeros((2, 2)), promise=PROMISE)


def violations(n_hits: int, *, repetitions: int, rule: str, rng: np.random.Generator) -> int:
    """Times that the threshold of uniform scores, whose true loss is its value, loses too many."""
    wrong = 0
    for _ in range(repetitions):
        hits = rng.random(n_hits)
        if rule == "naive":
            threshold = np.sort(hits)[int(PROMISE.max_loss * n_hits)]
        else:
            threshold = binomial_threshold(hits, promise=PROMISE).value
        wrong += threshold > PROMISE.max_loss
    return wrong


def most_by_chance(repetitions: int) -> int:
    """Violations that a rule at its nominal risk exceeds once in a thousand simulations."""
    return int(binom.ppf(0.999, repetitions, PROMISE.risk))


def check_binomial_rule(repetitions: int) -> None:
    rng = np.random.default_rng(20)
    for n_hits in (299, 500, 1000, 5000):
        wrong = violations(n_hits, repetitions=repetitions, rule="exact", rng=rng)
        naive = violations(n_hits, repetitions=repetitions, rule="naive", rng=rng)
        print(
            f"n={n_hits}: more than 1 % lost in {wrong} of {repetitions} repetitions by the exact "
            f"rule, in {naive} by the naive one"
        )
        assert wrong <= most_by_chance(repetitions)
        assert naive > 0.3 * repetitions


def test_the_certified_loss_is_exceeded_no_more_often_than_promised() -> None:
    check_binomial_rule(200)


@pytest.mark.slow
def test_the_certified_loss_is_exceeded_no_more_often_than_promised_in_a_thousand() -> None:
    check_binomial_rule(1000)


def check_worst_run_rule(repetitions: int, *, n_runs: int = 19, n_hits: int = 200) -> None:
    """Runs differ: the scores of each are shifted as a whole."""
    rng = np.random.default_rng(21)
    for shift in (0.0, 0.5, 1.0):
        wrong = pooled = 0
        for _ in range(repetitions):
            runs = rng.normal(rng.normal(0, shift, (n_runs + 1, 1)), 1, (n_runs + 1, n_hits))
            chosen = worst_run_threshold(list(runs[:-1]), promise=PROMISE).value
            wrong += int(np.count_nonzero(runs[-1] < chosen)) > PROMISE.max_loss * n_hits
            of_all = binomial_threshold(runs[:-1].ravel(), promise=PROMISE).value
            pooled += int(np.count_nonzero(runs[-1] < of_all)) > PROMISE.max_loss * n_hits
        print(
            f"runs shifted by {shift}: the next run lost more than 1 % in {wrong} of {repetitions} "
            f"repetitions by the worst-run rule, in {pooled} by pooling all hits"
        )
        assert wrong <= most_by_chance(repetitions)
        assert shift == 0 or pooled > wrong


def test_the_next_run_loses_more_than_promised_no_more_often_than_promised() -> None:
    check_worst_run_rule(200)


@pytest.mark.slow
def test_the_next_run_loses_more_than_promised_no_more_often_than_promised_in_a_thousand() -> None:
    check_worst_run_rule(1000)


labelled = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.4, 0.9, math.nan]), st.booleans()), min_size=2
).filter(lambda events: len({hit for score, hit in events if score == score}) == 2)


@given(events=labelled)
def test_probabilities_never_fall_and_are_never_certain(events: list[tuple[float, bool]]) -> None:
    value, hit = zip(*events, strict=True)
    probability = calibrate_probability(value, hit)
    found = probability(np.linspace(-1, 2, 50))
    assert np.all(np.diff(found) >= 0)
    assert np.all((found > 0) & (found < 1))
    assert math.isnan(probability([math.nan])[0])


def test_calibrated_probabilities_come_true_at_any_hit_rate() -> None:
    rng = np.random.default_rng(22)

    def events(n: int, hit_rate: float) -> tuple[np.ndarray, np.ndarray]:
        is_hit = rng.random(n) < hit_rate
        return rng.normal(np.where(is_hit, 1.5, 0), 1), is_hit

    probability = calibrate_probability(*events(20_000, 0.5))
    for hit_rate, told in ((0.5, None), (0.05, 0.05)):
        score, is_hit = events(20_000, hit_rate)
        for group in reliability_bins(probability(score, hit_rate=told), is_hit):
            if group.n_events >= 100:
                low, high = group.interval95
                assert low - 0.04 < group.mean_probability < high + 0.04


@given(
    events=st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=50),
    n_bins=st.integers(1, 12),
)
def test_every_event_is_in_one_reliability_bin(
    events: list[tuple[float, bool]], n_bins: int
) -> None:
    groups = reliability_bins([p for p, _ in events], [h for _, h in events], n_bins=n_bins)
    assert len(groups) == n_bins
    assert sum(g.n_events for g in groups) == len(events)
    assert sum(g.n_hits for g in groups) == sum(h for _, h in events)
    for group in groups:
        if group.n_events:
            assert group.low - 1e-9 <= group.mean_probability <= group.high + 1e-9
            assert group.interval95[0] <= group.observed <= group.interval95[1]
        else:
            assert math.isnan(group.observed)
            assert group.interval95 == (0.0, 1.0)


@pytest.mark.parametrize("is_hit", [[True, True], [False, False]])
def test_without_hits_and_misses_there_is_no_probability(is_hit: list[bool]) -> None:
    with pytest.raises(LabelError, match="expected hits and misses"):
        calibrate_probability([0.1, 0.9], is_hit)
    with pytest.raises(LabelError, match="one score and one label per event"):
        calibrate_probability([0.1, 0.9, 1.0], is_hit)


def examples(text: str) -> str:
    """Examples of a page, without the fences that would pass for output."""
    return "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))


def run_examples(text: str) -> None:
    flags = doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestParser().get_doctest(examples(text), {}, PAGE.name, str(PAGE), 0)
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
    runner.run(test, out=printed.append)
    assert runner.tries > 0
    assert not runner.failures, "".join(printed)


def test_the_examples_of_the_page_print_what_it_says() -> None:
    run_examples(PAGE.read_text().partition("## Worked example")[0])


def test_the_worked_example_reproduces_the_experts_table(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shared_data / "expert_labels")
    run_examples(PAGE.read_text())
