"""Labels from four sources, as a file and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted import planted_run
from typer.testing import CliRunner

from sfxreduce.cluster import SerialPool
from sfxreduce.cluster.pool import silent
from sfxreduce.errors import LabelError, OutputExists, UsageError
from sfxreduce.io.label_table import read_labels, write_labels
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.crystfel_stream import Mention, read_stream
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.run.columns import event_columns
from sfxreduce.run.labels import Label
from sfxreduce.run.run import Run
from sfxreduce.train.label_files import FileLabelling, StreamLabelling
from sfxreduce_cli.main import app

CRYSTAL = "--- Begin crystal\nCell parameters 1 2 3 nm\n--- End crystal\n"


def named_run(
    names: list[str] | None = None, *, files: list[str] | None = None, n_events: int = 5
) -> Run:
    run = planted_run(n_events=n_events)
    columns = event_columns(
        n_events,
        event_id=names or [f"e{i}" for i in range(n_events)],
        source_file=files or ["/data/raw.cxi"] * n_events,
        source_event=np.arange(n_events) if files is None else np.zeros(n_events, np.int64),
    )
    return replace(run, columns=columns)


def chunk(file: str, event: int | str, *, hit: int = 1, crystals: int = 0) -> str:
    return (
        f"----- Begin chunk -----\nImage filename: {file}\nEvent: //{event}\n"
        f"hit = {hit}\n\x00odd \xff line\n{CRYSTAL * crystals}----- End chunk -----\n"
    )


def stream_of(folder: Path, *chunks: str) -> Path:
    path = folder / "indexed.stream"
    path.write_text("CrystFEL stream format 2.3\n" + "".join(chunks), encoding="latin-1")
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8")), st.sampled_from([0, 1, 2])),
        min_size=1,
        max_size=6,
    )
)
def test_any_labels_survive_a_round_trip(tmp_path: Path, rows: list[tuple[str, int]]) -> None:
    run = named_run([name for name, _ in rows], n_events=len(rows))
    label = np.array([value for _, value in rows], np.int8)
    path = tmp_path / "labels.csv"
    write_labels(path, label, run=run, source="peaks", overwrite=True)
    assert read_labels(path, run=run).tolist() == label.tolist()


def test_a_file_that_exists_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("mine")
    with pytest.raises(OutputExists, match="already exists"):
        write_labels(path, np.zeros(5, np.int8), run=named_run(), source="csv")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("event,label\n1,hit\n1,miss\n", "line 3: event 1 is called miss, but above hit"),
        ("event,label\n5,hit\n", "line 2: expected an event from 0 to 4"),
        ("event_id,label\nnobody,hit\n", "line 2: .* no event with the event_id 'nobody'"),
        ("event,label\n1,perhaps\n", "line 2: expected hit, miss or maybe, found 'perhaps'"),
        ("event,event_id,label\n1,e2,hit\n", "line 2: event 1 .* another run"),
        ("number,label\n1,hit\n", "expected the columns label and event, source_index or event_id"),
    ],
)
def test_a_row_that_makes_no_sense_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "human.csv"
    path.write_text(text)
    with pytest.raises(LabelError, match=message):
        read_labels(path, run=named_run())


def test_words_in_any_case_and_equal_duplicates_are_read(tmp_path: Path) -> None:
    path = tmp_path / "human.csv"
    path.write_text("event_id,label\ne1,HIT\ne1,hit\ne2,Miss\n")
    assert read_labels(path, run=named_run()).tolist() == [1, 2, 0, 1, 1]


def test_nothing_is_a_miss_unless_asked_for(tmp_path: Path) -> None:
    path = stream_of(
        tmp_path,
        chunk("/data/raw.cxi", 0, crystals=2),
        chunk("/data/raw.cxi", 1),
        chunk("/data/raw.cxi", 2, hit=0),
        chunk("/data/raw.cxi", "nowhere", crystals=1),
        chunk("/data/raw.cxi", 3, hit=0).replace("----- End chunk -----\n", ""),
    )
    assert read_stream(path, run=named_run()).tolist() == [
        Mention.INDEXED,
        Mention.UNCLEAR,
        Mention.NO_HIT,
        Mention.UNCLEAR,
        Mention.ABSENT,
    ]
    for asked, expected in ((False, [2, 1, 1, 1, 1]), (True, [2, 1, 0, 1, 0])):
        rule = StreamLabelling(path=path, unindexed_is_miss=asked)
        found = rule(named_run(), pool=SerialPool(), progress=silent)
        assert found.label.tolist() == expected


def test_a_stream_of_another_run_shows_both_names(tmp_path: Path) -> None:
    path = stream_of(tmp_path, chunk("/data/other.cxi", 0, crystals=1))
    with pytest.raises(LabelError, match=r"raw\.cxi.*other\.cxi"):
        read_stream(path, run=named_run())


def test_files_of_one_name_in_two_folders_are_not_guessed(tmp_path: Path) -> None:
    path = stream_of(tmp_path, chunk("/a/raw.cxi", 0), chunk("/b/raw.cxi", 1))
    with pytest.raises(LabelError, match="may mean more than one event"):
        read_stream(path, run=named_run())


def test_as_many_files_as_runs_are_asked_for() -> None:
    with pytest.raises(UsageError, match="one file for each of 1 runs, found 2"):
        FileLabelling.of([named_run()], [Path("a.csv"), Path("b.csv")])


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_store_matches_the_list_that_filter_wrote(tmp_path: Path) -> None:
    run, hits, cxi = (tmp_path / name for name in ("run.zarr", "hits.zarr", "hits.cxi"))
    call("simulate", "--out", run, "--experiment", "photosystem-i-8kev", "--events", 4, "--serial")
    call("filter", "--in", run, "--out", hits, "--cxi", cxi, "--scorer", "peaks", "--threshold", 0,
         "--serial")  # fmt: skip
    listed = [line.split(" //") for line in (tmp_path / "hits.lst").read_text().splitlines()]
    stream = stream_of(tmp_path, chunk(listed[-1][0], listed[-1][1], crystals=1))
    for number, opened in enumerate((hits, cxi)):
        out = tmp_path / f"{number}.csv"
        facts = json.loads(
            call("label", "--in", opened, "--out", out, "--from", "stream", "--stream", stream,
                 "--serial", "--json")
        )  # fmt: skip
        assert (facts["hits"], facts["misses"]) == (1, 0)
        assert out.read_text().splitlines()[0] == "event,event_id,label,source"
        assert ",hit,stream" in out.read_text().splitlines()[-1]
    truth = json.loads(
        call("label", "--in", run, "--out", tmp_path / "t.csv", "--from", "truth", "--json",
             "--serial")
    )  # fmt: skip
    assert truth["hits"] + truth["misses"] + truth["maybe"] == truth["events"] == 4
    again = FileLabelling.of([open_run(run)], [tmp_path / "t.csv"])(
        open_run(run), pool=SerialPool(), progress=silent
    )
    assert again.count(Label.MAYBE) == truth["maybe"]
    two = ["--labels", tmp_path / "t.csv", tmp_path / "t.csv"]
    refused = CliRunner().invoke(
        app, [*map(str, ["train", "--in", run, "--out", tmp_path / "m", *two])]
    )
    assert isinstance(refused.exception, UsageError)


def hits_of(folder: Path) -> tuple[Path, Path, list[int]]:
    """A run, the CXI file of its hits, and which of its events these are."""
    run, hits = folder / "run.zarr", folder / "hits.zarr"
    ingest_run(planted_run(n_events=12), out=run, pool=SerialPool())
    call("filter", "--in", run, "--out", hits, "--cxi", folder / "run.cxi", "--scorer", "peaks",
         "--cxi-without-geometry", "--min-peaks", 1, "--serial")  # fmt: skip
    kept = open_run(hits).columns["source_index"].values.tolist()
    assert 2 < len(kept) < 12
    return run, folder / "run.cxi", kept


def test_a_stream_over_the_hits_labels_the_run_they_are_of(tmp_path: Path) -> None:
    """By the name of each event; a file called like the run was taken for the run."""
    run, cxi, kept = hits_of(tmp_path)
    stream = stream_of(tmp_path, chunk(str(cxi), 1, crystals=1), chunk(str(cxi), 2, hit=0))
    for more, misses in (((), []), (("--unindexed-is-miss",), [kept[0], *kept[2:]])):
        out = tmp_path / f"{len(more)}.csv"
        call("label", "--in", run, "--out", out, "--from", "stream", "--stream", stream, "--serial",
             *more)  # fmt: skip
        label = read_labels(out, run=open_run(run))
        assert np.flatnonzero(label == Label.HIT).tolist() == [kept[1]]
        assert np.flatnonzero(label == Label.MISS).tolist() == misses


def test_a_table_of_the_hits_labels_the_run_they_are_of(tmp_path: Path) -> None:
    run, cxi, kept = hits_of(tmp_path)
    hits = open_run(tmp_path / "hits.zarr")
    label = np.array([Label.HIT, Label.MISS] * len(kept), np.int8)[: len(kept)]
    write_labels(tmp_path / "own.csv", label, run=hits, source="csv")
    (tmp_path / "ids.csv").write_text(f"event_id,label\nevent-{kept[1]},miss\n")
    source = open_run(run)
    found = read_labels(tmp_path / "own.csv", run=source)
    assert found[kept].tolist() == label.tolist()
    assert (np.delete(found, kept) == Label.MAYBE).all()
    assert read_labels(tmp_path / "ids.csv", run=source)[kept[1]] == Label.MISS
    assert read_labels(tmp_path / "own.csv", run=hits).tolist() == label.tolist()
    assert open_run(cxi).n_events == len(kept)


def test_another_run_with_the_same_names_is_not_labelled(tmp_path: Path) -> None:
    _, cxi, kept = hits_of(tmp_path)
    stream = stream_of(tmp_path, chunk(str(cxi), 0, crystals=1))
    other = planted_run(n_events=12, seed=2)
    with pytest.raises(LabelError, match=rf"//0: has the name of event {kept[0]} of .*--in"):
        read_stream(stream, run=other)
    columns = other.columns.assign(event_id=("event", [f"r2-{i}" for i in range(12)]))
    with pytest.raises(LabelError, match="no chunk is of memory"):
        read_stream(stream, run=replace(other, columns=columns))
