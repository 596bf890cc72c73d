"""Options and results that the commands of ``sfxreduce archive`` and ``hold`` share."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfxreduce.errors import UsageError
from sfxreduce.report.report import human_bytes
from sfxreduce_cli.output import print_json, print_table

if TYPE_CHECKING:
    from sfxreduce.archive.evidence.subject import Subject
    from sfxreduce.archive.rules.policy import Policy

__all__ = [
    "By",
    "EvidenceDir",
    "ExecuteToken",
    "PolicyPath",
    "RunPath",
    "RunPaths",
    "To",
    "given_policy",
    "nanoseconds",
    "print_facts",
    "print_runs",
    "subject_of",
]

RunPath = Annotated[Path, typer.Argument(help="Source run; never written to.")]
RunPaths = Annotated[list[Path], typer.Argument(help="Source runs; never written to.")]
EvidenceDir = Annotated[
    Path | None,
    typer.Option("--evidence", metavar="DIR", help="Its evidence; RUN.evidence beside it else."),
]
By = Annotated[str, typer.Option("--as", metavar="NAME", help="Who acts; else the user's name.")]
PolicyPath = Annotated[
    Path | None,
    typer.Option("--policy", metavar="FILE", help="TOML; the laptop preset else."),
]
ExecuteToken = Annotated[
    str | None,
    typer.Option(
        "--execute", metavar="PLANID", help="Do it: the first 8 letters of the plan's id, or more."
    ),
]
To = Annotated[
    list[str] | None,
    typer.Option(
        "--to",
        metavar="POOL=ARCHIVE",
        help="Where a copy goes, or lies: such as a=posix:/mnt/tape. Repeat.",
    ),
]


def subject_of(run: Path, evidence: Path | None, by: str, *, root: Path | None = None) -> Subject:
    """Return the run, its evidence, and who acts."""
    from sfxreduce.archive.evidence import subject

    # The name is looked up here, so that a clock can be put in its place.
    return subject.Subject.of(
        run, by=by or _user(), evidence=evidence, clock=subject.wall_clock, root=root
    )


def given_policy(path: Path | None) -> Policy | None:
    """Read the policy, if one was named."""
    from sfxreduce.archive.rules.policy import read_policy

    return read_policy(path) if path else None


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
        found = datetime.fromisoformat(date)
    except ValueError as error:
        raise UsageError(f"{option}: expected a date such as 2026-01-31, found '{date}'") from error
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return int(found.timestamp()) * 10**9


def print_facts(title: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what was done or found."""
    if as_json:
        print_json(facts)
    else:
        print_table(title, facts)


def print_runs(name: str, rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print one block for each run; as JSON a list, and the facts themselves if it is one run."""
    if as_json:
        print_json({**(rows[0] if len(rows) == 1 else {}), name: list(rows)})
        return
    for row in rows:
        print_table(str(row["run"]), {key: _told(v) for key, v in row.items() if key != "run"})


def _told(value: object) -> object:
    if isinstance(value, list):
        return "; ".join(map(_words, value))
    return value


def _words(value: Any) -> str:
    """A refusal, or a package."""
    if not isinstance(value, dict):
        return str(value)
    if "code" in value:
        return f"{value['code']} {value['message']}"
    return f"{value['name']}: {value['files']} files, {human_bytes(value['bytes'])}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise UsageError("archive: the user has no name here; pass --as NAME") from error
