"""Many runs: a failed one stops no other, what is done is not done again."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import BrightestPixel, planted_run

from sfxreduce.errors import ClusterError, OutputExists, RunNotFound, SchemaError, UsageError
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.many import filter_runs, outputs_of_runs
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.report.report import Report

SETTINGS = FilterSettings(scorer=BrightestPixel(), threshold=500.0)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Folder of runs 9, 10 and 11."""
    (tmp_path / "runs").mkdir()
    for number in (9, 10, 11):
        ingest_run(planted_run(n_events=20), out=tmp_path / "runs" / f"r{number}.zarr")
    return tmp_path / "runs"


def filtered(run: Path, out: Path) -> Report:
    return filter_run(open_run(run), out, SETTINGS)


def test_runs_are_taken_in_natural_order_and_each_is_one(runs: Path, tmp_path: Path) -> None:
    outputs = outputs_of_runs(runs / "*.zarr", tmp_path / "out")
    assert [(run.name, out.name) for run, out in outputs.items()] == [
        (f"r{n}.zarr", f"r{n}.zarr") for n in (9, 10, 11)
    ]
    names = tmp_path / "some.txt"
    names.write_text(f"{runs / 'r11.zarr'}\n{runs / 'r9.zarr'}\n")
    listed = outputs_of_runs(Path(f"@{names}"), tmp_path / "out")
    assert [run.name for run in listed] == ["r11.zarr", "r9.zarr"]


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder / "run.zarr").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"a/run.zarr and .*b/run.zarr would both become"):
        outputs_of_runs(tmp_path / "*" / "run.zarr", tmp_path / "out")
    with pytest.raises(RunNotFound, match="no file has such a name"):
        outputs_of_runs(tmp_path / "none" / "*.zarr", tmp_path / "out")


def test_a_failed_run_stops_no_other_and_what_is_done_is_left_alone(
    runs: Path, tmp_path: Path
) -> None:
    (runs / "r10.zarr" / "frames" / "zarr.json").write_text("{}")
    outputs = outputs_of_runs(runs / "*.zarr", tmp_path / "out")
    first = filter_runs(outputs, filtered)
    assert [one.word for one in first.runs] == ["ok", "failed", "ok"]
    assert isinstance(first.runs[1].error, SchemaError)
    told = first.to_json()
    assert (told["ok"], told["failed"], told["skipped"]) == (2, 1, 0)
    assert told["runs"][1]["exit_status"] == 1
    assert "r10.zarr" in told["runs"][1]["error"]
    assert told["runs"][0]["report"]["events"] == 20

    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    again = filter_runs(outputs, filtered)
    assert [one.word for one in again.runs] == ["skipped", "failed", "skipped"]
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before


def test_an_output_of_another_run_is_not_taken_for_done(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    filtered(runs / "r11.zarr", tmp_path / "out" / "r9.zarr")
    (tmp_path / "out" / "r10.zarr").mkdir()
    outputs = outputs_of_runs(runs / "*.zarr", tmp_path / "out")
    done = filter_runs(outputs, filtered).runs
    assert [one.word for one in done] == ["failed", "failed", "ok"]
    assert "--overwrite" in str(done[0].error)


def test_a_failing_cluster_ends_it_all(runs: Path, tmp_path: Path) -> None:
    def fail(_: Path, __: Path) -> Report:
        raise ClusterError("no workers")

    with pytest.raises(ClusterError):
        filter_runs(outputs_of_runs(runs / "*.zarr", tmp_path), fail)


def test_overwrite_replaces_outputs_and_no_runs(runs: Path, tmp_path: Path) -> None:
    """A run that was ingested beside the file it came from may be the last copy."""
    source, other = runs / "r9.zarr", runs / "r10.zarr"
    before = {file: file.read_bytes() for file in other.rglob("*") if file.is_file()}
    outputs = Outputs(store=other, overwrite=True)
    with pytest.raises(OutputExists, match="has no ledger"):
        filter_run(open_run(source), outputs, SETTINGS)
    assert {file: file.read_bytes() for file in other.rglob("*") if file.is_file()} == before
    again = Outputs(store=tmp_path / "hits.zarr", overwrite=True)
    for _ in range(2):
        filter_run(open_run(source), again, SETTINGS)
