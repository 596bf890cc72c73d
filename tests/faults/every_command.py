"""One trial for any command that writes: killed at some call that changes a file, and given again.

What is under the names of its outputs is the old or the new one, the same command completes, and
nothing is left over.
"""

from __future__ import annotations

import random
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from planted import planted_run

from faults.trials import FAILED, Child, Outcome, tree
from sfxreduce.archive.evidence.folder import EvidenceFolder
from sfxreduce.archive.evidence.subject import Subject, wall_clock
from sfxreduce.archive.rules.policy import preset_text
from sfxreduce.archive.steps.status import status_run
from sfxreduce.cluster import SerialPool
from sfxreduce.io.files.durable import PARTIAL, UNFINISHED
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.scorers.cnn.folder import default_model, read_model, write_model
from sfxreduce_cli.main import app

PAGE = "page.html"
"""Says how long it took."""

PEAKS = ("--scorer", "peaks", "--min-peaks", "1", "--serial")


@dataclass(kw_only=True)
class Command:
    """A command, and what is there before it.

    Parameters
    ----------
    words : sequence of str
        As a user types them, in the folder of the trial.
    before : sequence of sequence of str
        Commands that make its inputs.
    outputs : sequence of str
        Names that it writes.
    work : callable, optional
        Done in place of the words.
    finished : callable, optional
        Whether the outputs are complete; by default they have the same bytes as in peace.
    """

    name: str
    words: Sequence[str] = ()
    before: Sequence[Sequence[str]] = ()
    outputs: Sequence[str] = ()
    work: Callable[[], None] | None = None
    finished: Callable[[Path], bool] | None = None
    folder: Path = Path()
    calls: int = 0
    old: dict[str, dict[str, bytes]] | None = None
    new: dict[str, dict[str, bytes]] | None = None

    def run(self) -> None:
        """Do it in this process."""
        self.work() if self.work else typed(*self.words)

    def state(self) -> dict[str, dict[str, bytes]]:
        """Bytes under each name; nothing for one that is not there."""
        names = {name: self.folder / name for name in self.outputs}
        return {
            name: tree(path) if path.is_dir() else {"": b"" if PAGE in name else path.read_bytes()}
            for name, path in names.items()
            if path.exists()
        }

    def begin(self, saved: Path) -> None:
        """Lay out what it needs, as it was made once; the archive knows a copy from its source."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if saved.exists():
            shutil.copytree(saved, self.folder)
            return
        self.folder.mkdir()
        for name in ("elsewhere", "tape_a", "tape_b"):
            (self.folder / name).mkdir()
        ingest_run(planted_run(n_events=40), out=self.folder / "run.zarr", pool=SerialPool())
        shutil.copytree(default_model(), self.folder / "model")
        (self.folder / "policy.toml").write_text(ONE_ACCOUNT)
        for words in self.before:
            assert Child(lambda words=words: typed(*words)).wait() == 0, (self.name, words)
        if not self.name.startswith("archive"):
            shutil.copytree(self.folder, saved)


ONE_ACCOUNT = preset_text("laptop") + "\n[approvals]\ntwo_person = false\n"
"""Whoever plans approves as well: the trials have one account."""


def typed(*words: str) -> None:
    """Give a command as a user does; its errors are raised."""
    app([*words], standalone_mode=False)


def archive_state(folder: Path, state: str) -> bool:
    """Whether the run went through a state of the archive."""
    evidence = EvidenceFolder(path=folder / "run.zarr.evidence", clock=wall_clock).read()
    return not evidence.tampered and state in [each.name for each in evidence.states]


def plan_id(folder: Path) -> str:
    return status_run(Subject.of(folder / "run.zarr", by="ann", clock=wall_clock)).plan_id


def commands(folder: Path) -> list[Command]:
    """All of them; their words name files in the folder of the trial."""

    def at(name: str) -> str:
        return str(folder / name)

    run, hits = ("--in", at("run.zarr")), ("--in", at("hits.zarr"))
    filtered = ("filter", *run, "--out", at("hits.zarr"), *PEAKS)
    drawn = ("audit", "draw", *hits, "--nonce", "4 2", "--rejects", "4", "--kept", "4")
    simulated = ("simulate", "--experiment", "photosystem-i-8kev", "--events", "2", "--serial")
    planned = (
        "archive", "plan", at("run.zarr"), "--hits", at("hits.zarr"), "--as", "ann", "--serial",
        "--policy", at("policy.toml"),
    )  # fmt: skip
    approved = ("archive", "approve", at("run.zarr"), "--as", "bob")
    pools = [f"--to={name}=posix:{at(f'tape_{name}')}" for name in "ab"]
    older = (*filtered[:-2], "3", "--serial")

    def execute() -> None:
        typed("archive", "execute", at("run.zarr"), *pools, "--execute", plan_id(folder)[:8])

    return [
        Command(
            name="filter", outputs=("hits.zarr", PAGE, "elsewhere/hits.cxi"),
            words=(
                *filtered, "--report", at(PAGE), "--cxi", at("elsewhere/hits.cxi"),
                "--cxi-without-geometry",
            ),
        ),
        Command(
            name="filter --overwrite", outputs=("hits.zarr",), before=(older,),
            words=(*filtered, "--overwrite"),
        ),
        Command(
            name="redecide", outputs=("again.zarr",), before=(filtered,),
            words=("redecide", *hits, "--against", at("run.zarr"), "--out", at("again.zarr"),
                   "--threshold", "2", "--serial"),
        ),
        Command(
            name="ingest --overwrite", outputs=("copy.zarr",),
            before=(("ingest", *run, "--out", at("copy.zarr"), "--serial"),),
            words=("ingest", *run, "--out", at("copy.zarr"), "--serial", "--overwrite"),
        ),
        Command(
            name="convert", outputs=("run.cxi",),
            words=("convert", *run, "--out", at("run.cxi")),
        ),
        Command(
            name="convert --overwrite", outputs=("copy.zarr",),
            before=(
                ("convert", *run, "--out", at("run.cxi"), "--cxi-filter", "blosc"),
                ("ingest", *run, "--out", at("copy.zarr"), "--serial"),
            ),
            words=("convert", "--in", at("run.cxi"), "--out", at("copy.zarr"), "--serial",
                   "--overwrite"),
        ),
        Command(
            name="simulate", outputs=("new.zarr",), words=(*simulated, "--out", at("new.zarr")),
        ),
        Command(
            name="train --overwrite", outputs=("model",),
            work=lambda: write_model(
                folder / "model", read_model(default_model()), overwrite=True
            ),
        ),
        Command(
            name="audit draw", outputs=("draw.json",), before=(filtered,),
            words=(*drawn, "--out", at("draw.json")),
        ),
        Command(
            name="label", outputs=("labels.csv",),
            words=("label", *run, "--out", at("labels.csv"), "--serial",
                   "--miss-at-most", "0", "--hit-at-least", "1"),
        ),
        Command(
            name="archive plan", before=(filtered,), words=planned,
            finished=lambda folder: archive_state(folder, "PLANNED"),
        ),
        Command(
            name="archive execute", before=(filtered, planned, approved), work=execute,
            finished=lambda folder: archive_state(folder, "ARCHIVED"),
        ),
    ]  # fmt: skip


def prepared(folder: Path, saved: Path) -> list[Command]:
    """Make what each command needs, once, and give it once in peace."""
    saved.mkdir()
    ready = commands(folder)
    for command in ready:
        command.folder = folder
        command.begin(saved / command.name)
        command.old = command.state()
        child = Child(command.run, at_call=sys.maxsize)
        assert child.wait() == 0, command.name
        command.calls, command.new = child.calls, command.state()
    return ready


def leftovers(folder: Path) -> list[str]:
    """Hidden names that no command would leave."""
    return [
        path.name
        for path in folder.rglob(".*")
        if path.name.endswith(PARTIAL) or UNFINISHED in path.name
    ]


def kills_of_every_command(folder: Path, n_trials: int, rng: random.Random) -> Outcome:
    """``kill -9`` right before the n-th call that changes a file, of each command in turn."""
    outcome = Outcome(name="kill -9 before the n-th call that changes a file, of every command")
    trial, saved = folder / "commands", folder / "before"
    ready = prepared(trial, saved)
    for number in range(n_trials):
        command = ready[number % len(ready)]
        command.begin(saved / command.name)
        call = rng.randint(1, command.calls)
        where = f"{command.name}, call {call} of {command.calls}"
        child = Child(command.run, at_call=call)
        killed = child.wait()
        if killed == 0 and child.calls < call:
            # Kernels that were compiled and kept while calls were counted: no trial.
            continue
        outcome.trials += 1
        outcome.expect(killed == -signal.SIGKILL, f"{where}: not killed, {killed}")
        state = command.state()
        for name in command.outputs:
            old, new = (command.old or {}).get(name), (command.new or {})[name]
            outcome.expect(state.get(name) in (old, new), f"{where}: {name} is neither old nor new")
        ended = Child(command.run).wait()
        finished = command.finished(trial) if command.finished else command.state() == command.new
        outcome.expect(finished, f"{where}: ended with {ended} and is not complete")
        # One that had only to clean up behind it is told that its output is there.
        outcome.expect(ended in (0, FAILED), f"{where}: ended with {ended}")
        outcome.expect(not leftovers(trial), f"{where}: left {leftovers(trial)}")
    return outcome
