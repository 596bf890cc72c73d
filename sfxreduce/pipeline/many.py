"""``sfxreduce filter --out-dir``: many runs, one after the other, on the same workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfxreduce.errors import (
    ClusterError,
    OutputExists,
    SfxReduceError,
    SourceError,
    UsageError,
    VerificationError,
)
from sfxreduce.io.files.durable import output_errors
from sfxreduce.io.files.safe_read import looked_at
from sfxreduce.io.readers.inputs import expand_input
from sfxreduce.io.readers.zarr.run import read_manifest
from sfxreduce.io.store.damage import MANIFEST_FILE
from sfxreduce.report.report import Report

__all__ = ["Outcome", "Outcomes", "filter_runs", "outputs_of_runs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one run.

    Parameters
    ----------
    in_, out : Path
        The run, and its reduced store.
    report : Report or None
        Its numbers, where it was filtered now.
    error : SfxReduceError or None
        Why there is no output.
    """

    in_: Path
    out: Path
    report: Report | None = None
    error: SfxReduceError | None = None

    @property
    def exit_status(self) -> int:
        """What the command would have ended with for this run alone; 1 if its source changed."""
        if self.error is not None:
            return self.error.exit_status
        return int(self.report is not None and bool(self.report.changed))

    @property
    def word(self) -> str:
        """One of "ok", "failed" and "skipped"."""
        if self.exit_status:
            return "failed"
        return "skipped" if self.report is None else "ok"

    @property
    def sentence(self) -> str:
        """What became of it, for people."""
        if self.error is not None:
            return str(self.error)
        if self.report is None:
            return f"{self.out} is already there, made from this run; left as it is"
        warning = f"{self.report.warning}. " if self.report.next_command else ""
        return f"{warning}{self.report.verdict}"

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return {
            "in": str(self.in_),
            "out": str(self.out),
            "outcome": self.word,
            "exit_status": self.exit_status,
            "error": None if self.error is None else str(self.error),
            "report": None if self.report is None else self.report.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What became of many runs."""

    runs: tuple[Outcome, ...]

    def count(self, word: str) -> int:
        """Runs that are "ok", "failed" or "skipped"."""
        return sum(run.word == word for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        counts = {word: self.count(word) for word in ("ok", "failed", "skipped")}
        return {"runs": [run.to_json() for run in self.runs], **counts}


def outputs_of_runs(named: Path, out_dir: Path) -> dict[Path, Path]:
    """Reduced store of every run that a name stands for, in natural order, or that of a list.

    Parameters
    ----------
    named : Path
        A run; a glob that the shell left alone, as ``'runs/*.zarr'``; or ``@`` and the name of a
        list of runs, one path a line. Each file is a run of its own here.
    out_dir : Path
        Gets an output for each run, ``NAME.zarr``.

    Raises
    ------
    RunNotFound
        If it stands for nothing.
    UsageError
        If two runs would have one output, the folder lies in a run, or the runs lie in an object
        store.
    """
    if str(named).startswith("s3:/"):
        raise UsageError(
            f"--out-dir {out_dir}: runs of an object store are filtered one by one; give --out"
        )
    outputs = {run: out_dir / f"{run.stem}.zarr" for run in expand_input(named, kinds=())}
    folder = out_dir.resolve()
    for run in outputs:
        if run.resolve() in (folder, *folder.parents):
            raise UsageError(
                f"--out-dir {out_dir}: lies in the run {run}, which is never written to; choose "
                "another folder"
            )
    for out, n in Counter(outputs.values()).items():
        if n > 1:
            runs = " and ".join(str(run) for run, own in outputs.items() if own == out)
            raise UsageError(
                f"--in: {runs} would both become {out}; filter them into folders of their own"
            )
    return outputs


def filter_runs(
    outputs: Mapping[Path, Path],
    filter_one: Callable[[Path, Path], Report],
    *,
    tell: Callable[[Outcome], None] = lambda _: None,
) -> Outcomes:
    """Filter run after run; one that fails stops no other.

    What is there already and was made from the same run, whole and as it is now, is left alone. A
    cluster that fails ends it all: the runs after it would fail likewise.

    Parameters
    ----------
    outputs : mapping of Path to Path
        See `outputs_of_runs`.
    filter_one : callable
        Filters the run at a path into a store, whose folder is made if need be.
    tell : callable
        Given what became of each run as soon as it is known.

    Raises
    ------
    ClusterError
        If the cluster fails.
    """
    done = []
    for run, out in outputs.items():
        done.append(_outcome(run, out, filter_one))
        tell(done[-1])
    return Outcomes(runs=tuple(done))


def _outcome(run: Path, out: Path, filter_one: Callable[[Path, Path], Report]) -> Outcome:
    """Filter one run, whatever comes of it."""
    try:
        with output_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        return Outcome(in_=run, out=out, report=filter_one(run, out))
    except ClusterError:
        raise
    except OutputExists as error:
        return Outcome(in_=run, out=out, error=_in_the_way(out, run, error))
    except SfxReduceError as error:
        return Outcome(in_=run, out=out, error=error)


def _in_the_way(out: Path, run: Path, error: OutputExists) -> SfxReduceError | None:
    """Why what is there cannot be left for the output of a run; None if it is that."""
    try:
        manifest = read_manifest(out)
        made = (out / MANIFEST_FILE).stat().st_mtime_ns
        changed = max((facts.st_mtime_ns for _, facts in looked_at([run])), default=0)
    except (VerificationError, SourceError, OSError):
        return error
    if Path(manifest.source) != run.absolute():
        return error
    if manifest.incomplete or changed > made:
        found = "while it looked unfinished" if manifest.incomplete else "before it was changed"
        return OutputExists(
            f"{out}: was made of {run} {found}; choose another --out-dir, or pass --overwrite"
        )
    return None
