"""What is promised for a run is the same wherever it is read: terminal, JSON, page and manifest."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from planted import ArrayFrames
from scipy.special import expit, logit

from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.assurance import CHECKS
from sfxreduce.decisions.threshold import at_most
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.reduced import read_reduced
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Run
from sfxreduce.scorers.calibration.record import LevelRule
from sfxreduce.scorers.cnn.folder import default_model, read_model, write_model
from sfxreduce.scorers.cnn.scorer import CnnScorer

SERIAL = SerialPool()
N_EVENTS = 60
HITS = range(0, N_EVENTS, 4)
LOST = (5, 30)
GAIN = 10.0


def crystal(rng: np.random.Generator, *, n_peaks: int, photons: float) -> np.ndarray:
    """Photons of peaks of a width of one pixel, in a picture of one tile."""
    y, x = np.mgrid[:350, :350]
    frame = np.zeros((350, 350))
    for row, column in rng.uniform(20, 330, (n_peaks, 2)):
        near = np.s_[int(row) - 6 : int(row) + 7, int(column) - 6 : int(column) + 7]
        away = (y[near] - row) ** 2 + (x[near] - column) ** 2
        frame[near] += photons * np.exp(-away / 2) / (2 * np.pi)
    return rng.poisson(frame)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one tile a picture, and models that promise something for it or do not.

    ``good`` was calibrated on what this run's events score; ``narrow`` under other conditions, and
    to ``strict`` some crystals look like blanks.
    """
    path = tmp_path_factory.mktemp("promise")
    rng = np.random.default_rng(11)
    photons = rng.poisson(4.0, (N_EVENTS, 350, 350))
    for event in HITS:
        photons[event] += crystal(rng, n_peaks=40, photons=150)
    for event in LOST:
        photons[event] += crystal(rng, n_peaks=10, photons=150)
    detector = Detector.centred("camera", (350, 350), pixel_size_m=75e-6, distance_m=0.15)
    source = ArrayFrames(
        frames=(photons * GAIN).astype(np.int16), detector=replace(detector, adu_per_photon=GAIN)
    )
    columns = event_columns(N_EVENTS, photon_energy_ev=np.full(N_EVENTS, 9000.0))
    ingest_run(Run(source=source, columns=columns), out=path / "run.zarr", pool=SERIAL)
    write_models(path)
    return path


def write_models(path: Path) -> None:
    start = read_model(default_model()).without_usual()
    kept = {name: w for name, w in start.weights.items() if ".of_" not in name}
    # So many peaks of a tile count that weak crystals lie far below the highest score.
    pooling = replace(start.config.pooling, most_per_tile=20.0)
    config = replace(start.config, level=LevelRule(), pooling=pooling)
    start = replace(start, config=config, weights=kept)
    write_model(path / "start", start)
    chosen = FilterSettings(scorer=CnnScorer(path / "start"), drift=False, keep_from_peaks=0)
    scores = plan_filter(open_run(path / "run.zarr"), chosen, pool=SERIAL).decisions.score
    odds = logit(scores.astype(np.float64))
    blank = np.delete(odds, [*HITS, *LOST])
    sure, weak = odds[list(HITS)].min(), odds[list(LOST)]
    assert blank.max() + 1 < weak.min() <= weak.max() < sure
    edges = {
        "good": (blank.max() + weak.min()) / 2,
        "strict": weak.max() + min(0.3, (sure - weak.max()) / 2),
    }
    for name in ("good", "narrow", "strict"):
        edge = edges.get(name, edges["good"])
        own = {
            "hit_scores": expit(np.linspace(edge, odds.max(), 400)),
            "hit_groups": np.zeros(400, np.int32),
            # Of which so many reach the threshold that no gap may lower it.
            "blank_scores": expit(np.append(np.tile(blank, 9), np.full(40, edge + 0.1))),
            "usual_shape": np.ones(1),
            "envelope": np.tile([-1e9, 1e9 if name != "narrow" else -1e8], (5, 1)),
            "peaks": np.array([[0.1, 10.0], [1.0, 500.0]]),
        }
        arrays = {
            f"calibration.{key}": np.asarray(value, np.float32 if key != "hit_groups" else np.int32)
            for key, value in own.items()
        }
        write_model(path / name, replace(start, weights={**start.weights, **arrays}))


