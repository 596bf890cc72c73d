"""Which files of a plan go to the archive together, and their tars while they are put."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from sfxreduce.archive.evidence.documents import PackagePaper, PackedFile, PlanPaper
from sfxreduce.archive.evidence.workfolder import work_folder
from sfxreduce.archive.rules.policy import GB
from sfxreduce.archive.tape.packages import Package, pack
from sfxreduce.archive.tape.paths import folder_of
from sfxreduce.archive.tape.tars import sum_package, write_package
from sfxreduce.io.files.durable import FileRecord

__all__ = ["Tars", "pack_payload", "tars_of"]

SMALL = 0.1
"""Share of a package's size; files of that size or more go as they are."""

STEM = "package"


def pack_payload(plan: PlanPaper) -> PlanPaper:
    """Plan whose small files go in packages, as its policy says.

    The files that are packed are read once more, so that the plan knows the sha256 of each tar.
    Shards of frames are packed apart from all else of a run store: whoever restores an event needs
    all else, and one shard.

    Raises
    ------
    SourceError
        If a file is not as it was pinned.
    """
    target = int(plan.policy.release.package_gb * GB)
    found: list[PackagePaper] = []
    for part, root in plan.roots.items():
        files = plan.files_below(part)
        small = [file for file in files if file.size < SMALL * target]
        # One file is no package.
        if len(small) < 2:
            continue
        source = folder_of(Path(root))
        found += [_paper(p, part, source) for p in _packages(small, target, _stem(files))]
    return plan.model_copy(update={"packages": tuple(found)})


def _packages(files: Sequence[FileRecord], target: int, stem: str) -> Iterator[Package]:
    shards = [file for file in files if _is_shard(file.path)]
    others = [file for file in files if not _is_shard(file.path)]
    for name, group in ((f"{stem}-columns", others), (stem, shards)):
        packed = pack(group, target_bytes=target, stem=name)
        yield from (package for package in packed if len(package.files) > 1)


def _is_shard(path: str) -> bool:
    return "/frames/c/" in f"/{path}"


def _stem(files: Sequence[FileRecord]) -> str:
    """Beginning of the packages' names that no file of the run has."""
    stem = STEM
    while any(file.path.startswith(stem) for file in files):
        stem = f"_{stem}"
    return stem


def _paper(package: Package, part: str, root: Path) -> PackagePaper:
    tar = sum_package(package, source=root)
    return PackagePaper(
        name=f"{part}/{package.name}",
        size=tar.size,
        sha256=tar.sha256,
        files=tuple(
            PackedFile(**asdict(file), offset=package.offsets[file.path]) for file in package.files
        ),
    )


def tars_of(plan: PlanPaper, part: str) -> tuple[tuple[Package, FileRecord], ...]:
    """Packages of one part of a plan and their tars, by their paths below that part."""
    return tuple(
        (found.package, replace(found.record, path=found.name.removeprefix(f"{part}/")))
        for found in plan.packages
        if found.part == part
    )


class Tars:
    """Tars of a plan, one at a time in a work folder; made by `Tars.opened`."""

    def __init__(self, plan: PlanPaper, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._packages = {found.name: found for found in plan.packages}
        self._made: tuple[str, Path] | None = None

    @classmethod
    @contextmanager
    def opened(cls, plan: PlanPaper, *, evidence: Path) -> Iterator[Tars]:
        """Tars that are gone afterwards, and those of calls that were killed before."""
        with work_folder(evidence, "packing") as folder:
            yield cls(plan, folder)

    def members(self, parcel: str) -> tuple[str, ...]:
        """Files of the payload that go with one parcel of the plan."""
        found = self._packages.get(parcel)
        if found is None:
            return (parcel,)
        return tuple(f"{found.part}/{file.path}" for file in found.files)

    def local(self, parcel: str, *, check: Callable[[Sequence[str]], None]) -> Path:
        """Where a parcel lies now; a package is written first, unless it was the last one.

        Parameters
        ----------
        parcel : str
            Its path; see `PlanPaper.parcels`.
        check : callable
            Called with the files of the payload that are about to be read.

        Raises
        ------
        SourceError
            If a file is not as it was planned.
        OutputError
            If there is no room for the tar.
        """
        check(self.members(parcel))
        found = self._packages.get(parcel)
        if found is None:
            return self._plan.local(parcel)
        if self._made is None or self._made[0] != parcel:
            if self._made is not None:
                old, self._made = self._made[1], None
                old.unlink()
            package = found.package
            # Only the tar's own name matters here, not the folders before it.
            name = Path(package.name).name
            flat = replace(package, name=name)
            source = folder_of(Path(self._plan.roots[found.part]))
            write_package(flat, source=source, folder=self._folder)
            self._made = (parcel, self._folder / name)
        return self._made[1]
