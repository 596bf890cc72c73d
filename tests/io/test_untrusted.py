"""Runs that another process reads: the same events, and nothing of ours ends with it."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from hostile import children
from hypothesis import given
from hypothesis import strategies as st

from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.decide import Decision
from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.io.open import open_run
from sfxreduce.io.sandbox import process as reader_process
from sfxreduce.io.sandbox import source as untrusted
from sfxreduce.io.sandbox.messages import MessageError, receive, send
from sfxreduce.io.sandbox.process import ProcessLimits
from sfxreduce.io.sandbox.source import UntrustedFrames, open_untrusted
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.peaks.finder import PeakScorer

N_EVENTS = 6


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    path = tmp_path / "run.cxi"
    frames = np.random.default_rng(1).poisson(50, (N_EVENTS, 60, 50)).astype("i2")
    with h5py.File(path, "w") as file:
        file.create_dataset("/entry_1/data_1/data", data=frames, chunks=(1, 60, 50))
        file["/LCLS/photon_energy_eV"] = np.arange(N_EVENTS) + 8000.0
        file["/truth/kind"] = np.arange(N_EVENTS).astype("u1")
    return path


def child(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let another program be the one that reads."""
    monkeypatch.setattr(reader_process, "CHILD", f"{children.__name__}")
    monkeypatch.setenv("SFXREDUCE_TEST_CHILD", name)


def opened(path: Path, **limits: float) -> Run:
    return open_untrusted([str(path)], data_path="", roots=[], limits=ProcessLimits(**limits))  # type: ignore[arg-type]


def test_a_run_is_the_same_whoever_reads_it(theirs: Path) -> None:
    ours, other = open_run(theirs), open_run(theirs, untrusted=True)
    assert isinstance(other.source, UntrustedFrames)
    assert other.columns.identical(ours.columns)
    assert ours.truth is not None
    assert other.truth is not None
    assert other.truth.identical(ours.truth)
    assert other.inputs == ours.inputs
    window = Window.tiled(ours.detector, tile_shape=(20, 20))
    for part in (None, window):
        for events in ([3], [5, 0, 2], range(N_EVENTS)):
            one, two = ours.source.read(events, part), other.source.read(events, part)
            np.testing.assert_array_equal(one.pixels, two.pixels)
            np.testing.assert_array_equal(one.reasons, two.reasons)
    again = pickle.loads(pickle.dumps(other.source))
    np.testing.assert_array_equal(again.read([1]).pixels, ours.source.read([1]).pixels)
    assert len(pickle.dumps(other.source)) < 2000


def test_errors_come_through_as_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match="no such file"):
        open_run(tmp_path / "gone.cxi", untrusted=True)
    with h5py.File(tmp_path / "empty.cxi", "w"):
        pass
    with pytest.raises(SchemaError, match="expected frames at"):
        open_run(tmp_path / "empty.cxi", untrusted=True)


def test_the_event_that_its_process_dies_of_is_undecided(
    theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(monkeypatch, "dies_of_event_3")
    run = opened(theirs)
    reading = run.source.read(range(N_EVENTS))
    assert reading.reasons.tolist() == [0, 0, 0, int(Reason.READ_ERROR), 0, 0]
    kept = np.delete(np.arange(N_EVENTS), 3)
    expected = open_run(theirs).source.read(kept.tolist()).pixels
    np.testing.assert_array_equal(reading.pixels[kept], expected)
    plan = plan_filter(run, FilterSettings(scorer=PeakScorer(), drift=False), pool=SerialPool())
    assert plan.decisions.decision[3] == Decision.UNDECIDED


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dies_at_once", "SIGSEGV"),
        ("says_nothing", "no answer within"),
        ("says_nonsense", "died of it"),
        ("says_too_much", "died of it"),
        ("pickles", "died of it"),
        ("lies_about_the_run", "makes no sense"),
        ("raises_what_is_no_error", "told so"),
    ],
)
def test_a_process_that_was_taken_over_is_one_line(
    name: str, says: str, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(monkeypatch, name)
    monkeypatch.setenv("SFXREDUCE_TEST_CANARY", str(tmp_path / "canary"))
    with pytest.raises(SourceError, match=says):
        opened(theirs, seconds=2.0 if name == "says_nothing" else 60.0)
    assert not (tmp_path / "canary").exists()


def test_a_run_whose_every_event_is_deadly_ends_all_the_same(
    theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrusted, "MOST_DEATHS", 3)
    child(monkeypatch, "dies_of_every_event")
    reasons = opened(theirs).source.read(range(N_EVENTS)).reasons
    assert (reasons != 0).all()
    assert reasons[-1] == Reason.FILE_UNREADABLE


@pytest.mark.parametrize("name", ["takes_memory", "writes_a_file", "takes_time"])
def test_limits_hold(
    name: str, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(monkeypatch, name)
    monkeypatch.setenv("SFXREDUCE_TEST_CANARY", str(tmp_path / "canary"))
    with pytest.raises(SourceError):
        opened(theirs, memory_bytes=2 << 30, cpu_seconds=3, seconds=60.0)
    canary = tmp_path / "canary"
    assert not canary.exists() or canary.stat().st_size == 0


@given(
    body=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=4),
    values=st.lists(st.integers(-9, 9), max_size=9),
    dtype=st.sampled_from(["<i2", ">u4", "<f8", "|u1"]),
)
def test_a_message_comes_back_as_it_was_sent(
    body: dict[str, object], values: list[int], dtype: str
) -> None:
    array = np.abs(np.array(values)).astype(dtype)
    ours, other = os.pipe()
    try:
        send(other, body, [array])
        found, arrays = receive(ours, most_bytes=100, seconds=5)
    finally:
        os.close(ours)
        os.close(other)
    assert found == body
    assert arrays[0].dtype == array.dtype
    np.testing.assert_array_equal(arrays[0], array)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_are_more_than_a_message_error(data: bytes, framed: bool) -> None:
    ours, other = os.pipe()
    os.write(other, struct.pack("<Q", len(data)) + data if framed else data)
    os.close(other)
    try:
        with pytest.raises(MessageError):
            receive(ours, most_bytes=100, seconds=5)
    finally:
        os.close(ours)
