"""Pictures of a model show every number they are given."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from sfxreduce.report.figures import curve_svg, reliability_svg
from sfxreduce.run.window import CENTRE, FULL
from sfxreduce.scorers.calibration.probability import ReliabilityBin
from sfxreduce.scorers.calibration.windows import WindowLoss

SVG = "{http://www.w3.org/2000/svg}"


def test_a_curve_has_three_bars_for_each_window_and_names_the_chosen_one() -> None:
    curve = [
        WindowLoss(tiles=tiles, mean_loss=lost, worst_loss=lost, least_specificity=0.9)
        for tiles, lost in ((CENTRE, 0.5), (FULL, 0.0))
    ]
    page = ET.fromstring(curve_svg(curve, chosen=FULL))
    bars = [bar.findtext(f"{SVG}title") for bar in page.iter(f"{SVG}rect")]
    assert [bar for bar in bars if bar] == ["50.00%", "0.00%", "10.00%", "0.00%", "0.00%", "10.00%"]
    bold = [text.text for text in page.iter(f"{SVG}text") if text.get("font-weight")]
    assert bold == ["full"]
    assert not list(ET.fromstring(curve_svg([], chosen=None)))


def test_every_bin_is_a_point_with_its_interval() -> None:
    bins = [
        ReliabilityBin(low=0.0, high=0.1, n_events=300, n_hits=3, mean_probability=0.02),
        ReliabilityBin(low=0.9, high=1.0, n_events=7, n_hits=6, mean_probability=0.95),
    ]
    page = ET.fromstring(reliability_svg(bins))
    points = list(page.iter(f"{SVG}circle"))
    assert [p.findtext(f"{SVG}title") for p in points] == ["3 of 300 events", "6 of 7 events"]
    few, many = (float(p.get("r", 0)) for p in reversed(points))
    assert few < many
