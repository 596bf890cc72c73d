"""What was begun goes on only if everything it depends on is as it was."""

from __future__ import annotations

import inspect
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import run as command
from planted import BrightestPixel, planted_run

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import RefusedError, SfxReduceError, SfxReduceWarning, UsageError
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.scorers.cnn.folder import default_model
from sfxreduce.scorers.cnn.scorer import CnnScorer
from sfxreduce.scorers.peaks.finder import PeakScorer
from sfxreduce.scorers.protocol import Scorer

MANIFEST = "sfxreduce.pipeline.stages.write.write_manifest"
APPEARS = "sfxreduce.io.writers.publish.complete_moves"
N_EVENTS = 24


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def peaks_everywhere(path: Path) -> Path:
    """A file with two stacks of frames, of 3 to 7 peaks each."""
    rng = np.random.default_rng(3)
    frames = rng.poisson(20, (N_EVENTS, 64, 64)).astype(np.int16)
    for event in range(N_EVENTS):
        for peak in range(3 + event % 5):
            frames[event, 8 + 10 * (peak // 3), 10 + 20 * (peak % 3)] = 900
    with h5py.File(path, "w") as file:
        for name, stack in (("raw", frames), ("other", frames[::-1])):
            file.create_dataset(f"entry/{name}/data", data=stack, chunks=(1, 64, 64))
    return path


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [(["--min-peaks", 5], ["--min-peaks", 4], "scorer.min-peaks"),
     (["--min-snr", 5.5], ["--min-snr", 6.0], "scorer.finder.min-snr"),
     (["--data-path", "entry/raw/data"], ["--data-path", "entry/other/data"], "reader.data-path"),
     (["--cxi-filter", "gzip"], ["--cxi-filter", "blosc"], "cxi-filter")],
)  # fmt: skip
def test_a_changed_option_is_refused_by_its_name(
    before: list[object],
    after: list[object],
    changed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 512 of 1,666 frames were the wrong events: shards of the first run were taken for those of
    # the second, which has others in the same places.
    run = peaks_everywhere(tmp_path / "run.h5")
    words = ["filter", "--in", run, "--out", tmp_path / "hits.zarr", "--scorer", "peaks"]
    words += ["--cxi", tmp_path / "hits.cxi", "--cxi-without-geometry", "--serial"]
    words += [] if "--data-path" in before else ["--data-path", "entry/raw/data"]
    with monkeypatch.context() as patched:
        patched.setattr(MANIFEST, stop)
        assert command(*words, *before).exit_code == 130
    refused = command(*words, *after)
    assert refused.exit_code == 3
    assert changed in str(refused.exception)
    assert not (tmp_path / "hits.zarr").exists()
    assert command(*words, *before).exit_code == 0


def test_a_changed_configuration_of_the_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the weights were pinned; how their evidence is pooled lies in another file.
    run, model = tmp_path / "run.zarr", tmp_path / "model"
    ingest_run(planted_run(n_events=N_EVENTS), out=run, pool=SerialPool())
    shutil.copytree(default_model(), model)
    words = ["filter", "--in", run, "--out", tmp_path / "hits.zarr", "--model", model, "--serial"]
    with monkeypatch.context() as patched:
        patched.setattr(MANIFEST, stop)
        assert command(*words).exit_code == 130
    config = model / "config.json"
    config.write_text(config.read_text().replace('"pooling"', '"pooling" '))
    refused = command(*words)
    assert refused.exit_code == 3
    assert "scorer.model" in str(refused.exception)


def test_a_shard_is_taken_only_for_the_events_it_holds(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A shard was known by its place in the store alone.
    def keep(out: Path) -> None:
        settings = FilterSettings(scorer=BrightestPixel(), audit_share=0.3)
        filter_run(
            open_run(stored), settings=settings, outputs=Outputs(store=out), pool=SerialPool()
        )

    with monkeypatch.context() as patched:
        patched.setattr(MANIFEST, stop)
        patched.setattr(
            "sfxreduce.pipeline.filter.draw_sample", lambda *_, **__: np.array([1, 2, 4, 5])
        )
        with pytest.raises(KeyboardInterrupt):
            keep(tmp_path / "hits.zarr")
    keep(tmp_path / "hits.zarr")
    keep(tmp_path / "peace.zarr")
    assert tree(tmp_path / "hits.zarr") == tree(tmp_path / "peace.zarr")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Everything that a filter run is asked with, as one value."""

    reader: dict[str, Any]
    settings: FilterSettings
    outputs: Outputs

    def filter(self, run: Path) -> None:
        opened = open_run(run, **self.reader)
        filter_run(opened, settings=self.settings, outputs=self.outputs, pool=SerialPool())


WORDS = ("centre", "full", "cuda", "blosc", "slab", "entry/other/data")
"""Texts that some option takes."""


def others(value: object, hint: str) -> Iterator[object]:
    """Values that a field may have instead."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, float):
        yield from (value * 1.25 + 0.01, value * 0.75 - 0.01)
    elif isinstance(value, str):
        yield from (word for word in WORDS if word != value)
    elif isinstance(value, tuple):
        yield (Path("/"),)
    elif "float" in hint:
        yield 0.4


def changes(value: Any, name: str = "") -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every field of a value and of the values in it, with a way to a value that differs there."""
    for part in fields(value):
        before, dotted = getattr(value, part.name), f"{name}.{part.name}".lstrip(".")
        if is_dataclass(before):
            for inner, changed in changes(before, dotted):
                yield inner, lambda n=part.name, c=changed: replace(value, **{n: c()})
        for other in others(before, str(part.type)):
            yield dotted, lambda n=part.name, o=other: replace(value, **{n: o})


def asked_otherwise(asked: Asked) -> dict[str, list[Callable[[], Asked]]]:
    """Every way to ask for something else, by the option that it changes."""
    ways: dict[str, list[Callable[[], Asked]]] = {}
    for kind in ("settings", "outputs"):
        for name, changed in changes(getattr(asked, kind)):
            ways.setdefault(name, []).append(lambda k=kind, c=changed: replace(asked, **{k: c()}))
    for name, parameter in inspect.signature(open_run).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            for other in others(asked.reader.get(name, parameter.default), ""):
                reader = asked.reader | {name: other}
                ways.setdefault(name, []).append(lambda r=reader: replace(asked, reader=r))
    return ways


def flip(path: Path, rng: random.Random) -> None:
    """Change one byte of a file; size and times as they were but for the time of change."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


class Bench:
    """A run and a model, and what was begun with them; each trial starts from a copy of it."""

    def __init__(self, root: Path, scorer: str) -> None:
        self.root, self.here = root, root / "here"
        self.here.mkdir(parents=True)
        self.run = peaks_everywhere(self.here / "run.h5")
        shutil.copytree(default_model(), self.here / "model")
        self.scorer = scorer
        self.out = self.here / "hits.zarr"

    @property
    def asked(self) -> Asked:
        scorer: Scorer = PeakScorer(min_peaks=5)
        if self.scorer == "cnn":
            scorer = CnnScorer(self.here / "model")
        return Asked(
            reader={"data_path": "entry/raw/data"},
            settings=FilterSettings(scorer=scorer, audit_share=0.3),
            outputs=Outputs(store=self.out, cxi=self.here / "hits.cxi", cxi_without_geometry=True),
        )

    def begin(self, stage: str, patched: pytest.MonkeyPatch) -> None:
        """Cut a run off at some stage, once for all trials."""
        with patched.context() as patch:
            patch.setattr(stage, stop)
            with pytest.raises(KeyboardInterrupt):
                self.asked.filter(self.run)
        shutil.copytree(self.here, self.root / stage)
        self.restore("clean")

    def restore(self, stage: str) -> None:
        """Everything as it was when that stage was cut off; the source keeps its inode."""
        for path in self.here.iterdir():
            if path != self.run:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        saved = self.root / stage
        for path in saved.iterdir():
            if path.name != self.run.name:
                copy = shutil.copytree if path.is_dir() else shutil.copy2
                copy(path, self.here / path.name)
        if (saved / self.run.name).read_bytes() != self.run.read_bytes():
            self.run.write_bytes((saved / self.run.name).read_bytes())
        facts = (saved / self.run.name).stat()
        os.utime(self.run, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    def results(self) -> dict[str, bytes]:
        """Bytes of everything that was published."""
        made = self.out, *self.asked.outputs.files
        files = {p.name: p.read_bytes() for p in made if p.is_file()}
        return tree(self.out) | files


def outcome(bench: Bench, asked: Callable[[], Asked]) -> tuple[str, dict[str, bytes]]:
    """How a filter run ends, and what it published."""
    try:
        with warnings.catch_warnings():
            # That copies of files are touched is told; here it is how every trial begins.
            warnings.simplefilter("ignore", SfxReduceWarning)
            asked().filter(bench.run)
    except UsageError:
        return "usage", {}
    except RefusedError:
        return "refused", {}
    except SfxReduceError as error:
        return type(error).__name__, {}
    return "done", bench.results()


def trial(bench: Bench, stage: str, name: str, rng: random.Random) -> str:
    """Change one thing between cut-off and resume, and return how the resume ended."""
    bench.restore(stage)
    asked = bench.asked
    file = bench.here / name.removeprefix("file ")
    if name.startswith("file "):
        flip(file, rng)
        ways = [lambda: bench.asked]
    else:
        ways = asked_otherwise(asked)[name]
    # Of texts and numbers some mean nothing to the option, or to this file.
    for way in rng.sample(ways, len(ways)):
        ended, resumed = outcome(bench, way)
        if ended not in ("usage", "SchemaError"):
            break
    if ended != "done":
        assert not bench.out.exists(), (stage, name, ended)
        return ended
    changed = {p: p.read_bytes() for p in (file,) if name.startswith("file ")}
    bench.restore("clean")
    for path, data in changed.items():
        path.write_bytes(data)
    assert outcome(bench, way) == ("done", resumed), (stage, name)
    return ended


def soak(root: Path, patched: pytest.MonkeyPatch, n_trials: int) -> dict[str, list[str]]:
    """Outcomes of trials, by what was changed in them; everything in turn."""
    rng, ends = random.Random(2), {}
    stages = (MANIFEST, APPEARS, "sfxreduce.pipeline.filter.method_for")
    for scorer in ("peaks", "cnn"):
        bench = Bench(root / scorer, scorer)
        shutil.copytree(bench.here, bench.root / "clean")
        for stage in stages:
            bench.begin(stage, patched)
        of_files = [f"file {p.relative_to(bench.here)}" for p in bench.here.rglob("*.*")]
        names = [*asked_otherwise(bench.asked), *of_files]
        names = [n for n in names if scorer == "cnn" or "model/" not in n]
        for number in range(n_trials // 2):
            name, stage = names[number % len(names)], stages[rng.randrange(len(stages))]
            ends.setdefault(f"{scorer} {name}", []).append(trial(bench, stage, name, rng))
    return ends


def assert_refused_or_as_new(ends: dict[str, list[str]], n_trials: int) -> None:
    told = [end for of_one in ends.values() for end in of_one]
    assert len(told) == n_trials
    # Every option was changed, and what gives other bytes was refused: never only wrong usage.
    assert {"peaks scorer.min_peaks", "peaks data_path", "cnn scorer.looks_at"} <= set(ends)
    assert told.count("refused") >= 0.75 * n_trials, ends
    assert set(told) <= {"refused", "done", "usage", "ModelError", "SourceError"}, ends


@pytest.mark.timeout(900)
def test_a_change_is_refused_or_gives_what_a_fresh_run_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused_or_as_new(soak(tmp_path, monkeypatch, 50), 50)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_five_hundred_changes_are_refused_or_give_what_a_fresh_run_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused_or_as_new(soak(tmp_path, monkeypatch, 500), 500)