@pytest.fixture(scope="module")
def earlier(folder: Path) -> Iterator[dict[str, Path]]:
    """An output by each model, for another promise."""
    outputs = {}
    for name in ("good", "narrow"):
        outputs[name] = folder / f"{name}.zarr"
        told(
            "filter", "--in", folder / "run.zarr", "--out", outputs[name], "--model", folder / name,
            "--max-loss", 0.02,
        )  # fmt: skip
    return outputs  # type: ignore[return-value]


def told(*arguments: object) -> str:
    done = run(*arguments, "--serial")
    assert done.exit_code == 0, done.output
    return done.stdout


def command(by: str, case: str, folder: Path, earlier: dict[str, Path]) -> list[object]:
    name = "narrow" if case == "alarm" else "good"
    given: list[object] = ["--threshold", 0.5] if case == "given" else []
    source = folder / "run.zarr"
    if by == "redecide":
        again = [] if given else ["--max-loss", 0.015]
        return [
            "redecide", "--in", earlier[name], "--against", source, "--model", folder / name,
            *given, *again,
        ]  # fmt: skip
    if by == "peaks":
        return ["filter", "--in", source, "--scorer", "peaks", *(given and ["--threshold", 9])]
    return ["filter", "--in", source, "--model", folder / name, *given]


def same_figures(facts: dict[str, Any], page: str, terminal: str) -> None:
    """Assert that all three give the same counts, saving, promise and next step."""
    words = html.unescape(
        re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page[page.index("<main>") :]))
    )
    title = f"Kept {facts['kept']:,} of {facts['events']:,} events: "
    assert title in words
    assert title in terminal
    for key, name in (("hits", "hits"), ("undecided", "undecided, kept"), ("rejected", "rejected")):
        assert re.search(rf"^ *{name} +{facts[key]:,}(,|$)", terminal, re.MULTILINE), name
        shown = "hits, kept" if key == "hits" else name
        assert re.search(rf"(^| ){facts[key]:,} ?{shown}", words), name
    saved = re.search(r"^ *saved +(\S+ \S+),", terminal, re.MULTILINE)
    assert saved is not None
    assert f"{saved[1]} saved" in words
    banner = re.search(r"<main>\s*<section class=\"banner\".*?</section>", page, re.DOTALL)
    assert (banner is None) == (facts["next_command"] is None) == facts["certified"]
    if banner is not None:
        checks = facts["assurance"]["checks"].items()
        alarms = [n.replace("_", " ") for n, one in checks if one["ran"] and not one["passed"]]
        title = "No promise" + (f"; alarm: {', '.join(alarms)}" if alarms else "")
        assert terminal.startswith(f"{title.upper()}\n")
        assert f"<b>{title}</b>" in banner[0]
        told_first = terminal[: terminal.index("Kept ")]
        for reason in facts["assurance"]["reasons"]:
            assert reason in html.unescape(banner[0])
            assert reason in told_first
        assert f"<code>{html.escape(facts['next_command'], quote=False)}</code>" in banner[
            0
        ].replace("&#34;", '"')
        assert re.search(r"^ *next +(.*)$", told_first, re.MULTILINE)[1] == facts["next_command"]  # type: ignore[index]


def row_of(page: str, name: str) -> str:
    found = re.search(f"<tr><td>{name}</td><td>(.*?)</td></tr>", page, re.DOTALL)
    assert found is not None
    return html.unescape(found[1])


