"""The evidence folder of a run: a journal, and papers that it vouches for.

Before a paper is written, its hash stands in the journal; after it is there, it stands there once
more. So a crash leaves an old paper or a new one, and any other is a forgery. Holds are the
exception: one that the journal does not know of counts all the same, so that a hold can be placed
while something else is at work on the run.

Several accounts work in one folder if it is shared with a group: it has the sticky bit then, so
that nobody removes or replaces the papers of others. Whose word a paper is, its owner tells.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sfxreduce.archive.evidence import owners
from sfxreduce.archive.evidence.owners import Owned
from sfxreduce.archive.rules.refusals import ArchiveRefused, refuse
from sfxreduce.archive.rules.states import State
from sfxreduce.errors import OutputError, SourceError, VerificationError
from sfxreduce.io.files.durable import output_errors
from sfxreduce.io.files.journal import Entry, Journal, open_journal, read_journal
from sfxreduce.io.writers.publish import recover_in

__all__ = [
    "APPENDED",
    "JOURNAL",
    "Clock",
    "Contents",
    "EvidenceFolder",
    "EvidenceWriter",
    "evidence_path",
]

JOURNAL = "journal.jsonl"
APPENDED = frozenset([JOURNAL, f"{JOURNAL}.head"])
"""What every account that works in a shared folder adds to."""

SUFFIX = ".evidence"
VOUCHED = (
    "plan.json",
    "certificate.json",
    "release-ticket.json",
    "release-ticket.json.sig",
    "release-receipt.json",
)
VOUCHED_FOLDERS = ("approvals", "receipts", "recalls")
PAPER_BYTES = 1 << 28

Clock = Callable[[], int]
"""Gives the time in nanoseconds since 1970."""


def evidence_path(run: Path, given: Path | None = None) -> Path:
    """Where the evidence of a run lies, if no other folder is given: beside the run.

    Examples
    --------
    >>> evidence_path(Path("/data/r0042.zarr"))
    PosixPath('/data/r0042.zarr.evidence')
    """
    return given if given is not None else run.with_name(run.name + SUFFIX)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What an evidence folder holds.

    Parameters
    ----------
    entries : sequence of Entry
        Of the journal.
    tampered : tuple of str
        What is not as the journal says.
    """

    path: Path
    entries: Sequence[Entry]
    tampered: tuple[str, ...]

    @property
    def last_seen_ns(self) -> int:
        """Latest time that the journal knows of."""
        return max((int(entry.body.get("at_ns", 0)) for entry in self.entries), default=0)

    @cached_property
    def states(self) -> tuple[State, ...]:
        """All states that the run went through, the first one included."""
        found = [e.body["to"] for e in self.entries if e.body.get("event") == "state"]
        return (State.REGISTERED, *(State(name) for name in found))

    @property
    def state(self) -> State:
        """Where the run is."""
        return self.states[-1]

    @cached_property
    def current(self) -> Sequence[Entry]:
        """Lines since the run was last sent back to its beginning; all others are void."""
        for number in range(len(self.entries) - 1, -1, -1):
            body = self.entries[number].body
            if body.get("event") == "state" and body["to"] == State.REGISTERED:
                return self.entries[number:]
        return self.entries

    def last(self, event: str, **facts: object) -> Mapping[str, Any] | None:
        """Find the last line of a kind that still counts."""
        for entry in reversed(self.current):
            body = entry.body
            if body.get("event") == event and all(body.get(k) == v for k, v in facts.items()):
                return body
        return None

    def paper(self, name: str) -> bytes | None:
        """Bytes of a paper, if it was written since the run was last sent back."""
        owned = self.owned(name)
        return None if owned is None else owned.data

    def owned(self, name: str) -> Owned | None:
        """The same, and whose it is."""
        if self.last("written", file=name) is None:
            return None
        return _read(self.path / name)

    def papers(self, folder: str) -> dict[str, Owned]:
        """All papers in a folder below, by their names."""
        names = {
            str(e.body["file"])
            for e in self.current
            if e.body.get("event") == "written" and str(e.body["file"]).startswith(f"{folder}/")
        }
        return {name: data for name in sorted(names) if (data := _read(self.path / name))}


