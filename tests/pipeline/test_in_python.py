"""A run in a notebook: a filter by two words, single events, pictures, tables."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import ArrayFrames, planted_run

import sfxreduce as sx
from sfxreduce.cluster import SerialPool
from sfxreduce.report.report import Report, counted
from sfxreduce.run.run import Run


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Report, Path]:
    folder = tmp_path_factory.mktemp("notebook")
    made = sx.simulate_run(
        "photosystem-i-8kev", n_events=12, hit_rate=0.5, frame_shape=(700, 700), seed=2
    )
    sx.ingest_run(made, out=folder / "run.zarr")
    run = sx.open_run(str(folder / "run.zarr"))
    return run, sx.filter_run(run, str(folder / "hits.zarr")), folder


def test_two_words_filter_as_the_settings_of_the_command_do(
    filtered: tuple[Run, Report, Path],
) -> None:
    run, report, folder = filtered
    spelled_out = sx.filter_run(
        run,
        sx.Outputs(store=folder / "spelled_out.zarr"),
        sx.FilterSettings(scorer=sx.CnnScorer(sx.default_model(), device="cpu")),
        pool=SerialPool(),
    )
    assert report.scorer == "cnn"
    same = ("events", "hits", "undecided", "rejected", "threshold", "model_sha256", "bytes_out")
    assert [getattr(report, n) for n in same] == [getattr(spelled_out, n) for n in same]
    kept = [f for f in (folder / "hits.zarr" / "frames").rglob("*") if f.is_file()]
    assert len(kept) > 1
    for file in kept:
        twin = folder / "spelled_out.zarr" / file.relative_to(folder / "hits.zarr")
        assert file.read_bytes() == twin.read_bytes()


def test_the_network_runs_on_what_the_pool_has() -> None:
    class WithGpu(SerialPool):
        has_gpu = True

    assert sx.network_on(SerialPool()).device == "cpu"
    assert sx.network_on(WithGpu()).device == "cuda"
    assert sx.network_on(WithGpu(), device="cpu").device == "cpu"


def test_an_event_is_its_frame_and_its_columns(filtered: tuple[Run, Report, Path]) -> None:
    run, _, _ = filtered
    assert len(run) == run.n_events == 12
    event = run[3]
    assert np.array_equal(event.frame, run.frames[3].compute())
    assert set(map(str, event)) == {*map(str, run.columns), "frame"}
    assert float(event.photon_energy_ev) == run.columns.photon_energy_ev.values[3]
    assert run[-1].equals(run[11])
    assert run.sel(event_id=str(event.event_id.values)).equals(event)
    with pytest.raises(IndexError, match="out of range"):
        run[12]
    with pytest.raises(sx.SfxReduceError, match=r"expected one event called 'x', found 0"):
        run.sel(event_id="x")


def test_an_event_that_cannot_be_read_says_so() -> None:
    run = planted_run()
    assert isinstance(run.source, ArrayFrames)
    broken = replace(run, source=replace(run.source, reasons={3: int(sx.Reason.READ_ERROR)}))
    with pytest.raises(sx.SfxReduceError, match="event 3 cannot be read"):
        broken[3]
    assert broken[2].frame.shape == run.detector.frame_shape


def test_a_ledger_has_one_row_an_event_of_the_source(filtered: tuple[Run, Report, Path]) -> None:
    run, report, folder = filtered
    hits = sx.open_run(folder / "hits.zarr")
    table = hits.ledger.to_pandas()
    assert len(table) == len(run)
    assert table.source_index.tolist() == list(range(12))
    assert int((table.decision == sx.Decision.HIT).sum()) == report.hits > 0
    with pytest.raises(sx.SfxReduceError, match="found a run without a ledger"):
        run.ledger.to_pandas()
    with pytest.raises(sx.SfxReduceError, match="found a run without a ledger"):
        planted_run().ledger.to_pandas()


def test_pictures_know_no_pyplot(
    filtered: tuple[Run, Report, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    run, _, _ = filtered
    figure = run.show(3)
    assert "matplotlib.pyplot" not in sys.modules
    picture = figure.axes[0].get_images()[0].get_array()
    assert picture is not None
    assert picture.shape == (700, 700)
    assert "event 3 of 12" in figure.axes[0].get_title()


def test_results_show_themselves_and_no_markup_of_others(
    filtered: tuple[Run, Report, Path],
) -> None:
    run, report, _ = filtered
    decisions = sx.plan_filter(run).decisions
    shown = [each._repr_html_() for each in (run, report, decisions)]
    assert report.assurance["sentence"].replace("'", "&#x27;") in shown[1]
    assert f"Decisions on {counted(12, 'event')}" in shown[2]
    assert "promise nothing" in shown[2]
    evil = replace(report, out="<script>x</script>")._repr_html_()
    assert "<script>" not in evil
    assert "&lt;script&gt;" in evil
    named = replace(run, experiment="<b>")._repr_html_()
    assert "<td><b>" not in named
    assert "&lt;b&gt;" in named