@pytest.mark.parametrize("case", ["promised", "alarm", "given"])
@pytest.mark.parametrize("by", ["cnn", "peaks", "redecide"])
def test_terminal_json_page_and_manifest_tell_the_same(
    by: str,
    case: str,
    folder: Path,
    earlier: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = command(by, case, folder, earlier)
    page = tmp_path / "page.html"
    told_json = json.loads(
        told(*arguments, "--out", tmp_path / "a.zarr", "--report", page, "--json")
    )
    terminal = told(*arguments, "--out", tmp_path / "b.zarr", "--report", tmp_path / "b.html")
    planned = told(*arguments, "--out", tmp_path / "c.zarr", "--dry-run")
    assurance: dict[str, Any] = told_json["assurance"]
    promised = case == "promised" and by != "peaks"
    assert assurance["state"] == ("promised" if promised else "withheld"), assurance
    assert told_json["certified"] == promised
    assert "loss_upper95" not in told_json
    assert list(assurance["checks"]) == list(CHECKS)
    assert bool(assurance["reasons"]) != promised
    assert (assurance["loss_upper"] is not None) == promised
    assert read_reduced(tmp_path / "a.zarr", pool=SERIAL).manifest.assurance == assurance
    assert read_reduced(tmp_path / "b.zarr", pool=SERIAL).manifest.assurance == assurance
    sentence = assurance["sentence"]
    text = page.read_text()
    same_figures(told_json, text, terminal.replace("b.zarr", "a.zarr"))
    if not promised:
        monkeypatch.chdir(tmp_path)
        done = run(*shlex.split(told_json["next_command"])[1:])
        assert done.exit_code == 0, done.output
    assert re.search(r"^ *promise +(.*)$", terminal, re.MULTILINE)[1] == sentence  # type: ignore[index]
    assert re.search(r"^ *assurance +(.*)$", planned, re.MULTILINE)[1] == sentence  # type: ignore[index]
    assert row_of(text, "Promise").startswith(f"{sentence}.")
    n_passed = sum(check["passed"] for check in assurance["checks"].values())
    assert row_of(text, "Checks").startswith(f"{n_passed} of {len(CHECKS)} checks passed")
    if promised:
        assert f"At most {at_most(assurance['loss_upper'])} of the hits" in sentence
        assert assurance["loss_upper"] <= told_json["max_loss"] == assurance["max_loss"]
        assert n_passed == len(CHECKS)
    else:
        assert all(reason in sentence for reason in assurance["reasons"])
        assert "At most" not in terminal + row_of(text, "Promise")
    if case == "given":
        assert any("--threshold" in reason for reason in assurance["reasons"])
    if case == "alarm" and by != "peaks":
        assert any("calibrated from" in reason for reason in assurance["reasons"])


@pytest.mark.parametrize("case", ["promised", "alarm", "given"])
def test_an_evaluation_tells_what_filter_promises(
    case: str, folder: Path, earlier: dict[str, Path], tmp_path: Path
) -> None:
    filtered = command("cnn", case, folder, earlier)
    expected = json.loads(told(*filtered, "--out", tmp_path / "a.zarr", "--json"))
    arguments = ["evaluate", *filtered[1:]]
    found = json.loads(told(*arguments, "--json"))
    assert found["assurance"] == expected["assurance"] == found["runs"][0]["assurance"]
    assert found["certified"] == expected["certified"] == (case == "promised")
    assert expected["assurance"]["sentence"] in told(*arguments).splitlines()
    again = [*arguments, "--in", folder / "run.zarr"]
    both = json.loads(told(*again, "--json"))
    assert both["assurance"] is None
    assert [each["assurance"] for each in both["runs"]] == [expected["assurance"]] * 2


@pytest.mark.parametrize(("fewest", "kept"), [(8, True), (0, False)])
def test_what_a_peak_finder_would_keep_is_not_lost(
    fewest: int, kept: bool, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hits.zarr"
    facts = json.loads(
        told(
            "filter", "--in", folder / "run.zarr", "--model", folder / "strict", "--out", out,
            "--keep-from-peaks", fewest, "--max-loss", 0.3, "--json",
        )
    )  # fmt: skip
    assert facts["hits"] == len(HITS)
    reasons = facts["assurance"]["reasons"]
    assert len(reasons) == (0 if kept else 1), reasons
    assert facts["kept_for_peaks"] == (len(LOST) if kept else 0)
    assert (facts["assurance"]["state"] == "promised") == kept
    assert facts["undecided"] == (len(LOST) if kept else 0)
    assert facts["rejected"] == N_EVENTS - facts["kept"]
    source = open_run(out).columns["source_index"].values
    assert set(LOST) <= set(source) or not kept
    if not kept:
        assert "--keep-from-peaks 0" in reasons[0]


def test_an_output_of_the_same_choices_is_the_same_to_the_byte(
    folder: Path, tmp_path: Path
) -> None:
    base = ["filter", "--in", folder / "run.zarr", "--model", folder / "strict", "--out"]
    told(*base, tmp_path / "zero.zarr", "--keep-from-peaks", 0)
    told(*base, tmp_path / "eight.zarr")
    told(
        "redecide", "--in", tmp_path / "zero.zarr", "--against", folder / "run.zarr", "--model",
        folder / "strict", "--out", tmp_path / "again.zarr",
    )  # fmt: skip
    one, other = (
        {p.relative_to(top): p.read_bytes() for p in top.rglob("*") if p.is_file()}
        for top in (tmp_path / "eight.zarr", tmp_path / "again.zarr")
    )
    assert one == other