class EvidenceWriter:
    """Adds to the evidence of a run; made by `EvidenceFolder.opened`.

    Parameters
    ----------
    by : str
        Who acts.
    """

    def __init__(self, path: Path, journal: Journal, *, clock: Clock, by: str) -> None:
        self.path = path
        self._journal = journal
        self._clock = clock
        self._by = by
        self._seen = Contents(path=path, entries=journal.entries, tampered=()).last_seen_ns

    def append(self, event: str, **facts: object) -> Entry:
        """Add a line to the journal.

        Raises
        ------
        ArchiveRefused
            With R17, if the clock is behind a line that is there already.
        """
        now_ns = self._clock()
        if now_ns < self._seen:
            behind = (self._seen - now_ns) / 1e9
            raise ArchiveRefused([refuse("R17", f"by {behind:,.0f} s")])
        self._seen = now_ns
        return self._journal.append({"event": event, "at_ns": now_ns, "by": self._by, **facts})

    def write(self, name: str, data: bytes) -> None:
        """Write a paper, its hash in the journal before and after it.

        Raises
        ------
        OutputError
            If it cannot be written, or another account's lies there, which nobody else replaces.
        """
        self.check_replaceable(name)
        digest = hashlib.sha256(data).hexdigest()
        self.append("intent", file=name, sha256=digest)
        self.place(name, data)
        self.append("written", file=name, sha256=digest)

    def place(self, name: str, data: bytes) -> None:
        """Bring a file of the folder to the disk, without a word in the journal."""
        target = self.path / name
        with output_errors(target):
            owners.write_owned(target, data, below=self.path)

    def check_replaceable(self, name: str) -> None:
        """Refuse a paper of another account in a folder where nobody replaces those of others.

        Raises
        ------
        OutputError
        """
        target = self.path / name
        if not os.path.lexists(target) or os.geteuid() in (0, self.path.stat().st_uid):
            return
        uid, mode = target.lstat().st_uid, target.parent.stat().st_mode
        if uid != os.geteuid() and mode & stat.S_ISVTX:
            whose = owners.account_name(uid)
            raise OutputError(
                f"{target}: belongs to {whose}, and nobody else replaces it; ask {whose} to do this"
            )

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self._journal.entries[-1].sha256

    def contents(self) -> Contents:
        """Read what the folder holds now."""
        return _contents(self.path, self._journal.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceFolder:
    """The evidence of one run."""

    path: Path
    clock: Clock

    def read(self) -> Contents:
        """Read it; what was tampered with is told, not raised. Nothing is written.

        Raises
        ------
        SourceError
            If it cannot be read.
        """
        if not self.has_journal():
            strays = _strays(self.path, {})
            return Contents(path=self.path, entries=(), tampered=tuple(strays))
        try:
            return _contents(self.path, read_journal(self.path / JOURNAL))
        except VerificationError as error:
            return Contents(path=self.path, entries=(), tampered=(str(error),))

    def has_journal(self) -> bool:
        """Whether there is any evidence.

        Raises
        ------
        SourceError
            If this account may not look.
        """
        try:
            return stat.S_ISREG((self.path / JOURNAL).lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    @contextmanager
    def opened(self, *, by: str, gid: int | None = None) -> Iterator[EvidenceWriter]:
        """Open it to add to it; make it if it is not there. One program at a time can.

        Parameters
        ----------
        gid : int, optional
            Group to share it with.

        Raises
        ------
        ArchiveRefused
            With R10, if the journal was changed.
        OutputError
            If another program is at work on it, or this account may not write there.
        """
        with output_errors(self.path):
            self.path.mkdir(exist_ok=True)
            if gid is not None:
                owners.share_all(self.path, gid, appended=APPENDED)
        self._check_rights()
        mode = owners.SHARED_JOURNAL if owners.is_shared(self.path) else None
        try:
            with open_journal(self.path / JOURNAL, mode=mode) as journal:
                # This program alone is at work here, and one before it may have been killed.
                with output_errors(self.path):
                    recover_in(self.path)
                yield EvidenceWriter(self.path, journal, clock=self.clock, by=by)
        except VerificationError as error:
            if str(self.path / JOURNAL) not in str(error):
                raise
            raise ArchiveRefused([refuse("R10", str(error))]) from error

    def _check_rights(self) -> None:
        """Say whose the folder is, and how it is shared, to an account that may not write there."""
        journal = self.path / JOURNAL
        asked = [self.path, *([journal] if journal.exists() else [])]
        if all(os.access(path, os.W_OK) for path in asked):
            return
        whose = owners.account_name(self.path.stat().st_uid)
        raise OutputError(
            f"{self.path}: {owners.account_name(os.geteuid())} may not write there; it belongs to "
            f"{whose}, who shares it by 'sfxreduce archive plan' with --group GROUP"
        )


def _contents(path: Path, entries: Sequence[Entry]) -> Contents:
    vouched: dict[str, set[str]] = {}
    written: dict[str, bool] = {}
    for entry in entries:
        name, digest = str(entry.body.get("file", "")), str(entry.body.get("sha256", ""))
        if entry.body.get("event") == "written":
            vouched[name], written[name] = {digest}, True
        elif entry.body.get("event") == "intent" and name:
            vouched.setdefault(name, set()).add(digest)
    found = [*_strays(path, vouched), *_forged(path, vouched, written)]
    return Contents(path=path, entries=entries, tampered=tuple(found))


def _forged(
    path: Path, vouched: Mapping[str, set[str]], written: Mapping[str, bool]
) -> Iterator[str]:
    """Papers that are not as the journal says."""
    for name, digests in vouched.items():
        owned = _read(path / name)
        if owned is None:
            if os.path.lexists(path / name):
                yield f"{path / name}: is a link or no plain file"
            elif written.get(name):
                yield f"{path / name}: is missing"
        elif hashlib.sha256(owned.data).hexdigest() not in digests:
            yield f"{path / name}: is not what the journal says was written"


def _strays(path: Path, vouched: Mapping[str, set[str]]) -> Iterator[str]:
    """Papers that the journal does not know."""
    names = [name for name in VOUCHED if os.path.lexists(path / name)]
    for folder in VOUCHED_FOLDERS:
        for file in sorted((path / folder).rglob("*.json")):
            names.append(str(file.relative_to(path)))  # noqa: PERF401 - read as a sentence
    for name in names:
        # A certificate may be laid there for the next plan to take it up.
        if name not in vouched and name != "certificate.json":
            yield f"{path / name}: the journal does not know of it"


def _read(file: Path) -> Owned | None:
    """A paper; None if nothing lies there, or something that is none."""
    try:
        return owners.read_owned(file, most_bytes=PAPER_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        if os.path.lexists(file) and not stat.S_ISREG(file.lstat().st_mode):
            return None
        raise SourceError(f"{file}: cannot be read ({error.strerror or error})") from error
