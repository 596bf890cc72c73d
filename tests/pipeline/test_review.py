"""What is offered for review; and the file of labels, whole at any moment, for one writer alone."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from planted import Calibrated, planted_run

from sfxreduce.audit.labels import labels_from_csv
from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.decide import decide
from sfxreduce.errors import (
    LabelError,
    OutputError,
    RunNotFound,
    UsageError,
    VerificationError,
)
from sfxreduce.io.files.journal import _lock
from sfxreduce.pipeline.audit import audit_draw
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.review import LabelBook, events_to_review, review_run, view_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.report.live.guard import GuardedPages
from sfxreduce.report.live.serve import served_beside
from sfxreduce.run.labels import Label
from sfxreduce.run.reasons import Reason


def test_a_file_is_gone_on_with_and_the_last_label_of_an_event_stands(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    with LabelBook.opened(path, by="first") as book:
        book.give(7, Label.HIT)
        book.give(3, Label.MISS)
    with LabelBook.opened(path, by='second, "2"') as book:
        assert book.label_of(7) is Label.HIT
        book.give(7, Label.MAYBE)
        assert book.counts == {"hit": 0, "maybe": 1, "miss": 1}
    entries = labels_from_csv(path.read_text(), where="labels.csv")
    assert [(e.source_index, e.label, e.by) for e in entries] == [
        (7, Label.MAYBE, 'second, "2"'),
        (3, Label.MISS, "first"),
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_two_programs_do_not_label_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    with LabelBook.opened(path, by="one") as book:
        with pytest.raises(OutputError, match="another process is at work"):
            with LabelBook.opened(path, by="two"):
                pass
        book.give(1, Label.HIT)
    assert "1,hit,one" in path.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("event,event_id,label,source\n0,a,hit,csv\n", "expected the columns source_index"),
        ("source_index,label,by,note\n0,hit,me,bright\n", "and no others.*another file to --out"),
        ("source_index,label,by\n0,hi,me\n", "line 2: expected a position"),
    ],
)
def test_a_file_that_would_lose_something_is_left_alone(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(LabelError, match=message), LabelBook.opened(path, by="me"):
        pass
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_label_that_cannot_be_saved_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.csv"
    with LabelBook.opened(path, by="me") as book:
        book.give(1, Label.HIT)
        before = path.read_bytes()

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch, pytest.raises(OutputError, match="no space left"):
            patch.setattr(os, "fsync", full)
            book.give(2, Label.MISS)
        assert book.label_of(2) is None
        assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_each_list_holds_its_events_and_none_that_ended_a_worker() -> None:
    score = np.float32([0.9, 0.1, 0.45, 0.55, np.nan, 0.4, 0.6])
    reason = np.zeros(7, np.uint32)
    reason[1], reason[6] = Reason.AUDIT_SAMPLE, Reason.WORKER_LOST
    made = decide(score, reason, threshold=0.5)
    object.__setattr__(made, "peaks", np.int16([2, 0, 90, 20, -1, 3, 50]))
    lists = {name: set(e.tolist()) for name, e in events_to_review(made, threshold=0.5).items()}
    assert lists == {
        "near the threshold": {0, 1, 2, 3, 5},
        "disagreeing": {0, 2},
        "undecided": {4},
        "audit sample": {1},
    }
    near = events_to_review(made, threshold=0.5)["near the threshold"].tolist()
    assert near[:2] == [2, 3]


def test_what_cannot_be_reviewed_is_said_before_anything_is_served(tmp_path: Path) -> None:
    run, store = planted_run(n_events=30), tmp_path / "hits.zarr"
    with pytest.raises(RunNotFound, match="no such folder"):
        review_run(store, run, ready=pytest.fail)
    settings = FilterSettings(scorer=Calibrated(), threshold=0.5)
    filter_run(run, Outputs(store=store), settings, pool=SerialPool())
    other = planted_run(n_events=31)
    with pytest.raises(VerificationError, match=r"has 31 events.*was made from 30"):
        review_run(store, other, ready=pytest.fail)
    draw = tmp_path / "draw.json"
    filter_run(other, Outputs(store=tmp_path / "more.zarr"), settings, pool=SerialPool())
    audit_draw(
        tmp_path / "more.zarr", nonce="1 2 3 4 5 6", promise=settings.promise, kept=3, out=draw
    )
    with pytest.raises(VerificationError, match="drawn from 31 events"):
        review_run(store, run, draw=draw, ready=pytest.fail)
    with pytest.raises(UsageError, match="event 30: expected a position from 0 to 29"):
        view_run(run, event=30, ready=pytest.fail)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port}: another program listens"):
            view_run(run, port=port, ready=pytest.fail)
    assert not list(tmp_path.glob("*.csv"))


def test_pages_that_cannot_be_served_are_waited_for_by_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("sfxreduce.report.live.serve.socket.create_server", refuse)
    pages, told = GuardedPages("/page", lambda doc: None), []

    def serve() -> None:
        with pytest.raises(UsageError, match=r"--port 0: not to be had \(Too many"):
            served_beside(pages).__enter__()
        told.append(True)

    asking = threading.Thread(target=serve, daemon=True)
    asking.start()
    asking.join(60)
    assert told


def test_a_lock_that_was_removed_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.csv"
    first = LabelBook.opened(path, by="first")
    first.__enter__()

    def late(lock: Path, descriptor: int) -> None:
        monkeypatch.undo()
        first.__exit__()  # between the opening of its file by another and the lock
        _lock(lock, descriptor)

    monkeypatch.setattr("sfxreduce.io.files.journal._lock", late)
    with LabelBook.opened(path, by="second") as book:
        book.give(1, Label.HIT)
        with pytest.raises(OutputError, match="another process"):
            LabelBook.opened(path, by="third").__enter__()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
