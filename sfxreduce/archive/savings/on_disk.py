"""Weigh runs, what was made of them, and what is known of them, file by file.

All raw data are counted first, then outputs, then evidence, then copies: a file that has several
names counts once, for what it is first. No frame is read for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from sfxreduce.archive.evidence.folder import Clock
from sfxreduce.archive.evidence.tickets import TicketBook
from sfxreduce.archive.savings.costs import Rates
from sfxreduce.archive.savings.disk import DiskFile, Weighed, walk_files
from sfxreduce.archive.savings.released import freed_bytes, lost_hits, pool_folders
from sfxreduce.archive.savings.run_case import RunCase, check_files, open_case
from sfxreduce.archive.savings.store_bytes import frame_parts, kept_parts, weigh
from sfxreduce.archive.savings.sums import Savings
from sfxreduce.archive.savings.targets import Target
from sfxreduce.archive.savings.values import Alternatives, Freed, LostHits, Part, RunSavings, Weight
from sfxreduce.errors import VerificationError
from sfxreduce.pipeline.stages.settings import crystfel_paths

__all__ = ["weigh_savings"]

EVIDENCE_STORES = {"audited.zarr": Part.AUDIT_SET, "rejects.zarr": Part.EXTRA_COPIES}
"""Stores that a plan keeps in the evidence, and what their frames are there for."""

Measure = Callable[[RunCase], Alternatives | None]


def weigh_savings(
    targets: Sequence[Target],
    *,
    rates: Rates,
    clock: Clock,
    root: Path | None = None,
    measure: Measure | None = None,
) -> Savings:
    """Sum up what was saved.

    Parameters
    ----------
    clock : callable
        Time in nanoseconds since 1970.
    root : Path, optional
        Whatever else lies below is summed up as stray.
    measure : callable, optional
        Measures the alternatives of a run, for which frames are read.

    Returns
    -------
    Savings
        What is wrong with a run is told with it; what could not be looked at below `root` is in
        `unseen`.
    """
    book = TicketBook(clock())
    cases = [open_case(target, clock=clock, root=root, book=book) for target in targets]
    cases = _without_outputs(cases)
    scales = _Scales(root)
    for weigh_part in (scales.raw, scales.output, scales.evidence, scales.copies):
        for case in cases:
            with case.guarded():
                weigh_part(case)
    unseen: list[str] = []
    stray = [] if root is None else scales.weighed.new(walk_files(root, unseen=unseen))
    return Savings(
        runs=tuple(_summed(case, scales.weighed, measure, now_ns=clock()) for case in cases),
        rates=rates,
        paths=scales.paths,
        stray=Weight(bytes=sum(file.size for file in stray), files=len(stray)),
        unseen=tuple(unseen),
    )


def _without_outputs(cases: Sequence[RunCase]) -> list[RunCase]:
    """Runs that are no output of another one: ``*.zarr`` names both, and some outputs are broken.

    What has evidence of its own is a run all the same.
    """
    outputs = {path for case in cases for path in (case.output, *case.copies)}
    return [c for c in cases if c.target.run not in outputs or c.target.evidence.exists()]


class _Scales:
    """Counts the files of runs, each once, and remembers where it looked."""

    def __init__(self, root: Path | None) -> None:
        self.weighed = Weighed()
        self._looked: set[Path] = set() if root is None else {root}

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths that were walked, but for those that lie below others."""
        outer = [p for p in self._looked if not self._looked.intersection(p.parents)]
        return tuple(sorted(map(str, outer)))

    def new(self, path: Path) -> list[DiskFile]:
        """Take the files of a path that were not counted yet."""
        return self.weighed.new(self._walk(path))

    def _walk(self, path: Path) -> list[DiskFile]:
        found = list(walk_files(path))
        if found:
            self._looked.add(path)
        return found

    def raw(self, case: RunCase) -> None:
        """Count the source."""
        for path in case.raw:
            case.count(self.new(path), Part.UNASSIGNED if case.broken else Part.RAW)

    def output(self, case: RunCase) -> None:
        """Count the reduced store: frames by their decisions, all else as sidecars."""
        if case.output is None:
            case.notes.append("no output: it was not filtered, or its output is not known")
            return
        walked = self._walk(case.output)
        fresh = self.weighed.new(walked)
        if not walked:
            raise VerificationError(f"{case.output}: the output is not there; name it with --hits")
        made = case.made
        if made is None:
            case.count(fresh, Part.UNASSIGNED)
            return
        output = case.output
        self._split(case, fresh, partial(kept_parts, output, made, fresh))
        check_files(case, walked)

    def evidence(self, case: RunCase) -> None:
        """Count the evidence; stores of frames that a plan keeps there are no sidecars."""
        folder = case.target.evidence
        for name, part in EVIDENCE_STORES.items():
            store = folder / name
            if store.is_dir():
                files = self.new(store)
                self._split(case, files, partial(frame_parts, store, files, part))
        case.count(self.new(folder), Part.SIDECARS)

    def copies(self, case: RunCase) -> None:
        """Count what lies there once more: other outputs, CXI, and copies in archives."""
        for store in case.copies:
            case.count(self.new(store), Part.EXTRA_COPIES)
        for path, part in _crystfel(case.output):
            case.count(self.new(path), part)
        for folder in pool_folders(case).values():
            if folder is not None:
                case.count(self.new(folder), Part.ARCHIVE_COPIES)

    def _split(
        self,
        case: RunCase,
        files: Iterable[DiskFile],
        split: Callable[[], Mapping[Path, Mapping[Part, int]]],
    ) -> None:
        """Count files by their parts; what cannot be told apart is counted all the same."""
        parts: Mapping[Path, Mapping[Part, int]] | None = None
        with case.guarded():
            parts = split()
        for file in files:
            whole = {Part.UNASSIGNED if parts is None else Part.SIDECARS: file.size}
            case.splits.append((parts or {}).get(file.path, whole))


