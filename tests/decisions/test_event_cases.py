"""Every way in which an event can be bad: which reason it gets, and that it is never rejected.

Blank events that any scorer would reject, each case planted alone and in any mix with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted import ArrayFrames, BrightestPixel, panelled_detector

from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.decide import Decision, decide
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import open_table
from sfxreduce.pipeline.filter import filter_run, plan_filter
from sfxreduce.pipeline.stages.conditions import event_reasons
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.run.columns import MISSING_TIME, event_columns
from sfxreduce.run.reasons import HARMLESS, Reason
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.protocol import EventScores, not_counted

N_EVENTS = 12
FULL_SCALE = 16_000.0
Case = Callable[["Bad", int], None]


@dataclass
class Bad:
    """A blank run that gets worse."""

    frames: np.ndarray
    reasons: dict[int, int] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    no_score: set[int] = field(default_factory=set)
    twice: set[int] = field(default_factory=set)

    @classmethod
    def good(cls) -> Bad:
        rng = np.random.default_rng(3)
        frames = rng.normal(100, 5, (N_EVENTS, 3, 40, 60)).astype(np.float32)
        columns = {
            "event_id": np.array([f"e{i}" for i in range(N_EVENTS)], object),
            "timestamp_ns": 10**18 + np.arange(N_EVENTS) * 10**7,
            "photon_energy_ev": np.full(N_EVENTS, 9000.0),
            "pulse_energy_mj": np.full(N_EVENTS, 1.0),
        }
        return cls(frames=frames, columns=columns)

    def run(self) -> Run:
        detector = replace(panelled_detector(3), saturation_adu=FULL_SCALE, adu_per_photon=1.0)
        source = Unsteady(
            frames=self.frames, detector=detector, reasons=self.reasons, twice=frozenset(self.twice)
        )
        extra = {name: self.columns[name] for name in ("dark", "no_image") if name in self.columns}
        own = {name: value for name, value in self.columns.items() if name not in extra}
        columns = event_columns(N_EVENTS, **own)
        for name, value in extra.items():
            columns[name] = ("event", value, {"units": "1"})
        return Run(source=source, columns=columns, experiment="test", name="bad")

    def mark(self, name: str, event: int) -> None:
        flags = self.columns.setdefault(name, np.zeros(N_EVENTS, np.uint8))
        flags[event] = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Unsteady(ArrayFrames):
    """Frames of which some come out differently whenever they are read."""

    twice: frozenset[int] = frozenset()
    reads: list[int] = field(default_factory=list)

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        reading = super().read(events, window)
        pixels = reading.pixels.copy()
        self.reads.append(len(events))
        for place, event in enumerate(events):
            if event in self.twice:
                pixels[place].reshape(-1)[7] += len(self.reads) % 2
        return replace(reading, pixels=pixels)


class Scoring(BrightestPixel):
    """The brightest pixel; no number, and doubts, where a pixel has a value of its own."""

    def __call__(self, pixels: np.ndarray, detector: Any) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            flat = pixels.reshape(len(pixels), -1)
            score = np.nanmax(np.where(np.isfinite(flat), flat, -1), axis=1)
            score = np.where(score >= FULL_SCALE, 0, score)
        return np.where((flat == 77.0).any(axis=1), np.nan, score).astype(np.float32)

    def classify(self, pixels: np.ndarray, detector: Any) -> EventScores:
        unlike = (pixels.reshape(len(pixels), -1) == 55.0).any(axis=1)
        reason = np.where(unlike, np.uint32(Reason.OUT_OF_DISTRIBUTION), np.uint32(0))
        n = len(pixels)
        return EventScores(self(pixels, detector), np.zeros(n, np.uint8), reason, *not_counted(n))


def reads_as(reason: Reason) -> Case:
    def case(bad: Bad, event: int) -> None:
        bad.reasons[event] = int(reason)

    return case


def fills(value: float, share: float = 1.0) -> Case:
    def case(bad: Bad, event: int) -> None:
        flat = bad.frames[event].reshape(-1)
        flat[:: int(1 / share)] = value

    return case


def panel_gone(bad: Bad, event: int) -> None:
    bad.frames[event, 1] = 0


def without(name: str, missing: float | int) -> Case:
    def case(bad: Bad, event: int) -> None:
        bad.columns[name] = bad.columns[name].copy()
        bad.columns[name][event] = missing

    return case


def marked(name: str) -> Case:
    def case(bad: Bad, event: int) -> None:
        bad.mark(name, event)
        if name == "no_image":
            bad.reasons[event] = int(Reason.DATA_HOLE)

    return case


def holds(value: float) -> Case:
    def case(bad: Bad, event: int) -> None:
        bad.frames[event].reshape(-1)[3] = value

    return case


def early(bad: Bad, event: int) -> None:
    bad.columns["timestamp_ns"] = bad.columns["timestamp_ns"].copy()
    bad.columns["timestamp_ns"][event] -= 10**12


CASES: dict[str, tuple[Case, Reason]] = {
    "file cannot be opened": (reads_as(Reason.FILE_UNREADABLE), Reason.FILE_UNREADABLE),
    "read error": (reads_as(Reason.READ_ERROR), Reason.READ_ERROR),
    "chunk missing": (reads_as(Reason.DATA_HOLE), Reason.DATA_HOLE),
    "no image": (marked("no_image"), Reason.NO_IMAGE),
    "panel missing": (panel_gone, Reason.PANELS_MISSING),
    "few pixels not finite": (fills(np.nan, 0.005), Reason.FEW_NONFINITE),
    "many pixels not finite": (fills(np.nan, 0.05), Reason.MANY_NONFINITE),
    "all zero": (fills(0.0), Reason.CONSTANT),
    "constant": (fills(50.0), Reason.CONSTANT),
    "dark": (marked("dark"), Reason.DARK),
    "saturated": (fills(FULL_SCALE, 0.05), Reason.SATURATED),
    "wrong shape or type": (reads_as(Reason.UNEXPECTED_FORMAT), Reason.UNEXPECTED_FORMAT),
    "score is no number": (holds(77.0), Reason.SCORE_INVALID),
    "unlike all calibrated events": (holds(55.0), Reason.OUT_OF_DISTRIBUTION),
    "time stamp missing": (without("timestamp_ns", MISSING_TIME), Reason.TIMESTAMP_ORDER),
    "time stamp out of order": (early, Reason.TIMESTAMP_ORDER),
    "no photon energy": (without("photon_energy_ev", np.nan), Reason.METADATA_MISSING),
    "no pulse energy": (without("pulse_energy_mj", np.nan), Reason.METADATA_MISSING),
}
ALLOWED = HARMLESS & ~Reason.AUDIT_SAMPLE


def decided(run: Run, scorer: Any = None) -> Any:
    return plan_filter(
        run, FilterSettings(scorer=scorer or Scoring(), audit_share=0.0), pool=SerialPool()
    ).decisions


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("event", [0, 5, N_EVENTS - 1])
def test_a_case_has_exactly_its_reason(name: str, event: int) -> None:
    if name == "time stamp out of order" and not event:
        event = 1  # nothing is earlier than the first
    bad = Bad.good()
    spoil, reason = CASES[name]
    spoil(bad, event)
    found = decided(bad.run())
    expected = np.zeros(N_EVENTS, np.uint32)
    expected[event] = reason
    parts = np.uint32(Reason.PANELS_MISSING)  # a constant frame is constant panel by panel, too
    ours = found.reason & ~parts if reason != Reason.PANELS_MISSING else found.reason
    np.testing.assert_array_equal(ours, expected)
    rejected = found.decision == Decision.REJECT
    assert rejected[event] == bool(reason & ALLOWED)
    assert np.delete(rejected, event).all()


def test_an_event_that_is_unlike_and_scores_high_is_a_hit_with_its_reason() -> None:
    bad = Bad.good()
    bad.frames[4, 1, 20, 30] = 1000.0
    holds(55.0)(bad, 4)
    found = decided(bad.run())
    assert found.decision[4] == Decision.HIT
    assert found.reason[4] == Reason.OUT_OF_DISTRIBUTION


def test_events_of_one_name_and_of_one_pulse() -> None:
    bad = Bad.good()
    bad.columns["event_id"][[2, 7]] = "twice"
    found = decided(bad.run())
    assert np.flatnonzero(found.reason & Reason.DUPLICATE_ID).tolist() == [2, 7]
    assert np.flatnonzero(found.decision != Decision.REJECT).tolist() == [2, 7]


def test_stamps_of_whole_seconds_tell_no_pulses_apart() -> None:
    bad = Bad.good()
    bad.columns["timestamp_ns"] = bad.columns["timestamp_ns"] // 10**9 * 10**9
    assert not (decided(bad.run()).reason & Reason.DUPLICATE_ID).any()


def test_an_unknown_gain_keeps_everything() -> None:
    @dataclass(frozen=True)
    class Adapting(Scoring):
        needs_conditions: bool = True

    run = Bad.good().run()
    assert isinstance(run.source, Unsteady)
    of_pixels = np.zeros(N_EVENTS, np.uint32)
    blind = replace(run, source=replace(run.source, detector=panelled_detector(3)))
    assert not (event_reasons(run, Adapting(), of_pixels) & Reason.GAIN_UNKNOWN).any()
    found = event_reasons(blind, Adapting(), of_pixels)
    assert (found & Reason.GAIN_UNKNOWN).all()
    made = decide(np.zeros(N_EVENTS, np.float32), found, threshold=1.0)
    assert made.count(Decision.UNDECIDED) == N_EVENTS


def test_an_event_that_reads_differently_is_undecided(tmp_path: Path) -> None:
    bad = Bad.good()
    bad.frames[[1, 4, 8], 1, 20, 30] = 1000.0
    bad.twice = {4, 6}
    filter_run(
        bad.run(),
        settings=FilterSettings(scorer=Scoring(), audit_share=0.0),
        outputs=Outputs(store=tmp_path / "hits.zarr"),
        pool=SerialPool(),
    )
    found = read_ledger(open_table(tmp_path / "hits.zarr", "ledger"), where="hits")
    assert np.flatnonzero(found.reason & Reason.UNSTABLE_READ).tolist() == [4]
    assert found.decision[[1, 4, 8]].tolist() == [2, 1, 2]
    assert open_run(tmp_path / "hits.zarr").n_events == 3


@st.composite
def mixes(draw: st.DrawFn) -> Iterator[tuple[int, str]]:
    events = draw(st.lists(st.integers(1, N_EVENTS - 1), unique=True, max_size=8))
    return [(event, draw(st.sampled_from(sorted(CASES)))) for event in events]  # type: ignore[return-value]


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(mix=mixes())
def test_in_any_mix_none_is_rejected(mix: list[tuple[int, str]]) -> None:
    bad = Bad.good()
    for event, name in mix:
        CASES[name][0](bad, event)
    found = decided(bad.run())
    for event, name in mix:
        reason = CASES[name][1]
        if name != "time stamp out of order":  # those before it may be later still
            assert found.reason[event] & reason, name
        if not reason & ALLOWED:
            assert found.decision[event] != Decision.REJECT, name
