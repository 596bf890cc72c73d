"""A promise stands on every check: take any one input away, and there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import Calibrated, Counted, crystals_run, known_scores

from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.decisions.assurance import CHECKS, Assurance, Check, assure
from sfxreduce.decisions.decide import Decision
from sfxreduce.decisions.drift import (
    FEWEST_FRAMES,
    FEWEST_SCORES,
    FEWEST_SHOWING,
    MOST_FRAMES,
    conditions_check,
    opinion_check,
    range_check,
    shape_check,
    window_check,
)
from sfxreduce.decisions.threshold import (
    Promise,
    Threshold,
    at_most,
    binomial_threshold,
    given_threshold,
)
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.stages.plan import FilterPlan
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.quality.frame_statistics import QUANTITIES
from sfxreduce.run.reasons import UNSAFE, Reason
from sfxreduce.run.run import Run
from sfxreduce.scorers.calibration.record import Reference

HITS = range(0, 120, 6)


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """All that the checks of a run look at."""

    known: Reference
    scores: np.ndarray
    n_hits: int = 20
    n_rejected: int = 100
    statistics: np.ndarray
    adu_per_photon: float = 10.0
    n_looked: int = 100
    implied_loss: float = 0.0
    is_calibrated: bool = True
    highest: float | None = None
    peaks: np.ndarray
    width_px: np.ndarray
    claim: Threshold | None
    against: tuple[str, ...] = ()

    def assured(self) -> Assurance:
        checks = {
            "shape": shape_check(
                self.known, self.scores, n_hits=self.n_hits, n_rejected=self.n_rejected
            ),
            "conditions": conditions_check(
                self.known, self.statistics, adu_per_photon=self.adu_per_photon
            ),
            "second_opinion": opinion_check(
                n_looked=self.n_looked,
                n_rejected=self.n_rejected,
                n_called=2,
                implied_loss=self.implied_loss,
                max_loss=0.01,
            ),
            "window": window_check(
                n_tiles=9,
                is_calibrated=self.is_calibrated,
                highest=self.highest,
                threshold=0.5,
            ),
            "range": range_check(self.known, peaks=self.peaks, width_px=self.width_px),
        }
        return assure(self.claim, checks, promise=Promise(), against=self.against)


def whole() -> Inputs:
    """Nothing is missing."""
    known = known_scores()
    return Inputs(
        known=known,
        scores=np.concatenate([known.hit_scores[::20], known.blank_scores[::4]]),
        statistics=np.tile([5.0, 2.3, 0.0, 0.9, 100.0], (MOST_FRAMES, 1)),
        peaks=np.full(20, 12, np.int16),
        width_px=np.ones(20, np.float32),
        claim=binomial_threshold(known.hit_scores, promise=Promise()),
    )


Removal = Callable[[Inputs, int], Inputs]
EMPTY = np.zeros(0, np.float32)


def without_known(**empty: np.ndarray) -> Removal:
    return lambda of, _: replace(of, known=replace(of.known, **empty))


def unmeasured(of: Inputs, n: int) -> Inputs:
    statistics = of.statistics.copy()
    statistics[n % FEWEST_FRAMES :, n % len(QUANTITIES)] = np.nan
    return replace(of, statistics=statistics)


REMOVALS: dict[str, tuple[str, Removal]] = {
    "scores": ("shape", lambda of, n: replace(of, scores=of.scores[: n % FEWEST_SCORES])),
    "finite scores": ("shape", lambda of, _: replace(of, scores=np.nan * of.scores)),
    "hits": ("shape", lambda of, _: replace(of, n_hits=0)),
    "rejects": ("shape", lambda of, _: replace(of, n_rejected=0)),
    "stored blanks": ("shape", without_known(blank_scores=EMPTY)),
    "stored hits": ("shape", without_known(hit_scores=EMPTY)),
    "frames": (
        "conditions", lambda of, n: replace(of, statistics=of.statistics[: n % FEWEST_FRAMES]),
    ),
    "a quantity": ("conditions", unmeasured),
    "gain": ("conditions", lambda of, _: replace(of, adu_per_photon=np.nan)),
    "envelope": ("conditions", without_known(envelope=np.zeros((0, 2)))),
    "rejects that can be read": (
        "second_opinion", lambda of, n: replace(of, n_looked=n % min(MOST_FRAMES, 100)),
    ),
    "agreement": ("second_opinion", lambda of, _: replace(of, implied_loss=0.02)),
    "calibrated window": ("window", lambda of, _: replace(of, is_calibrated=False)),
    "room above the threshold": ("window", lambda of, _: replace(of, highest=0.6)),
    "events with peaks": (
        "range", lambda of, n: replace(
            of, peaks=np.where(np.arange(20) < n % FEWEST_SHOWING, 9, 1)
        ),
    ),
    "peaks that were counted": ("range", lambda of, _: replace(of, peaks=0 * of.peaks - 1)),
    "widths": ("range", lambda of, _: replace(of, width_px=np.nan * of.width_px)),
    "stored peaks": ("range", without_known(peaks=np.zeros((0, 2)))),
    "claim": ("", lambda of, _: replace(of, claim=None)),
    "labelled hits": (
        "", lambda of, n: replace(
            of, claim=binomial_threshold(of.known.hit_scores[: n % 299], promise=Promise())
        ),
    ),
    "the model's threshold": (
        "", lambda of, _: replace(
            of, claim=given_threshold(0.5, of.known.hit_scores, promise=Promise())
        ),
    ),
    "a choice that voids it": ("", lambda of, _: replace(of, against=("chosen",))),
}  # fmt: skip


def test_with_everything_there_is_a_promise_and_its_bound_is_that_of_the_labelled_hits() -> None:
    inputs = whole()
    found = inputs.assured()
    assert inputs.claim is not None
    assert found.promised
    assert found.loss_upper == inputs.claim.loss_upper
    facts = found.to_json()
    assert list(facts["checks"]) == list(CHECKS)
    assert all(facts["checks"][name]["passed"] for name in CHECKS)
    assert facts["state"] == "promised"
    assert facts["reasons"] == []
    assert at_most(inputs.claim.loss_upper) in facts["sentence"]
    assert json.loads(json.dumps(facts)) == facts


@settings(max_examples=300, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(REMOVALS)), min_size=1, max_size=4, unique=True),
    n=st.integers(0, 10**6),
)
def test_without_any_one_input_of_any_check_nothing_is_promised(names: list[str], n: int) -> None:
    inputs = whole()
    for name in names:
        inputs = REMOVALS[name][1](inputs, n)
    found = inputs.assured()
    facts = found.to_json()
    assert not found.promised
    assert (facts["state"], facts["loss_upper"]) == ("withheld", None)
    assert facts["reasons"]
    assert all(facts["reasons"])
    assert facts["sentence"].startswith("No promise: ")
    for name in names:
        check = REMOVALS[name][0]
        # Without a reject there is none to read.
        if check and (check != "second_opinion" or inputs.n_rejected):
            assert not facts["checks"][check]["passed"], name


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("check", [None, Check(), Check(n=100, value=0.0, limit=1.0)])
def test_a_check_that_did_not_run_has_not_passed(name: str, check: Check | None) -> None:
    claim = whole().claim
    checks = {known: Check(ran=True) for known in CHECKS}
    assert assure(claim, checks, promise=Promise()).promised
    del checks[name]
    found = assure(claim, checks | ({name: check} if check else {}), promise=Promise())
    assert found.reasons == (f"the check '{name.replace('_', ' ')}' did not run",)
    assert not found.to_json()["checks"][name]["passed"]


def test_what_was_never_checked_is_not_promised() -> None:
    assert not Assurance().promised
    assert Assurance().to_json()["state"] == "withheld"


# Whole runs


def planned(run: Run, scorer: Calibrated | None = None, **options: object) -> FilterPlan:
    settings = FilterSettings(scorer=scorer or Calibrated(), audit_share=0.0, **options)  # type: ignore[arg-type]
    return plan_filter(run, settings, pool=SerialPool())


def test_a_run_like_the_calibrated_ones_gets_the_promise() -> None:
    plan = planned(crystals_run(hits=HITS))
    assert plan.method.assurance.reasons == ()
    claims = plan.method.claims
    assert claims["certified"]
    assert claims["assurance"]["state"] == "promised"
    assert claims["assurance"]["loss_upper"] <= claims["max_loss"]
    assert plan.decisions.count(Decision.REJECT) == 120 - len(HITS)


def without_gain(run: Run, events: set[int]) -> Run:
    source = run.source
    assert isinstance(source, Counted)
    detector = replace(source.detector, adu_per_photon=float("nan"))
    return replace(run, source=replace(source, detector=detector))


def unreadable(run: Run, events: set[int]) -> Run:
    source = run.source
    assert isinstance(source, Counted)
    reasons = {event: int(Reason.DATA_HOLE) for event in range(run.n_events) if event not in events}
    return replace(run, source=replace(source, reasons=reasons))


def shortened(run: Run, events: set[int]) -> Run:
    source = run.source
    assert isinstance(source, Counted)
    chosen = sorted(events)
    columns = run.columns.isel(event=chosen)
    return replace(run, source=replace(source, frames=source.frames[chosen]), columns=columns)


@pytest.mark.parametrize(
    "remove",
    [
        {"change": without_gain},
        {"change": unreadable, "events": {*range(10), *range(40, 50)}},
        {"change": shortened, "events": set(range(FEWEST_SCORES - 1))},
        {"scorer": Calibrated(known=replace(known_scores(), blank_scores=EMPTY))},
        {"scorer": Calibrated(known=replace(known_scores(), hit_scores=EMPTY))},
        {"scorer": Calibrated(known=replace(known_scores(), envelope=np.zeros((0, 2))))},
        {"scorer": Calibrated(known=replace(known_scores(), peaks=np.zeros((0, 2))))},
        {"scorer": Calibrated(fits_window=False)},
        {"scorer": Calibrated(highest=0.01)},
        {"scorer": Calibrated(counts=False)},
        {"options": {"drift": False}},
        {"options": {"keep_from_peaks": 0}},
        {"options": {"threshold": 0.5}},
        {"options": {"promise": Promise(max_loss=0.001)}},
    ],
)
def test_a_run_that_lacks_one_input_gets_none(remove: dict[str, object]) -> None:
    run = crystals_run(hits=HITS)
    change = remove.get("change")
    if change:
        run = change(run, remove.get("events", set()))  # type: ignore[operator]
    plan = planned(run, remove.get("scorer"), **remove.get("options", {}))  # type: ignore[arg-type]
    assert plan.method.assurance.reasons
    assert not plan.method.claims["certified"]
    assert plan.method.claims["assurance"]["loss_upper"] is None
    only_judged_are_rejected(plan)


def test_harmless_oddities_do_not_keep_the_shape_from_being_tested() -> None:
    """Frames without an energy were once left out, and what was left was too little to test."""
    run = crystals_run(hits=HITS)
    columns = run.columns.copy()
    columns["photon_energy_ev"] = ("event", np.full(run.n_events, np.nan))
    plan = planned(replace(run, columns=columns))
    assert (plan.decisions.reason & Reason.METADATA_MISSING).all()
    assert plan.method.assurance.checks["shape"].n == run.n_events


def only_judged_are_rejected(plan: FilterPlan) -> None:
    rejected = plan.decisions.decision == Decision.REJECT
    assert np.isfinite(plan.decisions.score[rejected]).all()
    assert not (plan.decisions.reason[rejected] & np.uint32(UNSAFE)).any()


@dataclass(frozen=True)
class Broken(Calibrated):
    """Its weights are no numbers."""

    def __call__(self, pixels: np.ndarray, detector: object) -> np.ndarray:
        return np.full(len(pixels), np.nan, np.float32)


@pytest.mark.parametrize("n_events", [1, 50, 300])
def test_where_no_event_has_a_score_all_are_kept_and_nothing_is_promised(n_events: int) -> None:
    plan = planned(crystals_run(n_events, hits=range(0, n_events, 7)), Broken())
    assert plan.decisions.count(Decision.UNDECIDED) == n_events
    assert (plan.decisions.reason & Reason.SCORE_INVALID).all()
    assert not plan.method.claims["certified"]
    assert plan.method.claims["assurance"]["checks"]["shape"]["n"] == 0
    assert "0 events could be judged" in " ".join(plan.method.assurance.reasons)


@pytest.mark.parametrize(
    ("n_events", "hits"),
    [(1, []), (1, [0]), (2, [0]), (60, []), (60, range(60)), (0, [])],
    ids=["one blank", "one hit", "two frames", "no hit", "no blank", "no event"],
)
def test_a_run_that_tells_too_little_is_promised_nothing(
    n_events: int, hits: list[int], serial: Pool
) -> None:
    run = crystals_run(n_events, hits=hits)
    plan = plan_filter(run, FilterSettings(scorer=Calibrated(), audit_share=0.0), pool=serial)
    assert plan.method.assurance.reasons
    assert all(plan.method.assurance.reasons)
    assert not plan.method.claims["certified"]
    assert set(hits) <= set(plan.decisions.kept.tolist())
    only_judged_are_rejected(plan)
