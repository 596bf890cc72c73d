"""Labels are given by keyboard, and each is in the file before the next event is shown."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planted import Calibrated, planted_run
from served import serving

from sfxreduce.audit.labels import labels_from_csv
from sfxreduce.cluster import SerialPool
from sfxreduce.io.label_table import read_labels
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.audit import audit_draw, audit_label
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.run.labels import Label
from sfxreduce.scorers.peaks.finder import PeakScorer

KEYS = {"h": "hit", "m": "miss", "u": "maybe"}


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and its output."""
    folder = tmp_path_factory.mktemp("review")
    ingest_run(planted_run(n_events=60), out=folder / "run.zarr", pool=SerialPool())
    filter_run(
        open_run(folder / "run.zarr"),
        settings=FilterSettings(scorer=Calibrated(), threshold=0.5, audit_share=0.2),
        outputs=Outputs(store=folder / "hits.zarr"),
        pool=SerialPool(),
    )
    return folder


def shown(page: Any) -> int:
    """Event on the screen."""
    return int(page.locator("h2").first.inner_text().removeprefix("event "))


def ready(page: Any) -> None:
    """Wait until the page listens to keys."""
    page.wait_for_function("window.sfxreduce_keys")


def pressed(page: Any, key: str) -> int:
    """Press a key, and wait until the page knows that another event is shown; the former."""
    event = shown(page)
    page.keyboard.press(key)
    page.wait_for_function(f"!document.title.startsWith('event {event} ')", timeout=30_000)
    page.locator(f"h2:not(:text-is('event {event}'))").first.wait_for()
    return event


def labelled(page: Any, keys: str) -> dict[int, str]:
    """Label one event after the other; which, and how."""
    return {pressed(page, key): KEYS[key] for key in keys}


def in_file(path: Path) -> dict[int, str]:
    entries = labels_from_csv(path.read_text(), where=path.name)
    return {entry.source_index: entry.label.name.lower() for entry in entries}


def test_twenty_labels_typed_are_in_the_file_also_after_a_kill(
    filtered: Path, tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    out = tmp_path / "labels.csv"
    words = ["review", "--in", "hits.zarr", "--against", "run.zarr", "--out", out, "--by", "me"]
    with serving(*words, folder=filtered) as served:
        page = open_page(served.address)
        ready(page)
        typed = labelled(page, "hmuhmhhmuh")
        assert in_file(out) == typed
        os.kill(served.process.pid, signal.SIGKILL)
    assert in_file(out) == typed
    with serving(*words, "--json", folder=filtered) as served:
        page = open_page(served.address)
        page.locator("text=10 labelled").first.wait_for()
        ready(page)
        for _ in range(10):
            pressed(page, "ArrowRight")
        typed |= labelled(page, "mmhuhmmhmu")
        assert in_file(out) == typed
        assert len(typed) == 20
        # A second thought takes the place of the first.
        pressed(page, "ArrowLeft")
        typed |= labelled(page, "h")
        served.process.send_signal(signal.SIGINT)
        status, printed = served.ended()
    assert status == 0
    assert f'"hit": {list(typed.values()).count("hit")}' in printed
    assert in_file(out) == typed
    assert {entry.by for entry in labels_from_csv(out.read_text(), where="")} == {"me"}
    assert list(tmp_path.iterdir()) == [out]

    run = open_run(filtered / "run.zarr")
    for_training = read_labels(out, run=run)
    assert {event: Label(int(for_training[event])).name.lower() for event in typed} == typed
    draw = audit_draw(filtered / "hits.zarr", nonce="1 2 3 4 5 6", promise=_promise(), kept=20)
    given = audit_label(draw, run, scorer=PeakScorer(), given=out, pool=SerialPool())
    by_me = {e.source_index: e.label.name.lower() for e in given if e.by == "me"}
    assert by_me
    assert by_me.items() <= typed.items()


def _promise() -> Any:
    from sfxreduce.decisions.threshold import Promise

    return Promise(max_loss=0.2, confidence=0.9)


def test_a_page_says_why_and_lets_marks_be_hidden(
    filtered: Path, tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    words = ["review", "--in", "hits.zarr", "--against", "run.zarr", "--out", tmp_path / "l.csv"]
    with serving(*words, folder=filtered) as served:
        page = open_page(served.address, width=390)
        page.locator("text=Its score, ").wait_for()
        ready(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        visible = (
            "Bokeh.documents[0]._all_models.values().filter(m => m.type == 'GlyphRenderer')"
            ".map(m => m.visible)"
        )
        before = page.evaluate(f"[...{visible}]")
        page.keyboard.press("p")
        page.keyboard.press("r")
        after = page.evaluate(f"[...{visible}]")
        assert before.count(False) == 0
        assert after.count(False) == 3
    assert not (tmp_path / "l.csv").exists()


def test_any_run_is_shown_from_the_event_that_is_asked_for(
    filtered: Path, open_page: Callable[..., Any]
) -> None:
    with serving("view", "run.zarr", "--event", "17", folder=filtered) as served:
        page = open_page(served.address)
        page.locator("h2:text-is('event 17')").wait_for()
        ready(page)
        page.keyboard.press("h")  # there are no labels to give
        page.keyboard.press("ArrowRight")
        page.locator("h2:text-is('event 18')").wait_for()
        assert page.locator("text=event-18").count() == 1
    assert not list(filtered.glob("*.csv"))
