"""One run while its bytes are weighed: what is known of it, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sfxreduce.archive.evidence.documents import PlanPaper
from sfxreduce.archive.evidence.folder import Clock
from sfxreduce.archive.evidence.gather import Gathered, gather
from sfxreduce.archive.evidence.inspect import read_reduced
from sfxreduce.archive.evidence.pins import pinned_place
from sfxreduce.archive.evidence.subject import Subject
from sfxreduce.archive.evidence.tickets import TicketBook
from sfxreduce.archive.savings.disk import DiskFile
from sfxreduce.archive.savings.targets import Target
from sfxreduce.archive.savings.values import Part
from sfxreduce.archive.steps.status import Status, status_run
from sfxreduce.decisions.decide import Decisions
from sfxreduce.errors import SfxReduceError, VerificationError
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import count_incomplete, open_table, read_manifest
from sfxreduce.io.store.manifest import Manifest
from sfxreduce.io.store.metadata import ZARR_ERRORS, open_store
from sfxreduce.io.store.names import LEDGER_GROUP, MANIFEST_GROUP

__all__ = ["RunCase", "check_files", "open_case"]


@dataclass(slots=True, kw_only=True)
class RunCase:
    """What is known of a run; filled in step by step.

    Parameters
    ----------
    found, status
        Its evidence, if that could be read.
    output : Path, optional
        Its reduced store.
    copies : list of Path
        Other reduced stores of it.
    manifest, made
        Of the output, if that could be read.
    raw : list of Path
        Where its frames lie.
    broken : bool
        Whether the run itself is a reduced store whose manifest is damaged.
    incomplete : tuple of int
        Kept events without pixels in the output, and those that lack some.
    splits : list
        Bytes of each file that was counted.
    """

    target: Target
    found: Gathered | None = None
    status: Status | None = None
    output: Path | None = None
    copies: list[Path] = field(default_factory=list)
    manifest: Manifest | None = None
    made: Decisions | None = None
    raw: list[Path] = field(default_factory=list)
    experiment: str = ""
    broken: bool = False
    incomplete: tuple[int, int] = (0, 0)
    splits: list[Mapping[Part, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def plan(self) -> PlanPaper | None:
        """The plan that counts, if there is one."""
        return self.found.plan if self.found else None

    @property
    def sound(self) -> bool:
        """Whether its evidence is as it was written."""
        return self.found is not None and not (
            self.found.facts.tampered or self.found.facts.unknown
        )

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Take down what is wrong in one line, and go on with what is left."""
        try:
            yield
        except (SfxReduceError, *ZARR_ERRORS) as error:
            line = " ".join(str(error).split()) or type(error).__name__
            named = isinstance(error, SfxReduceError)
            self.problems.append(line if named else f"{type(error).__name__}: {line}")

    def count(self, files: list[DiskFile], part: Part) -> None:
        """Count whole files."""
        self.splits += [{part: file.size} for file in files]


def open_case(target: Target, *, clock: Clock, root: Path | None, book: TicketBook) -> RunCase:
    """Find out what is known of a run; none of its frames is read.

    Parameters
    ----------
    root : Path, optional
        Folder below which tickets count for the daily limit.
    book : TicketBook
        That counts them.
    """
    case = RunCase(target=target)
    with case.guarded():
        subject = Subject(
            run=target.run, evidence=target.evidence, by="report", clock=clock, root=root
        )
        found = gather(subject.folder, subject.run, root=root, book=book)
        case.status = status_run(subject, found=found)
        case.found = found
        case.problems += [*found.facts.tampered, *found.facts.unknown]
    _choose_output(case)
    if case.output is not None:
        with case.guarded():
            case.manifest, case.made = read_reduced(case.output)
            case.incomplete = count_incomplete(case.output)
            if n := sum(case.incomplete):
                case.notes.append(
                    f"kept events that lack pixels in the output: {n:,}; not safe without the raw "
                    "run"
                )
    with case.guarded():
        case.raw = _raw_paths(case)
    with case.guarded():
        case.experiment = _experiment(case)
    return case


def _choose_output(case: RunCase) -> None:
    """Choose the store that was named, or planned with, or the youngest; others are copies."""
    target, line = case.target, case.found.contents.last("inspected") if case.found else None
    planned = [Path(case.plan.hits)] if case.plan else [Path(line["hits"])] if line else []
    known = [*([target.hits] if target.hits else planned), *reversed(target.outputs)]
    if known:
        case.output = known[0]
        case.copies = [path for path in target.outputs if path != known[0]]


def _raw_paths(case: RunCase) -> list[Path]:
    """Where the frames of a run lie: at its path, in files that it leads to or its ledger names."""
    run = case.target.run
    if run.is_file() or (case.plan and not run.exists()):
        return sorted({run, *_led_to(case)})
    if run.exists() or case.plan or case.output is None or case.manifest is None:
        return [run]
    table = open_table(case.output, LEDGER_GROUP)
    names = sorted({str(name) for name in np.unique(table["source_file"].values)} - {""})
    # A run of several files has no path of its own. One that is gone had: nothing is found here.
    return [run, *(Path(name) for name in names if not Path(name).is_relative_to(run))]


def _led_to(case: RunCase) -> list[Path]:
    """Files that a run of one file is read from, as they were planned or else as they are."""
    run, plan = case.target.run, case.plan
    if plan is not None:
        names = {file.path for file in plan.sources}
        return [pinned_place(run, name, names=names) for name in names]
    inputs: tuple[Path, ...] = ()
    with case.guarded():
        inputs = open_run(run).source.inputs
    return list(inputs)


def _experiment(case: RunCase) -> str:
    """What the run says, or its output, or else the folder it lies in."""
    run, named = case.target.run, ""
    if (run / "zarr.json").exists():
        if (run / MANIFEST_GROUP).exists():
            case.broken = True
            read_manifest(run)
            case.broken = False
        named = str(open_store(str(run)).attributes.get("experiment", ""))
    if not named and case.manifest is not None:
        with suppress(SfxReduceError):
            named = str(open_store(str(case.output)).attributes.get("experiment", ""))
    return named or run.parent.name


def check_files(case: RunCase, files: list[DiskFile]) -> None:
    """Compare names and sizes of an output's files with its manifest.

    Raises
    ------
    VerificationError
        If one is missing, or of another size.
    """
    if case.manifest is None or case.output is None:
        return
    sizes = {str(file.path.relative_to(case.output)): file.size for file in files}
    for record in case.manifest.files:
        if sizes.get(record.path) != record.size:
            raise VerificationError(
                f"{case.output / record.path}: expected {record.size} bytes, found "
                f"{sizes.get(record.path, 'no file')}; run 'sfxreduce verify --quick'"
            )
