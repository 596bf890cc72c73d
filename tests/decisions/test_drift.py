"""The drift gate can only veto, alarms for what matters and not for the hit rate, and is cheap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import ArrayFrames, BrightestPixel, planted_run

from sfxreduce.cluster import Pool
from sfxreduce.decisions.decide import Decision
from sfxreduce.decisions.drift import (
    MOST_FRAMES,
    Drift,
    Sample,
    judge_drift,
    sampled_events,
    shape_distance,
    shape_limit,
    usual_shape,
)
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.stages.drift import check_drift
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.quality.frame_statistics import QUANTITIES, envelope_of, frame_statistics
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.calibration.record import Calibration, Reference
from sfxreduce.scorers.cnn.folder import read_model, write_model
from sfxreduce.scorers.cnn.model import Model, ModelConfig

RNG = np.random.default_rng(5)
BLANKS = RNG.gamma(2.0, 1.0, 20_000).astype(np.float32)
HITS = (8 + 3 * RNG.standard_normal(20_000)).astype(np.float32)
KNOWN = Reference(hit_scores=HITS, blank_scores=BLANKS)
STATISTICS = np.tile([5.0, 2.3, 0.0, 0.9, 100.0], (MOST_FRAMES, 1))


def sample(statistics: np.ndarray = STATISTICS, *, disagreeing: int = 0) -> Sample:
    return Sample(statistics=statistics, n_disagreeing=disagreeing, adu_per_photon=20.0)


def scores_of(n: int, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the hits and the blanks of a run like the calibrated ones."""
    rng = np.random.default_rng(seed)
    hit = rng.random(n) < rate
    return 8 + 3 * rng.standard_normal(int(hit.sum())), rng.gamma(2.0, 1.0, int((~hit).sum()))


@given(rate=st.floats(0, 1), n=st.sampled_from([8, 40, 500, 5_000]), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_a_change_of_the_hit_rate_alone_is_no_alarm(rate: float, n: int, seed: int) -> None:
    run = np.concatenate(scores_of(n, rate, seed))
    assert judge_drift(KNOWN, run, sample()).alarms == ()


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.1])
def test_blanks_that_score_higher_are_an_alarm(rate: float) -> None:
    hits, blanks = scores_of(20_000, rate, seed=3)
    found = judge_drift(KNOWN, np.concatenate([hits, 1.3 * blanks]), sample())
    assert found.checked
    assert len(found.alarms) == 1
    assert "does not match the calibration data" in found.alarms[0]
    assert found.shape is not None
    assert found.shape > shape_limit(20_000, HITS.size, BLANKS.size)


