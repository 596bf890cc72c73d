"""The page of a run shows numbers that move while it is filtered, and then what came of it."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import run as command
from served import serving

EVENTS = 256


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    done = command(
        "simulate", "--out", folder / "run.zarr", "--experiment", "photosystem-i-8kev",
        "--events", EVENTS, "--hit-rate", "0.25", "--seed", "3", "--frame-shape", "700x700",
        "--serial",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


def test_numbers_move_while_a_run_is_filtered_and_stay_after_it(
    simulated: Path, open_page: Callable[..., Any]
) -> None:
    words = ["filter", "--in", "run.zarr", "--out", "hits.zarr", "--workers", "1"]
    with serving(*words, "--linger", "300", "--json", folder=simulated) as served:
        page = open_page(served.address)
        scored = page.locator("#scored")
        scored.wait_for(timeout=60_000)
        seen = []
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            seen.append(int(scored.inner_text().partition("/")[0].replace(",", "")))
            if page.locator("b:text-is('done')").count():
                break
            time.sleep(0.2)
        assert seen == sorted(seen)
        assert len(set(seen) - {0, EVENTS}) >= 1, seen
        assert seen[-1] == EVENTS
        assert page.locator("text=Hits are provisional").count() == 0
        assert page.locator("text=passed").count() >= 1
        page.locator("img[alt^='frame of event']").nth(11).wait_for(timeout=30_000)
        heading = page.locator("#scored").locator("..").inner_text()
        assert re.search(r"\d+ hits \(\d+\.\d %\) · [\d,]+ undecided", heading)
        models = "[...Bokeh.documents[0]._all_models.values()]"
        filled = page.evaluate(
            f"{models}.filter(m => m.type == 'ColumnDataSource')"
            ".map(m => Math.max(...Object.values(m.data).map(column => column.length)))"
        )
        assert sorted(filled) == [1, 60, 60]
        page.set_viewport_size({"width": 390, "height": 800})
        page.wait_for_function("document.documentElement.scrollWidth <= 390", timeout=20_000)
        served.process.send_signal(signal.SIGINT)
        status, printed = served.ended()
    assert status == 0
    told = re.search(r'"hits": (\d+)', printed)
    assert told is not None
    assert f"{told[1]} hits" in heading
