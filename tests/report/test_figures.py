"""Charts show every number they are given, and numbers that people can read."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure

from sfxreduce.decisions.decide import Decision, Decisions, decide
from sfxreduce.report.figures import (
    COLOURS,
    chart,
    draw_calibration,
    draw_run,
    draw_scores,
    draw_windows,
    readable,
)
from sfxreduce.run.window import CENTRE, FULL
from sfxreduce.scorers.calibration.probability import ReliabilityBin
from sfxreduce.scorers.calibration.windows import WindowLoss

SVG = "{http://www.w3.org/2000/svg}"


def some_decisions(n_events: int = 120, *, scale: float = 1.0) -> Decisions:
    """Every sixth event a hit, every sixth without a score, the others blanks."""
    score = np.full(n_events, 1e-4 * scale, np.float32)
    score[::6], score[3::6] = 0.9 * scale, np.nan
    return decide(score, np.zeros(n_events, np.uint32), threshold=0.5 * scale)


def test_a_curve_has_three_bars_for_each_window_and_names_the_chosen_one() -> None:
    curve = [
        WindowLoss(tiles=tiles, mean_loss=lost, worst_loss=lost, least_specificity=0.9)
        for tiles, lost in ((CENTRE, 0.5), (FULL, 0.0))
    ]
    axes = Figure().add_subplot()
    draw_windows(axes, curve, chosen=FULL)
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]  # type: ignore[attr-defined]
    assert np.allclose(heights, [[0.5, 0.0], [0.0, 0.0], [0.1, 0.1]])
    assert [text.get_text() for text in axes.texts] == ["50%"]  # beyond the scale
    bold = [t.get_text() for t in axes.get_xticklabels() if t.get_fontweight() == "bold"]
    assert bold == ["full"]


def test_every_bin_is_a_point_with_its_interval() -> None:
    bins = [
        ReliabilityBin(low=0.0, high=0.1, n_events=300, n_hits=3, mean_probability=0.02),
        ReliabilityBin(low=0.9, high=1.0, n_events=7, n_hits=6, mean_probability=0.95),
    ]
    axes = Figure().add_subplot()
    draw_calibration(axes, bins)
    intervals, points = axes.collections
    at = np.asarray(points.get_offsets())
    assert np.allclose(at, [[0.02, 0.01], [0.95, 6 / 7]])
    many, few = points.get_sizes()  # type: ignore[attr-defined]
    assert few < many
    assert len(intervals.get_paths()) == len(bins)


def test_hits_and_undecided_events_add_up_along_the_run() -> None:
    decisions = some_decisions()
    axes = Figure().add_subplot()
    draw_run(axes, decisions)
    hits, undecided = axes.containers
    for bars, decision in ((hits, Decision.HIT), (undecided, Decision.UNDECIDED)):
        n = sum(bar.get_height() * bar.get_width() for bar in bars)  # type: ignore[attr-defined]
        assert round(n) == decisions.count(decision) == 20
    assert hits[0].get_facecolor() != undecided[0].get_facecolor()  # type: ignore[index]


@pytest.mark.parametrize("scale", [1.0, 40.0, 900.0])
def test_ticks_and_threshold_are_numbers_that_people_read(scale: float) -> None:
    decisions = some_decisions(scale=scale)
    text = chart(
        lambda axes: draw_scores(axes, decisions, threshold=4.96235e-05), name="s", alt="scores"
    )
    words = [element.text or "" for element in ET.fromstring(text).iter(f"{SVG}text")]
    assert "threshold 0.0000496" in words
    assert len(words) > 5
    assert not [word for word in words if re.search(r"\de[-+]?\d|\d{5}\.|\.\d{8}", word)]


def test_charts_on_one_page_share_no_identifier_and_fetch_nothing() -> None:
    decisions = some_decisions()
    texts = [chart(lambda axes: draw_run(axes, decisions), name=n, alt=n) for n in ("a", "b")]
    names = [set(re.findall(r'\bid="([^"]+)"', text)) for text in texts]
    assert all(names)
    assert not names[0] & names[1]
    for text, own in zip(texts, names, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= own
        assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]+"', "", text)
        assert ET.fromstring(text).get("role") == "img"
    assert COLOURS[Decision.UNDECIDED] in texts[0]


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (-0.25, "-0.25"), (1234.5, "1,230"), (1e-7, "0.0000001"), (np.nan, "nan")],
)
def test_numbers_are_written_out(value: float, words: str) -> None:
    assert readable(value) == words
