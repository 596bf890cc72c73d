"""The page stands alone: it fetches nothing, describes its pictures, and leads nowhere else."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from planted import Calibrated, crystals_run

from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.report.report import DISAGREEING, Report, choose_events
from sfxreduce.run.reasons import Reason

HITS, LOST = range(0, 60, 6), (7, 50)


class Elements(HTMLParser):
    """Every start tag with its attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, str]:
    folder = tmp_path_factory.mktemp("page")
    outputs = Outputs(
        store=folder / "hits.zarr", report=folder / "page.html", command="sfxreduce filter <here>"
    )
    report = filter_run(
        crystals_run(hits=HITS, lost=LOST),
        settings=FilterSettings(scorer=Calibrated(), threshold=0.5),
        outputs=outputs,
        pool=SerialPool(),
    )
    return report, (folder / "page.html").read_text()


def test_a_page_fetches_nothing_and_describes_every_picture(made: tuple[Report, str]) -> None:
    _, text = made
    assert len(text) < 5e6
    elements = Elements(text).found
    names = Counter(attributes["id"] for _, attributes in elements if attributes.get("id"))
    assert max(names.values()) == 1
    pictures = 0
    for tag, attributes in elements:
        assert tag not in ("script", "link", "iframe")
        for key in ("href", "src", "xlink:href"):
            target = attributes.get(key) or "#"
            assert target.startswith("data:image/png;") or target[1:] in names or target == "#"
        if tag == "img" or attributes.get("role") == "img":
            pictures += 1
            assert attributes.get("alt") or attributes.get("aria-label")
    assert pictures > 20
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]+"', "", text)
    assert "sfxreduce filter &lt;here&gt;" in text


def test_the_first_thing_on_a_page_without_a_promise_is_why_and_what_next(
    made: tuple[Report, str],
) -> None:
    report, text = made
    first, second = text[text.index("<main>") :].split(">", 2)[1:]
    assert first.strip() == '<section class="banner" role="alert"'
    assert second.startswith("<b>No promise")
    assert report.next_command is not None
    assert report.next_command.startswith("sfxreduce audit draw --in ")


def test_agreement_counts_every_event_once_and_shows_examples(made: tuple[Report, str]) -> None:
    _, text = made
    table = re.search(r"<h2>Network and peak finder</h2>(.*?)</table>", text, re.DOTALL)
    assert table is not None
    counts = [int(n) for n in re.findall(r'<td class="number">(\d+)</td>', table[1])]
    # The scorer counts five peaks on each hit.
    assert counts == [0, len(HITS), 0, 120 - len(HITS)]
    assert set(re.findall(r'<figure id="differ1-(\d+)"', text)) <= set(map(str, HITS))
    assert len(re.findall(r'<figure id="differ\d', text)) == DISAGREEING


def test_what_is_shown_is_nearest_to_the_threshold_and_never_what_ended_a_worker() -> None:
    rng = np.random.default_rng(3)
    n = 200
    decisions = Decisions(
        decision=rng.integers(0, 3, n).astype(np.uint8),
        reason=np.zeros(n, np.uint32),
        score=rng.random(n).astype(np.float32),
        peaks=rng.integers(-1, 20, n).astype(np.int16),
    )
    deadly = np.flatnonzero(decisions.decision == Decision.UNDECIDED)[:30]
    decisions.reason[deadly] = Reason.WORKER_LOST
    choice = choose_events(decisions, threshold=0.5)
    rejected, undecided, hits = choice.galleries.values()
    worst = np.sort(decisions.score[decisions.decision == Decision.REJECT])
    assert np.array_equal(decisions.score[rejected], worst[::-1][: rejected.size])
    assert np.all(np.diff(decisions.score[hits]) >= 0)
    few, many = choice.disagreeing.values()
    assert few.size == many.size == DISAGREEING
    assert np.all((decisions.peaks[few] < 8) & (decisions.decision[few] == Decision.HIT))
    assert np.all((decisions.peaks[many] >= 8) & (decisions.score[many] < 0.5))
    shown = [*choice.galleries.values(), few, many, *choice.powders.values(), choice.packed]
    assert undecided.size
    assert not set(deadly) & set(np.concatenate(shown).tolist())


def test_an_output_that_is_larger_says_so(made: tuple[Report, str]) -> None:
    report, _ = made
    larger = replace(report, bytes_in=1_000, bytes_out=221_000, bytes_saved=-220_000)
    assert larger.saving == "nothing: 220 kB larger"
