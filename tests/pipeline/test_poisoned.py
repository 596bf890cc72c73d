"""What a process that did not see the run left in the journal does not survive a resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import ZarrFrames, open_table
from sfxreduce.io.writers.resume import unfinished_folder
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading
from sfxreduce.scorers.cnn.folder import default_model
from sfxreduce.scorers.cnn.scorer import CnnScorer
from sfxreduce.scorers.peaks.finder import PeakScorer
from sfxreduce.scorers.protocol import Scorer
from sfxreduce.simulate.run import simulate_run

N_EVENTS = 24
UNSEEN = range(6, N_EVENTS)
"""Events of which a process with a stale mount sees nothing."""

PLACES = {
    "scores": "sfxreduce.pipeline.filter.decide_run",
    "checks": "sfxreduce.pipeline.filter.plan_output",
    "shards": "sfxreduce.pipeline.stages.write.write_manifest",
}
"""Where the run is cut off: after that was noted."""


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("poisoned") / "run.zarr"
    run = simulate_run("photosystem-i-8kev", n_events=N_EVENTS, hit_rate=0.5, seed=9)
    ingest_run(run, out=path, pool=SerialPool())
    return path


def unseeing(patched: pytest.MonkeyPatch) -> None:
    """Let this process see a quarter of every run."""
    read_into, encoded = ZarrFrames.read_into, ZarrFrames.encoded
    read_first = ZarrFrames.read_first

    def less(self: ZarrFrames, events: Sequence[int], *more: Any) -> np.ndarray:
        reasons = read_into(self, events, *more)
        reasons[np.isin(list(events), UNSEEN)] = Reason.FILE_UNREADABLE
        return reasons

    def first_of_less(self: ZarrFrames, events: Sequence[int], *more: Any) -> Iterator[Reading]:
        start = 0
        for reading in read_first(self, events, *more):
            part = list(events)[start : start + len(reading.reasons)]
            reading.reasons[np.isin(part, UNSEEN)] = Reason.FILE_UNREADABLE
            start += len(part)
            yield reading

    def fewer(self: ZarrFrames, events: Sequence[int]) -> Iterator[list[bytes | None]]:
        for event, tiles in zip(events, encoded(self, events), strict=True):
            yield [None] * len(tiles) if event in UNSEEN else tiles

    patched.setattr(ZarrFrames, "read_into", less)
    patched.setattr(ZarrFrames, "read_first", first_of_less)
    patched.setattr(ZarrFrames, "encoded", fewer)


SCORERS: dict[str, Callable[[], Scorer]] = {
    "cnn": lambda: CnnScorer(default_model()),
    "peaks": PeakScorer,
}


@pytest.mark.parametrize(
    ("scorer", "place"),
    [("peaks", "scores"), ("peaks", "shards"), ("cnn", "scores"), ("cnn", "checks"),
     ("cnn", "shards")],
)  # fmt: skip
def test_a_poisoned_journal_resumes_to_what_a_fresh_run_gives(
    scorer: str, place: str, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(out: Path) -> None:
        settings = FilterSettings(scorer=SCORERS[scorer](), drift=place == "checks")
        filter_run(open_run(stored), out, settings, pool=SerialPool())

    with monkeypatch.context() as patched:
        unseeing(patched)
        patched.setattr(PLACES[place], stop)
        with pytest.raises(KeyboardInterrupt):
            keep(tmp_path / "hits.zarr")
    assert unfinished_folder(tmp_path / "hits.zarr") is not None
    keep(tmp_path / "hits.zarr")
    keep(tmp_path / "fresh.zarr")
    ledger = read_ledger(open_table(tmp_path / "hits.zarr", "ledger"), where="")
    assert not (ledger.reason & np.uint32(Reason.FILE_UNREADABLE | Reason.DATA_HOLE)).any()
    assert tree(tmp_path / "hits.zarr") == tree(tmp_path / "fresh.zarr")
