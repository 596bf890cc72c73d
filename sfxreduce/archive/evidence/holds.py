"""Where holds lie, which of them stand, and who may lift one.

A hold is a paper of the account that placed it. It lies in the policy's folder of holds, which no
planner owns, or in the evidence if the policy names none. It is never removed: whoever may lift it
lays another paper beside it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sfxreduce.archive.evidence import owners
from sfxreduce.archive.evidence.documents import HoldPaper, LiftPaper, paper_bytes, read_paper
from sfxreduce.archive.rules.facts import Hold
from sfxreduce.archive.rules.policy import Policy
from sfxreduce.archive.rules.refusals import ArchiveRefused
from sfxreduce.errors import OutputError
from sfxreduce.io.files.durable import output_errors
from sfxreduce.io.files.journal import Entry

__all__ = ["FoundHolds", "HoldShelf", "hold_of"]

FOLDER = "holds"
LIFTED = ".lifted"
HOLD_BYTES = 1 << 20
"""Longest paper that is read: its texts have a few hundred characters each."""

READABLE = 0o644
"""In a folder of holds every releaser reads them, whatever the umask."""

NOT_BELIEVED = "its paper cannot be believed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundHolds:
    """Holds of a run.

    Parameters
    ----------
    holds : tuple of Hold
        Those that were not lifted.
    missing : tuple of str
        Those that the journal knows, and that were taken away.
    unknown : tuple of str
        What is not understood of them.
    problem : str
        Why it cannot be known who holds the run; empty if it is.
    """

    holds: tuple[Hold, ...]
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldShelf:
    """Folders that the holds of a run lie in.

    Parameters
    ----------
    evidence : Path
        Of the run.
    runs : tuple of Path
        The run, by every path that it is known by.
    policy : Policy
        Names the folder of holds, if there is one, and who may lift.
    planner : int, optional
        Account that owns the plan.
    """

    evidence: Path
    runs: tuple[Path, ...]
    policy: Policy
    planner: int | None = None

    @property
    def root(self) -> Path | None:
        """The policy's folder of holds."""
        named = self.policy.holds.holds_root
        return Path(named) if named else None

    def found(self, entries: Sequence[Entry] = ()) -> FoundHolds:
        """Every hold that lies there or that the journal knows of, unless it was lifted."""
        files, problem = [], ""
        for listed in (self._in_root, self._own):
            try:
                files += listed()
            except OSError as error:
                problem = f"{error.filename}: cannot be read ({error.strerror or error})"
        unknown: list[str] = []
        holds = [hold for file in files if (hold := self._hold(file, unknown)) is not None]
        there = {_hold_id(file) for file in files}
        known = {str(e.body["hold_id"]) for e in entries if e.body.get("event") == "held"}
        gone = () if problem else sorted(known - there)
        return FoundHolds(
            holds=tuple(holds),
            missing=tuple(f"the hold {name} was taken away" for name in gone),
            unknown=tuple(unknown),
            problem=problem or self._root_problem(),
        )

    def place(self, paper: HoldPaper) -> Path:
        """Lay a hold where it counts.

        Raises
        ------
        OutputError
            If this account may not write there.
        """
        below, name = self._place(paper.hold_id)
        with output_errors(below):
            if self.root is None:
                self.evidence.mkdir(exist_ok=True)
        _check_rights(below, self.root)
        with output_errors(below / name):
            mode = None if self.root is None or owners.is_shared(below) else READABLE
            owners.write_owned(below / name, paper_bytes(paper), below=below, mode=mode)
        return below / name

    def lift(self, paper: LiftPaper) -> None:
        """Lay the paper that lifts a hold beside it.

        Raises
        ------
        OutputError
            If this account may not write there.
        """
        files = (file for listed in (self._in_root, self._own) for file in listed())
        file = next(file for file in files if _hold_id(file) == paper.hold_id)
        below = self.evidence if file.parent == self.evidence / FOLDER else file.parent
        _check_rights(file.parent, self.root)
        with output_errors(file):
            mode = None if owners.is_shared(below) or below == self.evidence else READABLE
            owners.write_owned(_lift_of(file), paper_bytes(paper), below=below, mode=mode)

    def may_lift(self, hold: Hold, uid: int) -> bool:
        """Whether an account may lift a hold: its own, root, or one that the policy names."""
        people = {str(role): names for role, names in self.policy.approvals.people.items()}
        named = owners.account_name(uid) in people.get(hold.authority, ())
        return named or uid in (0, hold.uid) or not self.policy.holds.lift_by_same

    def _own(self) -> list[Path]:
        try:
            return _papers(self.evidence / FOLDER, ("",))
        except FileNotFoundError:
            return []

    def _in_root(self) -> list[Path]:
        if self.root is None:
            return []
        return _papers(self.root, tuple(f"{_run_key(run)}." for run in self.runs))

    def _place(self, hold_id: str) -> tuple[Path, str]:
        if self.root is None:
            return self.evidence, f"{FOLDER}/{hold_id}.json"
        return self.root, f"{_run_key(self.runs[0])}.{hold_id}.json"

    def _hold(self, file: Path, unknown: list[str]) -> Hold | None:
        """A hold, if it stands; one that cannot be read holds all the same."""
        hold_id = _hold_id(file)
        held = Hold(hold_id=hold_id, reason=NOT_BELIEVED, authority="unknown", by="", at_ns=0)
        try:
            owned = owners.read_owned(file, most_bytes=HOLD_BYTES)
        except OSError as error:
            return replace(held, reason=f"{NOT_BELIEVED}: {file}: {error.strerror or error}")
        held = replace(held, uid=owned.uid)
        if owned.problem:
            return replace(held, reason=f"{NOT_BELIEVED}: {file}: {owned.problem}")
        try:
            held = hold_of(
                read_paper(HoldPaper, owned.data, where=str(file)), hold_id=hold_id, uid=owned.uid
            )
        except ArchiveRefused as error:
            unknown.append(f"{file}: {error}")
        return None if self._is_lifted(file, held) else held

    def _is_lifted(self, file: Path, hold: Hold) -> bool:
        try:
            owned = owners.read_owned(_lift_of(file), most_bytes=HOLD_BYTES)
            paper = read_paper(LiftPaper, owned.data, where=str(file))
        except (OSError, ArchiveRefused):
            return False
        believed = not owned.problem and paper.hold_id == hold.hold_id
        return believed and self.may_lift(hold, owned.uid)

    def _root_problem(self) -> str:
        """Why holds could be taken out of their folder; empty if they cannot."""
        if self.root is None:
            return ""
        facts = self.root.stat()
        others = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if others and not facts.st_mode & stat.S_ISVTX:
            return f"{self.root}: others could remove holds; run 'chmod +t' on it"
        if self.policy.approvals.two_person and facts.st_uid == self.planner != 0:
            return f"{self.root}: belongs to the planner, who could remove holds"
        return ""


