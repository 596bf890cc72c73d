"""The papers in an evidence folder: plan, approvals, holds, tickets; closed, and hashed.

A field that is not known is refused (R16): it could be a condition that is not understood here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from sfxreduce.archive.rules.policy import ClosedTable, Policy
from sfxreduce.archive.rules.refusals import ArchiveRefused, refuse
from sfxreduce.archive.tape.packages import Package
from sfxreduce.archive.tape.paths import folder_of
from sfxreduce.errors import SchemaError
from sfxreduce.io.files.durable import FileRecord

__all__ = [
    "ApprovalPaper",
    "HoldPaper",
    "JobPaper",
    "Kind",
    "LiftPaper",
    "PackagePaper",
    "PackedFile",
    "PinnedFile",
    "PlanPaper",
    "RecallPaper",
    "ReleasePaper",
    "TicketPaper",
    "paper_bytes",
    "paper_id",
    "read_paper",
]


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=4096)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
# What a disk can hold, and no less than nothing: sums of them are limits.
Size = Annotated[int, Field(ge=0, le=2**63 - 1)]
Time = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class PinnedFile(ClosedTable):
    """A file of the source run as it was when it was planned.

    Attributes
    ----------
    path : str
        Below the run; if that is a file, below the folder that it lies in.
    """

    path: Text
    size: Size
    mtime_ns: Time
    inode: int
    sha256: Sha256


class PackedFile(ClosedTable):
    """A file in a package.

    Attributes
    ----------
    path : str
        In the tar; below one of the plan's roots.
    offset : int
        Where its bytes begin in the tar.
    """

    path: Text
    size: Size
    sha256: Sha256
    offset: Size


class PackagePaper(ClosedTable):
    """Files of a payload that go to the archive as one tar.

    Attributes
    ----------
    name : str
        In the archive, after the prefix; its first part is the root that the files lie below.
    size : int
        Bytes of the tar.
    sha256 : str
        Of the tar, known before it is written.
    files : tuple of PackedFile
        In the order in which they lie there.
    """

    name: Text
    size: Size
    sha256: Sha256
    files: Annotated[tuple[PackedFile, ...], Field(min_length=1)]

    @property
    def part(self) -> str:
        """Root that the files lie below."""
        return self.name.partition("/")[0]

    @property
    def record(self) -> FileRecord:
        """The tar."""
        return FileRecord(path=self.name, size=self.size, sha256=self.sha256)

    @property
    def package(self) -> Package:
        """The plan of the tar.

        Raises
        ------
        SchemaError
            If sizes and places are not those that follow from the files.
        """
        records = [FileRecord(path=f.path, size=f.size, sha256=f.sha256) for f in self.files]
        package = Package(name=self.name, files=tuple(records))
        offsets = {file.path: file.offset for file in self.files}
        if (package.size, package.offsets) != (self.size, offsets):
            raise SchemaError(
                f"{self.name}: its places are not those of the files; the index was changed"
            )
        return package


class PlanPaper(ClosedTable):
    """What is to be archived and what may then leave the disk. Its hash is the plan's id.

    Attributes
    ----------
    run : str
        Absolute path.
    policy : Policy
        All of it, so that nobody can swap it afterwards.
    hits : str
        Absolute path of the reduced store.
    prefix : str
        What stands before all paths in the archive.
    sources : tuple of PinnedFile
        What may leave the disk.
    payload : tuple of PinnedFile
        What goes to the archive; by their paths there, after the prefix, if they go as they are.
        The first part of each is one of `roots`.
    packages : tuple of PackagePaper
        Which files of the payload go in packages; all others go as they are.
    roots : mapping of str to str
        Absolute path of the folders, or single files, that parts of the payload are in now.
    """

    plan_version: Literal[1] = 1
    run: Text
    name: Name
    planner: Name
    policy: Policy
    hits: Text
    hits_manifest_sha256: Sha256
    certificate_sha256: Sha256 | None
    experiment_end_ns: Time
    prefix: Text
    sources: Annotated[tuple[PinnedFile, ...], Field(min_length=1)]
    payload: Annotated[tuple[PinnedFile, ...], Field(min_length=1)]
    packages: tuple[PackagePaper, ...] = ()
    roots: dict[str, Text]

    @model_validator(mode="after")
    def _packages_fit(self) -> PlanPaper:
        """Every packed file is one of the payload, once, and lies where tar would put it."""
        waiting = {file.path: (file.size, file.sha256) for file in self.payload}
        for found in self.packages:
            try:
                package = found.package
            except SchemaError as error:
                raise ValueError(str(error)) from error
            for file in package.files:
                path = f"{found.part}/{file.path}"
                if waiting.pop(path, None) != (file.size, file.sha256):
                    raise ValueError(f"{found.name}: '{path}' is no file of the plan, or twice")
        return self

    @property
    def plan_id(self) -> str:
        """Hash of all of it."""
        return paper_id(self)

    def local(self, path: str) -> Path:
        """Where a file of the payload lies now."""
        part, _, rest = path.partition("/")
        return folder_of(Path(self.roots[part])) / rest

    def files_below(self, part: str) -> tuple[FileRecord, ...]:
        """Files of one part of the payload, by their paths below its root."""
        start = f"{part}/"
        return tuple(
            FileRecord(path=file.path.removeprefix(start), size=file.size, sha256=file.sha256)
            for file in self.payload
            if file.path.startswith(start)
        )

    @property
    def release_bytes(self) -> int:
        """Bytes that may leave the disk."""
        return sum(file.size for file in self.sources)

    @property
    def parcels(self) -> tuple[FileRecord, ...]:
        """What is put into the archive: packages, and files as they are; paths after the prefix."""
        packed = {f"{p.part}/{file.path}" for p in self.packages for file in p.files}
        loose = [
            FileRecord(path=file.path, size=file.size, sha256=file.sha256)
            for file in self.payload
            if file.path not in packed
        ]
        return (*(package.record for package in self.packages), *loose)

    @property
    def archive_bytes(self) -> int:
        """Bytes of one copy in the archive: tars are larger than what they hold."""
        return sum(parcel.size for parcel in self.parcels)

    @property
    def archive_files(self) -> tuple[FileRecord, ...]:
        """The same by their paths in the archive."""
        return tuple(replace(parcel, path=self.prefix + parcel.path) for parcel in self.parcels)


class ApprovalPaper(ClosedTable):
    """Somebody's word for a plan."""

    approval_version: Literal[1] = 1
    plan_id: Sha256
    by: Name
    role: Text
    at_ns: Time


