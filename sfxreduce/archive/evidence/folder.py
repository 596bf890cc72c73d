"""The evidence folder of a run: a journal, and papers that it vouches for.

Before a paper is written, its hash stands in the journal; after it is there, it stands there once
more. So a crash leaves an old paper or a new one, and any other is a forgery. Holds are the
exception: one that the journal does not know of counts all the same, so that a hold can be placed
while something else is at work on the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sfxreduce.archive.rules.refusals import ArchiveRefused, refuse
from sfxreduce.archive.rules.states import State
from sfxreduce.errors import SourceError, VerificationError
from sfxreduce.io.files.durable import output_errors, sync_folder, write_file
from sfxreduce.io.files.journal import Entry, Journal, open_journal, read_journal
from sfxreduce.io.writers.publish import recover_in

__all__ = ["Clock", "Contents", "EvidenceFolder", "EvidenceWriter", "evidence_path"]

JOURNAL = "journal.jsonl"
SUFFIX = ".evidence"
VOUCHED = (
    "plan.json",
    "certificate.json",
    "release-ticket.json",
    "release-ticket.json.sig",
    "release-receipt.json",
)
VOUCHED_FOLDERS = ("approvals", "receipts")
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
        if self.last("written", file=name) is None:
            return None
        return _read(self.path / name)

    def papers(self, folder: str) -> dict[str, bytes]:
        """Bytes of all papers in a folder below, by their names."""
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
        """Write a paper, its hash in the journal before and after it."""
        digest = hashlib.sha256(data).hexdigest()
        self.append("intent", file=name, sha256=digest)
        self.place(name, data)
        self.append("written", file=name, sha256=digest)

    def place(self, name: str, data: bytes) -> None:
        """Bring a file of the folder to the disk, without a word in the journal."""
        target = self.path / name
        with output_errors(target):
            write_file(target, data, below=self.path)
            sync_folder(target.parent)

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
        if not (self.path / JOURNAL).exists():
            strays = _strays(self.path, {})
            return Contents(path=self.path, entries=(), tampered=tuple(strays))
        try:
            return _contents(self.path, read_journal(self.path / JOURNAL))
        except VerificationError as error:
            return Contents(path=self.path, entries=(), tampered=(str(error),))

    @contextmanager
    def opened(self, *, by: str) -> Iterator[EvidenceWriter]:
        """Open it to add to it; make it if it is not there. One program at a time can.

        Raises
        ------
        ArchiveRefused
            With R10, if the journal was changed.
        OutputError
            If another program is at work on it, or it cannot be written.
        """
        with output_errors(self.path):
            self.path.mkdir(exist_ok=True)
        try:
            with open_journal(self.path / JOURNAL) as journal:
                # This program alone is at work here, and one before it may have been killed.
                with output_errors(self.path):
                    recover_in(self.path)
                yield EvidenceWriter(self.path, journal, clock=self.clock, by=by)
        except VerificationError as error:
            if str(self.path / JOURNAL) not in str(error):
                raise
            raise ArchiveRefused([refuse("R10", str(error))]) from error


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
        data = _read(path / name)
        if data is None:
            if written.get(name):
                yield f"{path / name}: is missing"
        elif hashlib.sha256(data).hexdigest() not in digests:
            yield f"{path / name}: is not what the journal says was written"


def _strays(path: Path, vouched: Mapping[str, set[str]]) -> Iterator[str]:
    """Papers that the journal does not know."""
    names = [name for name in VOUCHED if (path / name).exists()]
    for folder in VOUCHED_FOLDERS:
        for file in sorted((path / folder).rglob("*.json")):
            names.append(str(file.relative_to(path)))  # noqa: PERF401 - read as a sentence
    for name in names:
        # A certificate may be laid there for the next plan to take it up.
        if name not in vouched and name != "certificate.json":
            yield f"{path / name}: the journal does not know of it"


def _read(file: Path) -> bytes | None:
    try:
        if file.stat().st_size > PAPER_BYTES:
            raise SourceError(f"{file}: too long for a paper of this folder")
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"{file}: cannot be read ({error.strerror or error})") from error
