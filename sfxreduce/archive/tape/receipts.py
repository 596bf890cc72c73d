"""Receipts: what an archive says it holds, and whether that is enough to let go of a disk copy."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from sfxreduce.archive.rules.refusals import Refusal, refuse
from sfxreduce.errors import SchemaError
from sfxreduce.io.files.durable import FileRecord
from sfxreduce.io.files.safe_read import parse_as

__all__ = [
    "Copy",
    "Receipt",
    "check_receipts",
    "receipt_from_json",
    "receipt_name",
    "receipt_to_json",
]

Source = Literal["reread", "catalogue"]
State = Literal["ONTAPE", "BUFFER", "UNKNOWN"]

TEXT_BYTES = 4096
MAX_COPIES = 16
MAX_SIZE = 1 << 62


def _short(text: str) -> str:
    if len(text.encode()) > TEXT_BYTES:
        raise ValueError(f"expected at most {TEXT_BYTES} bytes")
    return text


Text = Annotated[str, AfterValidator(_short)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One copy of a file in an archive.

    Parameters
    ----------
    pool : str
        Where the archive keeps it.
    medium : str
        Tape or volume; empty if the archive does not tell.
    archive_id : str
        How the archive calls it.
    """

    pool: Text
    medium: Text
    archive_id: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an archive says about one file.

    Parameters
    ----------
    backend : str
        As `open_backend` was told.
    path : str
        Of the file in the archive.
    size : int
        In bytes.
    algorithm, value : str
        Name of the checksum, and the checksum in hexadecimal.
    value_source : str
        ``reread`` if the archive computed it by reading the file as it holds it; ``catalogue`` if
        it repeats what it was told.
    state : str
        ``ONTAPE``, ``BUFFER`` or ``UNKNOWN``.
    queried_at_ns : int
        When the archive was asked, in nanoseconds since 1970.
    tool : str
        What was asked.
    raw_sha256 : str
        Of the answer as it came.
    """

    backend: Text
    path: Text
    size: Annotated[int, Field(ge=0, le=MAX_SIZE)]
    algorithm: Text
    value: Annotated[str, Field(pattern="^[0-9A-Fa-f]*$", max_length=TEXT_BYTES)]
    value_source: Source
    state: State
    copies: Annotated[tuple[Copy, ...], Field(max_length=MAX_COPIES)]
    queried_at_ns: Annotated[int, Field(ge=-MAX_SIZE, le=MAX_SIZE)]
    tool: Text
    raw_sha256: Text


def receipt_to_json(receipt: Receipt) -> dict[str, Any]:
    """Receipt as a JSON object."""
    return {**asdict(receipt), "copies": [asdict(copy) for copy in receipt.copies]}


def receipt_from_json(facts: Mapping[str, Any], *, where: str = "receipt") -> Receipt:
    """Receipt from JSON. What the fields say is not judged here; see `check_receipts`.

    Raises
    ------
    SchemaError
        If a field is missing, unknown, of another kind, or too long.
    """
    try:
        return parse_as(Receipt, facts)
    except ValueError as error:
        raise SchemaError(
            f"{where}: not a receipt as agreed ({error}); see the reference of backends"
        ) from error


def receipt_name(receipt: Receipt) -> str:
    """File name under which a receipt is kept: the same for the same file, archive and pools.

    So a later answer about the same copies takes the place of an earlier one.
    """
    pools = sorted({copy.pool for copy in receipt.copies})
    key = json.dumps([receipt.backend, receipt.path, pools])
    return f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def check_receipts(
    receipts: Iterable[Receipt],
    files: Sequence[FileRecord],
    *,
    copies: int,
    distinct_pools: bool,
) -> list[Refusal]:
    """Say why receipts are not enough to let go of the disk copies of files.

    Every receipt has to be in order, and of every file there have to be enough copies that share
    neither medium nor, if so asked, pool. Of several receipts of one archive about the same file
    and pools the latest counts; its age is judged when it is taken down.

    Parameters
    ----------
    files : sequence of FileRecord
        What was put, by its path in the archive.
    copies : int
        How many the policy asks for.
    distinct_pools : bool
        Whether each has to be in a pool of its own.

    Returns
    -------
    list of Refusal
        Empty if nothing stands in the way.
    """
    known = {file.path: file for file in files}
    by_path: dict[str, list[Receipt]] = defaultdict(list)
    refusals: list[Refusal] = []
    for receipt in _latest(receipts):
        if receipt.path not in known:
            refusals.append(refuse("R04", f"{receipt.path!a}: is no file of this plan"))
        by_path[receipt.path].append(receipt)
    for path, file in known.items():
        found = by_path.get(path, [])
        if not found:
            refusals.append(refuse("R04", f"{path}: there is none"))
            continue
        problems = [problem for r in found for problem in _problems(r, file)]
        refusals += problems
        if not problems and not _enough(found, copies, distinct_pools=distinct_pools):
            refusals.append(refuse("R07", f"{path}: expected {copies}, found {_described(found)}"))
    return refusals


def _latest(receipts: Iterable[Receipt]) -> list[Receipt]:
    """The last receipt of each archive, file and set of pools."""
    latest: dict[str, Receipt] = {}
    for receipt in sorted(receipts, key=lambda r: r.queried_at_ns):
        latest[receipt_name(receipt)] = receipt
    return list(latest.values())


def _problems(receipt: Receipt, file: FileRecord) -> list[Refusal]:
    """What is wrong with one receipt."""
    where = f"{file.path} in {receipt.backend}"
    found = []
    if receipt.state != "ONTAPE":
        found.append(refuse("R05", f"{where}: its state is {receipt.state}"))
    if receipt.size != file.size:
        found.append(refuse("R06", f"{where}: {receipt.size} bytes, not {file.size}"))
    if receipt.algorithm != "sha256" or receipt.value.lower() != file.sha256:
        told = f"{receipt.algorithm} {receipt.value[:16]}"
        found.append(refuse("R06", f"{where}: {told}, not sha256 {file.sha256[:16]}"))
    if receipt.value_source != "reread":
        detail = f"{where}: its checksum is from the catalogue, the archive did not read the file"
        found.append(refuse("R06", detail, remedy="have the archive read the file and hash it"))
    return found


def _enough(receipts: Sequence[Receipt], needed: int, *, distinct_pools: bool) -> bool:
    """Whether so many of the copies have nothing in common."""
    found = sorted({(r.backend, copy) for r in receipts for copy in r.copies}, key=repr)

    def apart(one: tuple[str, Copy], other: tuple[str, Copy]) -> bool:
        """Whether two copies cannot be lost together.

        A pool of its own is a medium of its own, whether or not the archive tells which; without
        that, two media that are not told may be the same.
        """
        pools = [(backend, copy.pool) for backend, copy in (one, other)]
        media = [copy.medium for _, copy in (one, other)]
        if all(media):
            return media[0] != media[1] and (pools[0] != pools[1] or not distinct_pools)
        return pools[0] != pools[1]

    return any(
        all(apart(one, other) for one, other in combinations(chosen, 2))
        for chosen in combinations(found[:MAX_COPIES], needed)
    )


def _described(receipts: Sequence[Receipt]) -> str:
    found = sorted({(c.pool, c.medium) for receipt in receipts for c in receipt.copies})
    return ", ".join(f"pool '{pool}' medium '{medium}'" for pool, medium in found) or "none"
