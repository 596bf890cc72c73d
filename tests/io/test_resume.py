"""The same command goes on with what was cut off, and refuses to go on with anything else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from planted import BrightestPixel
from pyarrow import csv
from typer.testing import CliRunner

from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.decisions.decide import Decision
from sfxreduce.decisions.ledger import ledger_root, read_ledger
from sfxreduce.errors import (
    OutputError,
    OutputExists,
    RefusedError,
    SourceError,
    UsageError,
    VerificationError,
)
from sfxreduce.io.chunks.shards import payload_hash
from sfxreduce.io.files.durable import hidden_folder, hidden_folders
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import ZarrFrames, open_table
from sfxreduce.io.writers.publish import JOURNAL
from sfxreduce.io.writers.resume import unfinished_folder
from sfxreduce.pipeline.describe import describe_unfinished
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ledger import ledger_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.run.run import Run
from sfxreduce_cli.main import app


class Stopping(SerialPool):
    """Stops after some results of a stage, and counts what it gave of each."""

    def __init__(self, stage: str = "", after: int = 0) -> None:
        self.given: dict[str, int] = {}
        self._stop = {stage: after} if stage else {}

    def blocks(self, array: Any, **options: Any) -> Iterator[Any]:
        yield from self._counted("score", super().blocks(array, **options))

    def map(
        self,
        name: str,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        **options: Any,
    ) -> Iterator[Any]:
        yield from self._counted(name, super().map(name, function, items, **options))

    def _counted(self, name: str, results: Iterator[Any]) -> Iterator[Any]:
        for result in results:
            if self.given.get(name, 0) == self._stop.get(name, -1):
                raise KeyboardInterrupt
            self.given[name] = self.given.get(name, 0) + 1
            yield result


def keep_hits(run: Run, out: Path, pool: Pool, **options: Any) -> None:
    filter_run(
        run,
        settings=FilterSettings(scorer=BrightestPixel(), **options),
        outputs=Outputs(store=out),
        pool=pool,
    )


def folder_of(out: Path) -> Path:
    folder = unfinished_folder(out)
    assert folder is not None
    return folder


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("stage", "after"), [("score", 1), ("reduce", 0), ("publish", 3)])
def test_nothing_is_done_twice_and_the_bytes_are_the_same(
    stored: Path, tmp_path: Path, stage: str, after: int
) -> None:
    whole, out = Stopping(), tmp_path / "hits.zarr"
    keep_hits(open_run(stored), tmp_path / "peace.zarr", whole, audit_share=0.3)
    first, second = Stopping(stage, after), Stopping()
    with pytest.raises(KeyboardInterrupt):
        keep_hits(open_run(stored), out, first, audit_share=0.3)
    assert not out.exists()
    keep_hits(open_run(stored), out, second, audit_share=0.3)
    assert tree(out) == tree(tmp_path / "peace.zarr")
    for name in ("score", "reduce"):
        assert first.given.get(name, 0) + second.given.get(name, 0) == whole.given[name]
    assert not hidden_folders(out)


@pytest.mark.parametrize(
    ("what", "options"),
    [("threshold", {"threshold": 400.0}), ("audit-share", {"audit_share": 0.4}),
     ("drift", {"drift": False})],
)  # fmt: skip
def test_another_command_is_refused_and_says_what_changed(
    stored: Path, tmp_path: Path, what: str, options: dict[str, Any]
) -> None:
    out = tmp_path / "hits.zarr"
    with pytest.raises(KeyboardInterrupt):
        keep_hits(open_run(stored), out, Stopping("score", 1))
    with pytest.raises(RefusedError, match=what):
        keep_hits(open_run(stored), out, SerialPool(), **options)
    filter_run(
        open_run(stored),
        settings=FilterSettings(scorer=BrightestPixel(), **options),
        outputs=Outputs(store=out, overwrite=True),
        pool=SerialPool(),
    )
    assert out.exists()
    assert not hidden_folders(out)


def touch(stored: Path) -> None:
    path = stored / "zarr.json"
    path.write_text(path.read_text() + " ")


def test_a_changed_source_is_refused(stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "hits.zarr"
    with pytest.raises(KeyboardInterrupt):
        keep_hits(open_run(stored), out, Stopping("score", 1))
    touch(stored)
    with pytest.raises(RefusedError, match="source files"):
        keep_hits(open_run(stored), out, SerialPool())


def test_a_source_that_changes_underneath_is_not_published(stored: Path, tmp_path: Path) -> None:
    class Meanwhile(SerialPool):
        def map(
            self, name: str, function: Any, items: Iterable[Any], **options: Any
        ) -> Iterator[Any]:
            if name == "publish":
                touch(stored)
            return super().map(name, function, items, **options)

    with pytest.raises(SourceError, match="changed while they were read"):
        keep_hits(open_run(stored), tmp_path / "hits.zarr", Meanwhile())
    assert not (tmp_path / "hits.zarr").exists()


def test_a_shard_that_rots_before_it_is_published_is_written_anew(
    stored: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hits.zarr"
    with pytest.raises(KeyboardInterrupt):
        keep_hits(open_run(stored), out, Stopping("publish", 0))
    shard = next(path for path in folder_of(out).glob("output/frames/c/**/*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(VerificationError, match="differs from what was written"):
        keep_hits(open_run(stored), out, SerialPool())
    keep_hits(open_run(stored), out, SerialPool())
    keep_hits(open_run(stored), tmp_path / "peace.zarr", SerialPool())
    assert tree(out) == tree(tmp_path / "peace.zarr")


def test_a_journal_that_was_changed_is_not_gone_on_with(stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "hits.zarr"
    with pytest.raises(KeyboardInterrupt):
        keep_hits(open_run(stored), out, Stopping("reduce", 0))
    journal = folder_of(out) / JOURNAL
    journal.write_bytes(journal.read_bytes().replace(b'"threshold":', b'"Threshold":', 1))
    with pytest.raises(VerificationError, match="journal"):
        keep_hits(open_run(stored), out, SerialPool())


def test_what_was_half_written_is_swept(stored: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "hits.zarr", tmp_path / "elsewhere"
    elsewhere.mkdir()
    outputs = Outputs(store=out, report=elsewhere / "page.html")

    def keep(pool: Pool) -> None:
        settings = FilterSettings(scorer=BrightestPixel())
        filter_run(open_run(stored), settings=settings, outputs=outputs, pool=pool)

    with pytest.raises(KeyboardInterrupt):
        keep(Stopping("publish", 0))
    assert list(elsewhere.iterdir()) == []
    torn = folder_of(out) / "shards" / ".0.0123456789ab.partial"
    torn.write_text("half")
    keep(SerialPool())
    assert [path.name for path in elsewhere.iterdir()] == ["page.html"]
    assert not hidden_folders(out)


def test_a_folder_that_was_left_empty_is_swept_and_another_is_not(
    stored: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hits.zarr"
    keep_hits(open_run(stored), out, SerialPool())
    folder = hidden_folder(out)
    (folder / "notes").touch()
    with pytest.raises(OutputExists):
        keep_hits(open_run(stored), out, SerialPool())
    (folder / "notes").unlink()  # so far it was there
    with pytest.raises(OutputExists):
        keep_hits(open_run(stored), out, SerialPool())
    assert not folder.exists()


def cut_off_while_appearing(run: Run, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filter, and be interrupted when all is complete and nothing has its name yet."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sfxreduce.io.writers.publish.complete_moves", interrupted)
        with pytest.raises(KeyboardInterrupt):
            keep_hits(run, out, SerialPool())


def test_an_output_that_was_appearing_is_completed(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, pool = tmp_path / "hits.zarr", Stopping()
    cut_off_while_appearing(open_run(stored), out, monkeypatch)
    facts = describe_unfinished(out)
    assert facts is not None
    assert facts.appearing
    keep_hits(open_run(stored), out, pool)
    keep_hits(open_run(stored), tmp_path / "peace.zarr", SerialPool())
    assert tree(out) == tree(tmp_path / "peace.zarr")
    assert not pool.given
    assert not hidden_folders(out)


def test_an_output_that_was_not_made_does_not_appear_with_the_others(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "hits.zarr"
    cut_off_while_appearing(open_run(stored), out, monkeypatch)
    more = Outputs(store=out, report=tmp_path / "page.html")
    with pytest.raises(RefusedError, match=r"page\.html: was not asked for"):
        filter_run(
            open_run(stored),
            settings=FilterSettings(scorer=BrightestPixel()),
            outputs=more,
            pool=SerialPool(),
        )
    keep_hits(open_run(stored), out, SerialPool())
    assert out.exists()


def test_two_programs_do_not_work_on_one_output(stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "hits.zarr"

    class Second(SerialPool):
        def blocks(self, array: Any, **options: Any) -> Iterator[Any]:
            with pytest.raises(OutputError, match="another process"):
                keep_hits(open_run(stored), out, SerialPool())
            return super().blocks(array, **options)

    keep_hits(open_run(stored), out, Second())
    assert out.exists()


def test_info_says_what_an_unfinished_output_holds(stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "hits.zarr"
    with pytest.raises(KeyboardInterrupt):
        keep_hits(open_run(stored), out, Stopping("publish", 0))
    facts = describe_unfinished(out)
    assert facts is not None
    assert (facts.scored, facts.shards, facts.appearing) == (2, 2, False)
    done = CliRunner().invoke(app, ["info", str(out), "--json"])
    told = json.loads(done.stdout)
    assert (told["complete"], told["batches_scored"], told["shards_written"]) == (False, 2, 2)
    assert told["source"] == str(stored)


def test_the_ledger_holds_the_hash_of_all_that_was_kept(stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "hits.zarr"
    keep_hits(open_run(stored), out, SerialPool(), audit_share=0.3)
    decisions = read_ledger(open_table(out, "ledger"), where=str(out))
    assert decisions.payload is not None
    source = ZarrFrames(path=str(stored))
    held = np.concatenate([decisions.kept, decisions.sample])
    for event, tiles in zip(held, source.encoded(held.tolist()), strict=True):
        high, low = decisions.payload[event]
        assert f"{int(high):016x}{int(low):016x}" == payload_hash(tiles)
    dropped = np.setdiff1d(np.arange(70), held)
    assert not decisions.payload[dropped].any()
    root = ledger_root(decisions)
    decisions.payload[held[0], 1] ^= np.uint64(1)
    assert ledger_root(decisions) != root


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_ledger_as_a_table(stored: Path, tmp_path: Path, suffix: str) -> None:
    out, table = tmp_path / "hits.zarr", tmp_path / f"ledger{suffix}"
    keep_hits(open_run(stored), out, SerialPool(), audit_share=0.3)
    done = CliRunner().invoke(app, ["ledger", "--in", str(out), "--out", str(table), "--json"])
    assert json.loads(done.stdout)["rows"] == 70
    read = csv.read_csv if suffix == ".csv" else pyarrow.parquet.read_table
    rows = read(table).to_pylist()
    decisions = read_ledger(open_table(out, "ledger"), where=str(out))
    assert [row["source_index"] for row in rows] == list(range(70))
    assert [row["decision"] for row in rows] == [
        Decision(d).name.lower() for d in decisions.decision
    ]
    assert [row["score"] for row in rows] == decisions.score.tolist()
    assert sum(row["reason"] == "audit_sample" for row in rows) == decisions.sample.size
    kept = {i for i, row in enumerate(rows) if row["payload"]}
    assert kept == {*decisions.kept.tolist(), *decisions.sample.tolist()}


def test_a_ledger_table_of_no_known_kind(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.csv or \.parquet"):
        ledger_run(stored, tmp_path / "ledger.xls")
