"""Options that the commands of ``sfxreduce archive``, ``hold`` and ``report`` share."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

import sfxreduce
from sfxreduce.errors import UsageError

if TYPE_CHECKING:
    from sfxreduce.archive.evidence.subject import Subject
    from sfxreduce.archive.rules.policy import Policy

__all__ = [
    "By",
    "EvidenceDir",
    "ExecuteToken",
    "OwnPolicy",
    "PolicyPath",
    "RunPath",
    "RunPaths",
    "To",
    "archives",
    "given_policy",
    "nanoseconds",
    "subject_of",
]

RunPath = Annotated[Path, typer.Argument(help="Source run; never written to.")]
RunPaths = Annotated[list[Path], typer.Argument(help="Source runs; never written to.")]
EvidenceDir = Annotated[
    Path | None,
    typer.Option(
        "--evidence", metavar="DIR", help="Evidence folder; default: RUN.evidence beside the run."
    ),
]
By = Annotated[
    str,
    typer.Option(
        "--as",
        metavar="NAME",
        help="Name to write down; default: user name. People are told apart by their accounts.",
    ),
]
PolicyPath = Annotated[
    Path | None,
    typer.Option("--policy", metavar="FILE", help="TOML file; default: the laptop preset."),
]
OwnPolicy = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        help="Your own copy of the plan's policy, which nobody else can change; its pools are "
        "where copies are, if no --to is given.",
    ),
]
ExecuteToken = Annotated[
    str | None,
    typer.Option(
        "--execute",
        metavar="PLANID",
        help="Do it: the first 8 characters of the plan's id, or more.",
    ),
]
To = Annotated[
    list[str] | None,
    typer.Option(
        "--to",
        metavar="POOL=ARCHIVE",
        help="Where a copy goes, or is kept, such as a=posix:/mnt/tape. Repeat for each copy.",
    ),
]


def subject_of(run: Path, evidence: Path | None, by: str, *, root: Path | None = None) -> Subject:
    """Return the run, its evidence, and who acts."""
    return sfxreduce.archive.Subject.of(run, by=by or _user(), evidence=evidence, root=root)


def given_policy(path: Path | None) -> Policy | None:
    """Read the policy, if one was named."""
    return sfxreduce.archive.read_policy(path) if path else None


class Archives(TypedDict):
    """Where copies are, by the caller's own word, as the library names it."""

    to: Sequence[str]
    policy: Policy | None


def archives(to: list[str] | None, policy: Path | None) -> Archives:
    """Archives that were named, and the caller's own policy, which is acted on."""
    return {
        "to": to or (),
        "policy": sfxreduce.archive.read_own_policy(policy) if policy else None,
    }


def nanoseconds(date: str, *, option: str) -> int | None:
    """Nanoseconds since 1970 of a date or time; UTC unless it says otherwise.

    Examples
    --------
    >>> nanoseconds("2026-01-02", option="--until")
    1767312000000000000
    """
    if not date:
        return None
    try:
        moment = datetime.fromisoformat(date)
    except ValueError as error:
        raise UsageError(f"{option}: expected a date such as 2026-01-31, found '{date}'") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 10**9


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise UsageError("archive: this user has no name here; pass --as NAME") from error
