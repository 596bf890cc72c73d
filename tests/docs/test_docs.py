"""What the documentation shows is what happens: its commands and examples are run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from archived import Call
from walks import beam, manager, student

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = [page for page in PAGES if page.read_text().startswith("---\nfile_format: mystnb")]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def run_shell(lines: str, folder: Path) -> str:
    """Run commands as a reader's shell would, in the environment of the tests; what they print."""
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": scripts + os.pathsep + os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "-euc", lines],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Line by line, and with what each of them says, they are run by the walks.
WALKED = {ROOT / "docs" / p for p in (student.PAGE, beam.PAGE, beam.TRUST_PAGE, manager.PAGE)}
TYPED = [page for page in PAGES if blocks(page, "sh") and page not in WALKED]


@pytest.mark.parametrize("page", TYPED, ids=lambda p: p.stem)
def test_commands_and_examples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    run_shell("\n".join(blocks(page, "sh")), tmp_path)
    for example in blocks(page, "python"):
        run_shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(example)}", tmp_path)


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_of_a_notebook_run_as_they_are_written(page: Path, tmp_path: Path) -> None:
    cells = blocks(page, r"\{code-cell\}")
    assert len(cells) > 5
    told = run_shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(''.join(cells))}", tmp_path)
    assert "0 differ" in told or "With 90 % confidence at most" in told


def test_label_train_and_evaluate_work_on_the_run_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    """As typed there; at its hit rate they once refused it."""
    monkeypatch.setattr("sfxreduce.train.patches.adapt._REHEARSED", 2)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    found = {}
    for command in ("simulate", "label", "train --from default", "evaluate"):
        [line] = re.findall(rf"^sfxreduce ({command} .*)$", text, re.MULTILINE)
        status, found[command], errors = call(*line.split(), "--serial")
        assert status == 0, errors
    labels = found["label"]
    assert (labels["events"], labels["source"]) == (100, "peaks")
    assert labels["hits"] >= 12
    assert labels["misses"] >= 12
    assert found["evaluate"]["labelled"] == labels["hits"] + labels["misses"]
    assert found["evaluate"]["fn"] == 0
    trained = found["train --from default"]
    assert trained["events_labelled"] >= 24
    assert trained["after"]["lost"] == 0


def test_commands_on_the_independent_data_keep_what_they_should(
    shared_data: Path, tmp_path: Path
) -> None:
    import xarray as xr

    commands = "\n".join(blocks(ROOT / "README.md", "shared"))
    run_shell(commands.replace("../shared/data", str(shared_data)), tmp_path)
    with xr.open_zarr(tmp_path / "grid_hits.zarr", group="ledger", consolidated=False) as ledger:
        assert ledger.decision.values.tolist() == [2] * 8 + [0, 0]
    with (
        xr.open_zarr(tmp_path / "dev_hits.zarr", consolidated=False) as hits,
        xr.open_zarr(tmp_path / "dev_hits.zarr", group="truth", consolidated=False) as truth,
    ):
        import h5py

        with h5py.File(shared_data / "independent_sim" / "dev.cxi") as file:
            n_peaks = file["truth/n_peaks_snr5"][:]
        kept = hits.source_index.values
        assert set((n_peaks >= 10).nonzero()[0]) <= set(kept)
        assert "blank" not in truth.kind.values
    with (
        xr.open_zarr(tmp_path / "dev_cnn.zarr", consolidated=False) as hits,
        xr.open_zarr(tmp_path / "dev_cnn.zarr", group="truth", consolidated=False) as truth,
    ):
        assert set((n_peaks >= 10).nonzero()[0]) <= set(hits.source_index.values)
        assert np.count_nonzero(truth.kind.values == "blank") <= 1


def test_every_link_of_the_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if not target.startswith(("http", "mailto")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_picture_is_described_and_small() -> None:
    shown = set()
    for page in PAGES:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text()):
            picture = (page.parent / target).resolve()
            shown.add(picture)
            assert len(words) > 8, (page.name, target)
            assert picture.stat().st_size < 200_000, target
            if picture.suffix == ".svg":
                text = re.sub(r"xmlns(:\w+)?=\S+", "", picture.read_text())
                assert not re.search(r"https?://", text), target  # it loads nothing
    assert shown >= set((ROOT / "docs" / "images").iterdir())


def test_the_example_of_a_beamtime_goes_all_the_way(tmp_path: Path) -> None:
    example = ROOT / "examples" / "archive_beamtime.py"
    told = run_shell(f"{shlex.quote(sys.executable)} {shlex.quote(str(example))}", tmp_path)
    assert '{"RELEASE_TICKETED": 5}' in told
    assert '{"RELEASED": 5}' in told
    assert told.count("same=True") == 5
    assert "CERTIFIED" in told
