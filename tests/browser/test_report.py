"""The report, opened from the disk with the network off, is whole and fits a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planted import Calibrated, crystals_run

from sfxreduce.cluster import SerialPool
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs

WIDER = """() => [...document.querySelectorAll("body *")]
  .filter(e => !e.closest("svg") || e.tagName == "svg")
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(e => e.tagName)"""

SECTIONS = """() => {
  for (const d of document.querySelectorAll("details")) d.open = true
  const titles = [...document.querySelectorAll("h2, h3, summary")]
  return titles.map(t => {
    let size = 0
    for (let e = t.nextElementSibling; e && !/^H[123]$/.test(e.tagName); e = e.nextElementSibling)
      size += e.getBoundingClientRect().height
    return [t.textContent.trim(), size]
  })
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    filter_run(
        crystals_run(hits=range(0, 60, 6), lost=(7, 50)),
        settings=FilterSettings(scorer=Calibrated(), threshold=0.5),
        outputs=Outputs(store=folder / "hits.zarr", report=folder / "report.html"),
        pool=SerialPool(),
    )
    return folder / "report.html"


@pytest.mark.parametrize("width", [390, 1280])
def test_no_section_is_empty_and_nothing_is_wider_than_the_screen(
    report: Path, width: int, open_page: Callable[..., Any]
) -> None:
    page = open_page(report.as_uri(), width=width, offline=True)
    sections = page.evaluate(SECTIONS)
    assert len(sections) >= 6
    assert [title for title, height in sections if height < 10] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(WIDER) == []
    pictures = page.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert pictures
    assert min(pictures) > 0
