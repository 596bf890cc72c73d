"""What an archive holds of a run, and how to get single files of it back."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from sfxreduce.archive.tape.backends import Backend
from sfxreduce.archive.tape.packages import Package
from sfxreduce.archive.tape.paths import check_path
from sfxreduce.archive.tape.recall import recall_file
from sfxreduce.archive.tape.tars import read_member
from sfxreduce.errors import ArchiveError, SchemaError
from sfxreduce.io.files.durable import PARTIAL, FileRecord, output_errors

__all__ = ["Holding", "fetch_files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What an archive holds of one run.

    Parameters
    ----------
    files : tuple of FileRecord
        Of the run, by their paths below it.
    copies : tuple of (Backend, str)
        Archive and pool of each copy, in the order in which they are tried.
    prefix : str
        What stands before the paths in the archive, such as ``experiment/run/``.
    packages : tuple of tuple
        Packages that were put in place of single files, and the record of each one's tar. Files
        that are in none were put as they are.
    opened : str
        Path of the file to open, where the others are what it leads to; empty where any may be.
    data_path : str
        Of the frames in it; see `sfxreduce.io.open.open_run`.

    Raises
    ------
    SchemaError
        If a path is not safe.
    """

    files: tuple[FileRecord, ...]
    copies: tuple[tuple[Backend, str], ...]
    prefix: str = ""
    packages: tuple[tuple[Package, FileRecord], ...] = ()
    opened: str = ""
    data_path: str = ""

    def __post_init__(self) -> None:
        for file in self.files:
            check_path(self.prefix + file.path, where="archived run")


def fetch_files(
    holding: Holding, paths: Iterable[str], *, into: Path, tars: Path | None = None
) -> int:
    """Recall files of a run; each is compared with its record before it takes its name.

    A copy that is bad is told apart and the next one tried. Of a package the tar is recalled once,
    into the same folder, the files are read out of it, and it is removed again.

    Parameters
    ----------
    paths : iterable of str
        Of the files, below the run.
    into : Path
        Folder that takes the run's place; what is there already is not recalled again.
    tars : Path, optional
        Folder in which tars stay, so that a later call with the same one need not recall them.

    Returns
    -------
    int
        Bytes that were recalled.

    Raises
    ------
    SchemaError
        If the archive does not hold such a file.
    ArchiveError
        If no copy of a file is good.
    OutputError
        If it cannot be written.
    """
    records = {file.path: file for file in holding.files}
    packed = {
        file.path: number for number, (p, _) in enumerate(holding.packages) for file in p.files
    }
    wanted: dict[int | None, list[str]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        if path not in records:
            raise SchemaError(f"archived run: it has no file '{path}'")
        if not (into / path).exists():
            wanted[packed.get(path)].append(path)
    n_bytes = 0
    for path in wanted.pop(None, ()):
        _recall(holding, records[path], into / path)
        n_bytes += records[path].size
    for number, members in wanted.items():
        if number is not None:
            n_bytes += _unpack(holding, number, members, into, tars)
    return n_bytes


def _unpack(
    holding: Holding, number: int, members: Iterable[str], into: Path, tars: Path | None
) -> int:
    """Recall a package, unless it is here, and take some files out of it."""
    package, tar = holding.packages[number]
    local = (tars or into) / (f"{number}.tar" if tars else f".{uuid.uuid4().hex[:12]}{PARTIAL}")
    n_bytes = 0
    try:
        if not local.exists():
            _recall(holding, tar, local)
            n_bytes = tar.size
        for path in members:
            target = into / path
            with output_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
            read_member(local, package, path, into=target)
    finally:
        if tars is None:
            local.unlink(missing_ok=True)
    return n_bytes


def _recall(holding: Holding, file: FileRecord, target: Path) -> None:
    """Recall a file from the first copy that is good."""
    archived = replace(file, path=holding.prefix + file.path)
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    for backend, pool in holding.copies:
        partial = target.with_name(f".{uuid.uuid4().hex[:12]}{PARTIAL}")
        failure = recall_file(backend, pool, archived, partial)
        if failure is None:
            with output_errors(target):
                partial.replace(target)
            return
        problems.append(f"{backend.name} pool {pool}: {failure.problem}")
    raise ArchiveError(
        f"{archived.path}: no copy came back as it was archived ({'; '.join(problems)}); ask the "
        "archive's operators"
    )