@given(seed=st.integers(0, 1000), n=st.integers(1, 30))
@settings(deadline=None)
def test_the_distance_is_that_of_the_best_of_all_hit_rates(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    run, hits, blanks = rng.normal(1, 2, n), rng.normal(3, 1, 12), rng.normal(0, 1, 15)
    at = np.sort(np.concatenate([run, hits, blanks]))
    f_run, f1, f0 = (np.mean(of[:, None] <= at, axis=0) for of in (run, hits, blanks))
    tried = [np.abs(f_run - h * f1 - (1 - h) * f0).max() for h in np.linspace(0, 1, 2001)]
    assert shape_distance(run, hits, blanks) == pytest.approx(min(tried), abs=1e-3)


def test_experiments_that_differ_widen_what_is_usual() -> None:
    alike = usual_shape([HITS[:900], HITS[900:1800]], [BLANKS[:900], BLANKS[900:1800]])
    apart = usual_shape([HITS[:900], HITS[900:1800]], [BLANKS[:900], 5 * BLANKS[900:1800]])
    assert 2 * alike < apart
    assert usual_shape([HITS], [BLANKS]) == 0


def test_frames_outside_the_envelope_are_named_and_a_few_are_no_drift() -> None:
    reference = Reference(envelope=envelope_of(STATISTICS))
    assert judge_drift(reference, [], sample()).passed
    for column, quantity in enumerate(QUANTITIES):
        odd = STATISTICS.copy()
        odd[:, column] += 10 * (odd[:, column] + quantity.slack)
        alarms = judge_drift(reference, [], sample(odd)).alarms
        assert [alarm.startswith(quantity.name) for alarm in alarms] == [True]
        odd[8:] = STATISTICS[8:]
        assert judge_drift(reference, [], sample(odd)).alarms == ()


def test_what_could_not_be_measured_is_named() -> None:
    reference = Reference(envelope=envelope_of(STATISTICS))
    few = judge_drift(reference, [], sample(STATISTICS[:10]))
    assert "too few to tell hot pixels" in few.alarms[0]
    unknown = replace(sample(), adu_per_photon=float("nan"))
    assert "gain" in judge_drift(reference, [], unknown).alarms[0]
    assert judge_drift(Reference(), [], unknown).passed


def test_the_peak_finder_may_err_but_not_often() -> None:
    assert judge_drift(Reference(), [], sample(disagreeing=3)).alarms == ()
    assert "4 of 32" in judge_drift(Reference(), [], sample(disagreeing=4)).alarms[0]


@pytest.mark.parametrize("gain", [1.0, 20.0])
def test_statistics_of_frames_are_those_of_their_photons(gain: float) -> None:
    photons = np.random.default_rng(1).poisson(6.0, (3, 2, 64, 80))
    good = np.ones((2, 64, 80), bool)
    good[0, :16] = False
    photons[:, 1, 30, 30] = 200
    found = frame_statistics(gain * photons, good, adu_per_photon=gain, saturation_adu=150 * gain)
    background, noise, full, usable, bright = found.mean(axis=0)
    assert background == pytest.approx(6, rel=0.05)
    assert noise == pytest.approx(6**0.5, rel=0.05)
    assert usable == pytest.approx(1 - 16 / 128)
    assert full == pytest.approx(1 / good.sum())
    assert bright == pytest.approx(1e6 / good.sum(), rel=0.5)
    assert np.isnan(frame_statistics(photons, ~good & False)[:, 0]).all()


def test_a_sample_is_even_and_bounded() -> None:
    for n in (0, 1, 31, 32, 33, 10**7):
        events = sampled_events(n)
        assert len(events) == len(set(events)) == min(n, MOST_FRAMES)
        assert not n or (events[0] == 0 and max(events) <= n - 1)


@dataclass(frozen=True)
class Calibrated(BrightestPixel):
    """The brightest pixel of the middle, with a calibration behind it."""

    tile: int = 20
    known: Reference = field(default_factory=Reference)

    @property
    def calibration(self) -> Calibration:
        return replace(
            super().calibration,
            model_sha256="0" * 64,
            hit_scores=np.linspace(1000, 2000, 400, dtype=np.float32),
            hit_groups=np.zeros(400, np.int32),
            reference=self.known,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Counted(ArrayFrames):
    """Frames that take note of which of them were read whole."""

    whole: list[int] = field(default_factory=list)

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        if window is None:
            self.whole.extend(events)
        return super().read(events, window)


def run_with_peaks_aside(*, share: float, n_events: int = 100) -> tuple[Run, list[int]]:
    """A planted run in which so many of the blanks have peaks, but none in the middle."""
    run = planted_run(n_events=n_events)
    source = run.source
    assert isinstance(source, ArrayFrames)
    frames = source.frames.copy()
    blanks = [event for event in range(n_events) if event % 3]
    missed = blanks[:: round(1 / share)] if share else []
    for event in missed:
        frames[event, 10:30:5, 10:140:20] = 400
    return replace(run, source=Counted(frames=frames, detector=source.detector)), missed


def test_on_alarm_what_the_peak_finder_sees_is_kept_and_nothing_is_promised(serial: Pool) -> None:
    run, missed = run_with_peaks_aside(share=0.5)
    alone = plan_filter(run, FilterSettings(scorer=Calibrated(), drift=False), pool=serial)
    both = plan_filter(run, FilterSettings(scorer=Calibrated()), pool=serial)
    assert "the peak finder sees a hit" in both.method.drift.alarms[0]
    assert not both.method.claims["certified"]
    changed = np.flatnonzero(alone.decisions.decision != both.decisions.decision)
    np.testing.assert_array_equal(changed, missed)
    assert (alone.decisions.decision[missed] == Decision.REJECT).all()
    assert (both.decisions.decision[missed] == Decision.UNDECIDED).all()
    assert (both.decisions.reason[missed] == Reason.UNLIKE_CALIBRATION).all()
    assert both.decisions.count(Decision.REJECT) > 0
    assert set(missed) <= set(both.reduction.kept)


def test_an_event_whose_whole_frame_cannot_be_read_is_kept_on_alarm(serial: Pool) -> None:
    run, _ = run_with_peaks_aside(share=0.5)

    class Holed(Counted):
        def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
            reading = super().read(events, window)
            hole = np.isin(events, [5]) & (window is None)
            return replace(reading, reasons=np.where(hole, np.uint32(Reason.DATA_HOLE), 0))

    source = run.source
    assert isinstance(source, Counted)
    holed = replace(run, source=Holed(frames=source.frames, detector=source.detector))
    made = plan_filter(holed, FilterSettings(scorer=Calibrated()), pool=serial).decisions
    assert made.decision[5] == Decision.UNDECIDED
    assert made.reason[5] == Reason.UNLIKE_CALIBRATION | Reason.DATA_HOLE


@pytest.mark.parametrize("n_events", [12, 500])
def test_without_alarm_at_most_32_frames_are_read_once(n_events: int, serial: Pool) -> None:
    run, _ = run_with_peaks_aside(share=0, n_events=n_events)
    plan = plan_filter(run, FilterSettings(scorer=Calibrated()), pool=serial)
    assert isinstance(run.source, Counted)
    assert run.source.whole == sampled_events(n_events)
    assert plan.method.drift.frames == len(run.source.whole) <= MOST_FRAMES
    assert plan.method.drift.passed
    assert plan.method.claims["certified"]


def test_events_unlike_all_others_count_for_the_shape_of_the_scores(serial: Pool) -> None:
    run, _ = run_with_peaks_aside(share=0)
    hits, blanks = (np.linspace(*ends, 300, dtype=np.float32) for ends in ((900, 2000), (90, 200)))
    scorer = Calibrated(known=Reference(hit_scores=hits, blank_scores=blanks))
    plan = plan_filter(run, FilterSettings(scorer=scorer, audit_share=0.0), pool=serial)
    assert plan.method.drift.shape is not None
    shapes = {}
    for why in (Reason.OUT_OF_DISTRIBUTION, Reason.PANELS_MISSING):
        odd = replace(plan.decisions, reason=plan.decisions.reason | np.uint32(why))
        shapes[why] = check_drift(run, scorer, odd, pool=serial).shape
    assert shapes == {
        Reason.OUT_OF_DISTRIBUTION: plan.method.drift.shape,
        Reason.PANELS_MISSING: None,
    }


def test_switched_off_it_reads_nothing_and_nothing_is_promised(serial: Pool) -> None:
    run, _ = run_with_peaks_aside(share=0.5)
    plan = plan_filter(run, FilterSettings(scorer=Calibrated(), drift=False), pool=serial)
    assert isinstance(run.source, Counted)
    assert run.source.whole == []
    assert not plan.method.claims["certified"]
    unchecked = {"checked": False, "alarms": [], "frames": 0, "shape": None, "disagreement": None}
    assert plan.method.claims["drift"] == unchecked == Drift().to_json()


def test_a_scorer_without_a_model_cannot_drift(serial: Pool) -> None:
    run, _ = run_with_peaks_aside(share=0.5)
    plan = plan_filter(run, FilterSettings(scorer=BrightestPixel(tile=20)), pool=serial)
    assert plan.method.drift == Drift()
    assert not (plan.decisions.reason & ~Reason.AUDIT_SAMPLE).any()


def test_serial_and_cluster_fall_back_alike(serial: Pool, cluster: Pool) -> None:
    run, _ = run_with_peaks_aside(share=0.5)
    one, other = (
        plan_filter(run, FilterSettings(scorer=Calibrated()), pool=pool)
        for pool in (serial, cluster)
    )
    assert one.method == other.method
    assert one.method.drift.alarms
    np.testing.assert_array_equal(one.decisions.decision, other.decisions.decision)
    np.testing.assert_array_equal(one.decisions.reason, other.decisions.reason)


def test_the_reference_is_stored_with_the_model(tmp_path: Path) -> None:
    bare = Model(config=ModelConfig(), weights={"w": np.zeros(3, np.float32)})
    assert not bare.reference.envelope.size
    assert not bare.reference.blank_scores.size
    arrays = {
        "calibration.hit_scores": HITS[:50],
        "calibration.blank_scores": BLANKS[:70],
        "calibration.usual_shape": np.float32([0.25]),
        "calibration.envelope": envelope_of(STATISTICS).astype(np.float32),
    }
    write_model(tmp_path / "model", replace(bare, weights={**bare.weights, **arrays}))
    found = read_model(tmp_path / "model").reference
    np.testing.assert_array_equal(found.blank_scores, BLANKS[:70])
    np.testing.assert_allclose(found.envelope, envelope_of(STATISTICS), rtol=1e-6)
    assert (found.hit_scores.size, found.usual_shape) == (50, 0.25)


def test_a_frame_smaller_than_a_cell_tells_nothing() -> None:
    found = frame_statistics(np.ones((2, 10, 12), np.int16), np.ones((10, 12), np.bool_))
    assert found.shape == (2, len(QUANTITIES))
    assert np.isnan(found[:, :3]).all()