def hold_of(paper: HoldPaper, *, hold_id: str, uid: int) -> Hold:
    """The hold that a paper places."""
    facts = paper.model_dump(exclude={"hold_version", "run"})
    return Hold(**{**facts, "hold_id": hold_id, "uid": uid})


def _papers(folder: Path, begin: tuple[str, ...]) -> list[Path]:
    """Papers of holds whose names begin like one of these."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.startswith(begin) and e.name.endswith(".json")]
    return [folder / name for name in sorted(names) if not name.endswith(f"{LIFTED}.json")]


def _hold_id(file: Path) -> str:
    return file.stem.rpartition(".")[2]


def _lift_of(file: Path) -> Path:
    return file.with_name(f"{file.stem}{LIFTED}.json")


def _run_key(run: Path) -> str:
    """What names of papers about a run begin with, by the path that leads to it without links."""
    return hashlib.sha256(os.fsencode(run.resolve())).hexdigest()[:16]


def _check_rights(folder: Path, root: Path | None) -> None:
    if os.access(folder, os.W_OK):
        return
    me = owners.account_name(os.geteuid())
    if not folder.is_dir():
        raise OutputError(
            f"{folder}: there is no such folder of holds; make it with 'mkdir -m 1777', or name "
            "another one as holds_root of the policy"
        )
    advice = "ask its owner for the right to"
    if root is None:
        advice = (
            "ask its owner to share it by 'sfxreduce archive plan' with --group GROUP, or use a "
            "policy with a holds_root that every account may write to"
        )
    raise OutputError(f"{folder}: {me} may not place a hold there; {advice}")