def _crystfel(output: Path | None) -> list[tuple[Path, Part]]:
    """Files for CrystFEL that have the name of the output."""
    if output is None:
        return []
    stem = output.name.removesuffix(".zarr")
    found = []
    for suffix in (".cxi", ".h5"):
        frames, *beside = crystfel_paths(output.with_name(stem + suffix))
        if frames.is_file():
            found += [(frames, Part.EXTRA_COPIES), *((path, Part.SIDECARS) for path in beside)]
    return found


def _summed(case: RunCase, weighed: Weighed, measure: Measure | None, *, now_ns: int) -> RunSavings:
    tape = sum(split.get(Part.ARCHIVE_COPIES, 0) for split in case.splits)
    freed, lost, alternatives = Freed(tape=tape), LostHits(), None
    with case.guarded():
        freed = freed_bytes(case, weighed, tape=tape, now_ns=now_ns)
    with case.guarded():
        lost = lost_hits(case)
    if measure is not None:
        with case.guarded():
            alternatives = measure(case)
    manifest = case.manifest
    return RunSavings(
        run=str(case.target.run),
        experiment=case.experiment or case.target.run.parent.name,
        state=str(case.status.state) if case.status else "UNREADABLE",
        output=str(case.output) if case.output else None,
        events=manifest.source_events if manifest else 0,
        hits=manifest.hits if manifest else 0,
        undecided=manifest.undecided if manifest else 0,
        rejected=manifest.rejected if manifest else 0,
        kept_without_pixels=case.incomplete[0],
        kept_with_holes=case.incomplete[1],
        parts=weigh(case.splits),
        freed=freed,
        lost=lost,
        notes=tuple(dict.fromkeys(case.notes)),
        problem="; ".join(dict.fromkeys(case.problems)),
        alternatives=alternatives,
    )