class HoldPaper(ClosedTable):
    """Somebody forbids a release.

    Attributes
    ----------
    run : str
        Absolute path.
    """

    hold_version: Literal[1] = 1
    hold_id: Name
    reason: Name
    authority: Name
    by: Name
    at_ns: Time
    until_ns: Time | None
    run: Text = ""


class LiftPaper(ClosedTable):
    """Somebody lifts a hold."""

    lift_version: Literal[1] = 1
    hold_id: Name
    authority: Name
    by: Name
    at_ns: Time


class RecallPaper(ClosedTable):
    """What a recall test found; when it was written, the system tells.

    Attributes
    ----------
    tested, bad : int
        Packages and files that came back, and those that were not what was archived.
    """

    recall_version: Literal[1] = 1
    plan_id: Sha256
    by: Name
    at_ns: Time
    tested: Size
    bad: Size
    statement: Text


class JobPaper(ClosedTable):
    """Something still uses the run; whoever began it writes this, and removes it."""

    job_version: Literal[1] = 1
    name: Name
    by: Name
    since: Text = ""


class TicketPaper(ClosedTable):
    """What may leave the disk, until when, and why. It is the facility's own tool that acts.

    `packages` say in which tar of the archive a file lies; all others lie there as they are. Holds
    of the run are looked for where the policy says, wherever the ticket lies.
    """

    ticket_version: Literal[1] = 1
    plan_id: Sha256
    run: Text
    disposition: Text
    by: Name
    written_at_ns: Time
    valid_until_ns: Time
    files: tuple[PinnedFile, ...]
    bytes: Size
    packages: tuple[PackagePaper, ...] = ()
    why: tuple[Text, ...]
    journal_sha256: Sha256
    policy: Policy | None = None


class ReleasePaper(ClosedTable):
    """What the facility's tool says it did; see the documentation of the archive."""

    release_version: Literal[1] = 1
    plan_id: Sha256
    ticket_sha256: Sha256
    by: Name
    released: tuple[Text, ...]


Kind = TypeVar("Kind", bound=ClosedTable)


def paper_bytes(paper: ClosedTable) -> bytes:
    """Paper as canonical JSON."""
    text = json.dumps(paper.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return text.encode() + b"\n"


def paper_id(paper: ClosedTable) -> str:
    """Hash of a paper, in hexadecimal."""
    return hashlib.sha256(paper_bytes(paper)).hexdigest()


def read_paper(kind: type[Kind], data: bytes | str, *, where: str) -> Kind:
    """Paper from JSON.

    Raises
    ------
    ArchiveRefused
        With R16, if a field is not known, missing, or of another kind.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        faults: list[Any] = error.errors(include_url=False, include_input=False)
        found = [
            refuse("R16", f"{where}: {'.'.join(map(str, f['loc'])) or 'the file'}: {f['msg']}")
            for f in faults[:5]
        ]
        raise ArchiveRefused(found) from error
