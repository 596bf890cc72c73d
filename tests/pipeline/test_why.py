"""`why` says of every event what became of it, on what that rests, and where its frame is."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from commands import run as command
from planted import BrightestPixel, planted_run

from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.decide import Decision
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.ledger import ledger_run
from sfxreduce.pipeline.stages.reduced import Reduced, read_reduced
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.pipeline.why import IN_WORDS, why_event

N_EVENTS = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Reduced:
    folder = tmp_path_factory.mktemp("why")
    ingest_run(planted_run(n_events=N_EVENTS), out=folder / "run.zarr", pool=SerialPool())
    filter_run(
        open_run(folder / "run.zarr"),
        settings=FilterSettings(scorer=BrightestPixel(), audit_share=0.2),
        outputs=Outputs(store=folder / "hits.zarr"),
        pool=SerialPool(),
    )
    return read_reduced(folder / "hits.zarr", pool=SerialPool())


def test_every_event_is_explained_as_the_ledger_has_it(made: Reduced) -> None:
    known, stored = made.decisions, open_run(made.path).columns["source_index"].values
    decided = set()
    for event in range(N_EVENTS):
        told = why_event(made.path, event)
        text = " ".join(told.sentences)
        decision = Decision(known.decision[event])
        decided.add(decision)
        assert told.decision == decision.name.lower()
        assert told.score == pytest.approx(float(known.score[event]))
        side = "is not below" if known.score[event] >= told.threshold else "is below"
        assert f"{side} the threshold" in text
        if decision is Decision.REJECT:
            assert "To keep it: sfxreduce redecide" in text
            assert (told.position is None) == (event not in known.sample)
        else:
            assert told.position is not None
            assert stored[told.position] == event
    assert {Decision.HIT, Decision.REJECT} <= decided


def test_the_command_that_keeps_a_reject_exists(made: Reduced) -> None:
    event = int(np.flatnonzero(made.decisions.decision == Decision.REJECT)[0])
    words = shlex.split(why_event(made.path, event).sentences[-1].split("sfxreduce ", 1)[1])
    assert command(words[0], "--help").exit_code == 0
    shown = command(words[0], "--help").stdout
    assert all(word in shown for word in words if word.startswith("--"))
    threshold = float(words[words.index("--threshold") + 1])
    assert np.float32(threshold) <= made.decisions.score[event]


def test_an_event_that_is_not_there_is_one_line(made: Reduced, tmp_path: Path) -> None:
    done = command("why", made.path, N_EVENTS, "--json")
    assert done.exit_code != 0
    assert f"from 0 to {N_EVENTS - 1}" in str(done.exception)
    assert ledger_run(made.path, tmp_path / "ledger.csv") == N_EVENTS
    facts = json.loads(command("why", made.path, 0, "--json").stdout)
    assert facts["event"] == 0
    assert command("why", made.path, 0).stdout.splitlines() == facts["sentences"]


def test_every_flag_that_is_described_reads_as_a_sentence() -> None:
    assert len(set(IN_WORDS.values())) == len(IN_WORDS) >= 24
    assert all(words[0].islower() and not words.endswith(".") for words in IN_WORDS.values())
