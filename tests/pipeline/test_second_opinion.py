"""A second opinion can only veto, looks where hits are lost if they are, and costs little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from planted import BrightestPixel, Calibrated, Counted, crystals_run, known_scores

from sfxreduce.cluster import Pool
from sfxreduce.decisions.assurance import Assurance, Check
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.decisions.drift import MOST_FRAMES, sampled_events
from sfxreduce.decisions.threshold import Promise
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.stages import drift
from sfxreduce.pipeline.stages.drift import MOST_REJECTS, check_run
from sfxreduce.pipeline.stages.plan import FilterPlan
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.calibration.record import Reference

LOOSE = Promise(max_loss=0.5)
N_EVENTS = 500
HITS = range(0, N_EVENTS, 50)
"""A hit rate of 2 %."""
LOST = (7, 199, 333)
UNLIKE = Calibrated(known=replace(known_scores(), envelope=np.zeros((5, 2))))
"""To it every run is in other conditions."""


def planned(
    run: Run, pool: Pool, scorer: Calibrated | None = None, **options: object
) -> FilterPlan:
    settings = FilterSettings(scorer=scorer or Calibrated(), audit_share=0.0, **options)  # type: ignore[arg-type]
    return plan_filter(run, settings, pool=pool)


def read_whole(run: Run) -> list[int]:
    assert isinstance(run.source, Counted)
    return run.source.whole


def best_rejects(plan: FilterPlan, run: Run, pool: Pool) -> list[int]:
    """Rejects of the scorer alone, the best first."""
    alone = plan_filter(
        run, FilterSettings(scorer=Calibrated(), promise=LOOSE, drift=False), pool=pool
    ).decisions
    rejects = np.flatnonzero(alone.decision == Decision.REJECT)
    order = rejects[np.argsort(-alone.score[rejects], kind="stable")]
    assert set(order) >= set(np.flatnonzero(plan.decisions.decision == Decision.REJECT))
    return [int(event) for event in order]


def test_lost_hits_that_outscore_all_blanks_are_called_and_kept(serial: Pool) -> None:
    plan = planned(crystals_run(N_EVENTS, hits=HITS, lost=LOST), serial)
    decisions = plan.decisions
    assert (decisions.decision[list(LOST)] == Decision.UNDECIDED).all()
    assert (decisions.reason[list(LOST)] & Reason.PEAK_COUNT).all()
    assert set(LOST) <= set(plan.reduction.kept)
    assert decisions.count(Decision.UNDECIDED) == len(LOST)
    assert decisions.count(Decision.REJECT) == N_EVENTS - len(HITS) - len(LOST)
    check = plan.method.assurance.checks["second_opinion"]
    implied = len(LOST) / (len(LOST) + len(HITS))
    assert check.value == pytest.approx(implied)
    assert check.limit == 0.01
    (reason,) = plan.method.assurance.reasons
    for word in ("3 of ", f"{100 * implied:.3g} %", "--scorer peaks"):
        assert word in reason
    assert not plan.method.claims["certified"]


def test_the_best_rejects_are_looked_at_as_long_as_a_batch_has_a_call(serial: Pool) -> None:
    run = crystals_run(N_EVENTS, hits=HITS, lost=LOST)
    plan = planned(run, serial, promise=LOOSE)
    whole = list(read_whole(run))
    assert plan.method.claims["certified"]
    assert (plan.decisions.reason[list(LOST)] == Reason.PEAK_COUNT).all()
    # Each frame once: those that are measured, a few at random, the batch with the calls and one
    # without.
    assert len(whole) == len(set(whole)) <= 4 * MOST_FRAMES
    best = best_rejects(plan, run, serial)
    assert set(LOST) <= set(best[:MOST_FRAMES])
    assert set(whole) >= {*sampled_events(N_EVENTS), *best[: 2 * MOST_FRAMES]}
    assert plan.method.assurance.checks["second_opinion"].n == 2 * MOST_FRAMES


def test_without_a_call_one_batch_is_looked_at(serial: Pool) -> None:
    run = crystals_run(N_EVENTS, hits=HITS)
    plan = planned(run, serial)
    whole = read_whole(run)
    assert plan.method.claims["certified"]
    assert len(whole) == len(set(whole)) <= 3 * MOST_FRAMES
    assert set(whole) >= set(best_rejects(plan, run, serial)[:MOST_FRAMES])
    assert not (plan.decisions.reason & Reason.PEAK_COUNT).any()
    check = plan.method.assurance.checks["second_opinion"]
    assert (check.n, check.value, check.passed) == (MOST_FRAMES, 0.0, True)


@pytest.mark.parametrize("n_lost", [250, 320])
def test_no_more_than_so_many_rejects_are_looked_at(
    n_lost: int, serial: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the alarm makes of the rejects reads them all, and is another matter.
    monkeypatch.setattr(drift, "fall_back", lambda _run, decisions, **_: decisions)
    n_events, hits = 720, range(0, 720, 60)
    lost = sorted(set(range(n_events)) - set(hits))[::2][:n_lost]
    run = crystals_run(n_events, hits=hits, lost=lost)
    plan = planned(run, serial)
    whole = read_whole(run)
    assert len(whole) == len(set(whole)) <= MOST_REJECTS + 2 * MOST_FRAMES
    called = np.flatnonzero(plan.decisions.reason & Reason.PEAK_COUNT)
    assert set(called) <= set(lost)
    assert len(called) >= min(n_lost, MOST_REJECTS)
    check = plan.method.assurance.checks["second_opinion"]
    assert check.n == MOST_REJECTS
    # Beyond the last batch it is the share at random that says how many there are.
    assert check.value is not None
    assert check.value == pytest.approx(n_lost / (n_lost + len(hits)), abs=0.06)


def test_few_rejects_are_all_looked_at(serial: Pool) -> None:
    run = crystals_run(60, hits=range(40), lost=(41, 50))
    plan = planned(run, serial, promise=LOOSE)
    assert plan.method.assurance.checks["second_opinion"].n == 20
    assert np.flatnonzero(plan.decisions.reason & Reason.PEAK_COUNT).tolist() == [41, 50]
    assert set(read_whole(run)) >= set(range(40, 60))


def test_calls_at_random_stand_for_all_rejects(serial: Pool) -> None:
    """Hits that score like blanks are not among the best: the sample alone can see them."""
    lost = range(1, 500, 4)
    run = crystals_run(N_EVENTS, hits=HITS, lost=sorted(set(lost) - set(HITS)))
    assert isinstance(run.source, Counted)
    run.source.frames[list(lost), 65, 75] = 0
    check = planned(run, serial).method.assurance.checks["second_opinion"]
    n_lost = len(set(lost) - set(HITS))
    assert not check.passed
    assert check.value == pytest.approx(n_lost / (n_lost + len(HITS)), abs=0.1)


def test_peaks_that_all_blanks_have_are_no_call(serial: Pool) -> None:
    run = crystals_run(N_EVENTS, hits=HITS)
    assert isinstance(run.source, Counted)
    blanks = sorted(set(range(N_EVENTS)) - set(HITS))
    run.source.frames[np.ix_(blanks, range(10, 40, 5), range(10, 150, 15))] = 400
    plan = planned(run, serial)
    check = plan.method.assurance.checks["second_opinion"]
    assert check.passed
    assert plan.decisions.count(Decision.REJECT) == len(blanks)


@pytest.mark.parametrize("options", [{"promise": LOOSE}, {}])
def test_where_no_event_is_to_be_kept_for_its_peaks_none_is(
    options: dict[str, object], serial: Pool
) -> None:
    run = crystals_run(N_EVENTS, hits=HITS, lost=LOST)
    plan = planned(run, serial, keep_from_peaks=0, **options)
    assert not (plan.decisions.reason & Reason.PEAK_COUNT).any()
    assert not plan.method.claims["certified"]
    assert any("--keep-from-peaks" in why for why in plan.method.assurance.reasons)
    # It is told all the same that they are there.
    check = plan.method.assurance.checks["second_opinion"]
    assert check.value == pytest.approx(len(LOST) / (len(LOST) + len(HITS)))


class Holed(Counted):
    """Some frames cannot be read whole."""

    holes: tuple[int, ...] = ()

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        reading = super().read(events, window)
        hole = np.isin(events, self.holes) & (window is None)
        return replace(reading, reasons=np.where(hole, np.uint32(Reason.DATA_HOLE), 0))


class HoledNearly(Holed):
    """All but one in ten."""

    holes = tuple(event for event in range(N_EVENTS) if event % 10)


class HoledOnce(Holed):
    holes = (5,)


def test_rejects_that_cannot_be_read_are_no_second_opinion(serial: Pool) -> None:
    run = crystals_run(N_EVENTS, hits=HITS)
    assert isinstance(run.source, Counted)
    holed = replace(run, source=HoledNearly(frames=run.source.frames, detector=run.detector))
    plan = planned(holed, serial)
    check = plan.method.assurance.checks["second_opinion"]
    assert not check.ran
    assert check.n < MOST_FRAMES
    assert any("could be read for a second opinion" in why for why in plan.method.assurance.reasons)
    # What cannot be read a second time is kept on alarm.
    rejected = np.flatnonzero(plan.decisions.decision == Decision.REJECT)
    assert not set(rejected) & set(HoledNearly.holes)


# On alarm


def test_on_alarm_what_the_peak_finder_sees_is_kept_and_nothing_is_promised(serial: Pool) -> None:
    lost = range(1, 100, 6)
    run = crystals_run(100, hits=range(0, 100, 10), lost=lost)
    alone = planned(run, serial, drift=False)
    both = planned(run, serial, UNLIKE)
    assert both.method.assurance.checks["conditions"].alarms
    assert not both.method.claims["certified"]
    changed = np.flatnonzero(alone.decisions.decision != both.decisions.decision)
    np.testing.assert_array_equal(changed, lost)
    assert (alone.decisions.decision[changed] == Decision.REJECT).all()
    assert (both.decisions.decision[changed] == Decision.UNDECIDED).all()
    why = np.uint32(Reason.UNLIKE_CALIBRATION | Reason.PEAK_COUNT)
    assert (both.decisions.reason[changed] & why).all()
    assert both.decisions.count(Decision.REJECT) > 0
    assert set(lost) <= set(both.reduction.kept)


def test_an_event_whose_whole_frame_cannot_be_read_is_kept_on_alarm(serial: Pool) -> None:
    run = crystals_run(100, hits=range(0, 100, 10))
    assert isinstance(run.source, Counted)
    holed = replace(run, source=HoledOnce(frames=run.source.frames, detector=run.detector))
    found = planned(holed, serial, UNLIKE).decisions
    assert found.decision[5] == Decision.UNDECIDED
    assert found.reason[5] == Reason.UNLIKE_CALIBRATION | Reason.DATA_HOLE


def test_events_unlike_all_others_count_for_the_shape_of_the_scores(serial: Pool) -> None:
    run, scorer = crystals_run(hits=range(0, 120, 6)), Calibrated()
    plan = planned(run, serial)
    reasons = {}
    for why in (Reason.OUT_OF_DISTRIBUTION, Reason.PEAK_COUNT, Reason.METADATA_MISSING):
        reasons[why] = _shape_of(run, scorer, plan, why, serial)
    assert reasons == dict.fromkeys(reasons, plan.method.assurance.checks["shape"])
    assert not _shape_of(run, scorer, plan, Reason.PANELS_MISSING, serial).ran


def _shape_of(run: Run, scorer: Calibrated, plan: FilterPlan, why: Reason, pool: Pool) -> Check:
    odd: Decisions = replace(plan.decisions, reason=plan.decisions.reason | np.uint32(why))
    checks, _ = check_run(run, scorer, odd, plan.method, max_loss=0.01, pool=pool)
    return checks["shape"]


def test_switched_off_it_reads_nothing_and_nothing_is_promised(serial: Pool) -> None:
    run = crystals_run(hits=range(0, 120, 6), lost=(1,))
    plan = planned(run, serial, drift=False)
    assert read_whole(run) == []
    assert not plan.method.claims["certified"]
    checks = plan.method.claims["assurance"]["checks"]
    assert checks == Assurance().to_json()["checks"]
    assert not any(check["ran"] or check["passed"] for check in checks.values())


def test_a_scorer_without_a_model_has_nothing_to_be_compared_with(serial: Pool) -> None:
    run = crystals_run(hits=range(0, 120, 6), lost=(1,))
    plan = plan_filter(run, FilterSettings(scorer=BrightestPixel(tile=20)), pool=serial)
    assert read_whole(run) == []
    assert not plan.method.assurance.checks
    assert not plan.method.claims["certified"]
    assert not (plan.decisions.reason & ~Reason.AUDIT_SAMPLE).any()


def test_a_model_that_stores_nothing_is_promised_nothing(serial: Pool) -> None:
    bare = Calibrated(known=Reference(hit_scores=known_scores().hit_scores))
    plan = planned(crystals_run(hits=range(0, 120, 6)), serial, bare)
    checks = plan.method.assurance.checks
    assert [name for name, check in checks.items() if check.passed] == ["second_opinion", "window"]
    assert len(plan.method.assurance.reasons) == 3


def test_serial_and_cluster_check_and_fall_back_alike(serial: Pool, cluster: Pool) -> None:
    run = crystals_run(100, hits=range(0, 100, 10), lost=range(1, 100, 6))
    for scorer in (Calibrated(), UNLIKE):
        one, other = (planned(run, pool, scorer) for pool in (serial, cluster))
        assert one.method == other.method
        assert one.method.assurance.reasons
        np.testing.assert_array_equal(one.decisions.decision, other.decisions.decision)
        np.testing.assert_array_equal(one.decisions.reason, other.decisions.reason)
