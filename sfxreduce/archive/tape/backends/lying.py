"""An archive that lies, for tests and for rehearsals: each lie has to be found out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sfxreduce.archive.tape.backends.posix import PosixBackend
from sfxreduce.archive.tape.backends.protocol import Capabilities
from sfxreduce.archive.tape.receipts import Receipt, State, receipt_from_json, receipt_to_json
from sfxreduce.errors import ArchiveError, UsageError
from sfxreduce.io.files.durable import sha256_file, write_file

__all__ = ["LIES", "LyingBackend"]

CLAIMS = ".claims"
"""Where an archive that only repeats what it was told remembers it."""

TWO_DAYS_NS = 2 * 86_400 * 10**9

Told = Callable[[Receipt], Receipt]


def _tapes(receipt: Receipt) -> Receipt:
    """Receipt of a library with a tape for each pool, which this folder stands for."""
    copies = tuple(replace(copy, medium=f"tape {copy.pool}") for copy in receipt.copies)
    return replace(receipt, copies=copies)


def _state(state: State) -> Told:
    return lambda receipt: replace(receipt, state=state)


def _same_pool(receipt: Receipt) -> Receipt:
    copies = tuple(replace(copy, pool="shared", medium="VOL001") for copy in receipt.copies)
    return replace(receipt, copies=copies)


def _same_medium(receipt: Receipt) -> Receipt:
    return replace(receipt, copies=tuple(replace(c, medium="VOL001") for c in receipt.copies))


LIES: dict[str, Told] = {
    "none": lambda receipt: receipt,
    "buffer-only": _state("BUFFER"),
    "accepted": _state("UNKNOWN"),
    "wrong-checksum": lambda receipt: replace(receipt, value=receipt.value[::-1]),
    "wrong-size": lambda receipt: replace(receipt, size=receipt.size + 1),
    "other-algorithm": lambda receipt: replace(receipt, algorithm="adler32", value="1a2b3c4d"),
    "catalogue": lambda receipt: replace(receipt, value_source="catalogue"),
    "echoed-checksum": lambda receipt: receipt,
    "one-copy": lambda receipt: receipt,
    "same-pool": _same_pool,
    "same-medium": _same_medium,
    "truncated-recall": lambda receipt: receipt,
    "no-recall": lambda receipt: receipt,
    "other-file": lambda receipt: replace(receipt, path=f"{receipt.path}.other"),
    "stale": lambda receipt: receipt,
}
"""What each lie makes of an honest receipt; some lie elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LyingBackend:
    """A folder as an archive that tells one lie.

    Parameters
    ----------
    lie : str
        One of `LIES`.

    Raises
    ------
    UsageError
        If it does not know the lie.
    """

    lie: str
    root: Path
    name: str

    def __post_init__(self) -> None:
        if self.lie not in LIES:
            raise UsageError(f"'{self.name}': expected a lie of {sorted(LIES)}")

    @property
    def honest(self) -> PosixBackend:
        """The same folder, asked honestly."""
        return PosixBackend(root=self.root, name=self.name)

    def capabilities(self) -> Capabilities:
        """Claim everything."""
        return Capabilities(tool="liar", rereads=True, recalls_from_medium=True)

    def put(self, local: Path, path: str, *, pool: str) -> Receipt:
        """Put a file, or claim to."""
        if self.lie == "one-copy" and (other := self._elsewhere(path, pool)):
            # Another pool holds it already; that will have to do.
            return _tapes(self.honest.query(path, pool=other))
        receipt = _tapes(self.honest.put(local, path, pool=pool))
        if self.lie == "echoed-checksum":
            self._damage(self.root / pool / path)
            self._claim(replace(receipt, value=sha256_file(local)), pool)
        elif self.lie == "stale":
            self._claim(replace(receipt, queried_at_ns=receipt.queried_at_ns - TWO_DAYS_NS), pool)
        return self.query(path, pool=pool)

    def query(self, path: str, *, pool: str) -> Receipt:
        """Say what it was told to say."""
        if self.lie in ("echoed-checksum", "stale"):
            return self._claimed(path, pool)
        if self.lie == "one-copy" and (other := self._elsewhere(path, pool)):
            return _tapes(self.honest.query(path, pool=other))
        return LIES[self.lie](_tapes(self.honest.query(path, pool=pool)))

    def recall(self, path: str, into: Path, *, pool: str) -> None:
        """Bring a file back, or part of it."""
        if self.lie == "no-recall":
            raise ArchiveError(f"{self.name}: the tape cannot be read")
        if self.lie == "one-copy":
            pool = self._elsewhere(path, pool) or pool
        self.honest.recall(path, into, pool=pool)
        if self.lie == "truncated-recall":
            data = into.read_bytes()
            write_file(into, data[: len(data) // 2])

    def _elsewhere(self, path: str, pool: str) -> str:
        """Another pool that holds the file; empty if none does, or this one does."""
        if (self.root / pool / path).is_file():
            return ""
        pools = sorted(entry.name for entry in self.root.iterdir() if entry.name != CLAIMS)
        return next((other for other in pools if (self.root / other / path).is_file()), "")

    def _damage(self, file: Path) -> None:
        """Change the last byte of a copy of our own."""
        data = bytearray(file.read_bytes())
        if data:
            data[-1] ^= 1
            write_file(file, bytes(data))

    def _claim(self, receipt: Receipt, pool: str) -> None:
        (self.root / CLAIMS).mkdir(exist_ok=True)
        text = json.dumps(receipt_to_json(receipt))
        write_file(self.root / CLAIMS / _key(receipt.path, pool), text.encode())

    def _claimed(self, path: str, pool: str) -> Receipt:
        file = self.root / CLAIMS / _key(path, pool)
        if not file.is_file():
            raise ArchiveError(f"{self.name}: there is no file '{path}' in the pool '{pool}'")
        return receipt_from_json(json.loads(file.read_text()))


def _key(path: str, pool: str) -> str:
    """Name of the file that holds a claim."""
    return f"{hashlib.sha256(json.dumps([path, pool]).encode()).hexdigest()[:16]}.json"
