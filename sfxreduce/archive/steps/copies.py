"""Where the copies of a plan go, and what the archive says of them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sfxreduce.archive.evidence.documents import PlanPaper
from sfxreduce.archive.evidence.folder import EvidenceWriter
from sfxreduce.archive.evidence.subject import check_text
from sfxreduce.archive.rules.policy import Policy
from sfxreduce.archive.rules.refusals import Refusal, refuse
from sfxreduce.archive.tape.backends import Backend, open_backend
from sfxreduce.archive.tape.receipts import Receipt, receipt_to_json
from sfxreduce.errors import UsageError
from sfxreduce.io.files.durable import FileRecord

__all__ = ["Copies", "copies_of", "open_copies", "take_down"]

Copies = tuple[tuple[Backend, str], ...]
"""Archive and pool of each copy."""

HOUR_NS = 3_600 * 10**9
BATCH = 256
"""Files whose receipts are kept in one paper."""


def copies_of(given: Sequence[str], *, policy: Policy | None) -> dict[str, str]:
    """Name of the pool of each copy, and its archive: as told, or as the caller's own policy says.

    What the evidence says of archives is never acted on: whoever may write to it could name a
    script there.

    Parameters
    ----------
    given : sequence of str
        ``POOL=ARCHIVE``, or ``ARCHIVE`` alone, whose last part names the pool then.
    policy : Policy, optional
        That the caller named, not the one of the plan.

    Raises
    ------
    UsageError
        If none is named, or two have one name.

    Examples
    --------
    >>> copies_of(["a=posix:/mnt/one", "posix:/mnt/two"], policy=None)
    {'a': 'posix:/mnt/one', 'two': 'posix:/mnt/two'}
    """
    if not given:
        if policy is None or not policy.pools:
            raise UsageError(
                "archive: no pool is named, and what the evidence names is not acted on; name one "
                "for each copy with --to POOL=ARCHIVE, or your own policy with --policy FILE"
            )
        return dict(policy.pools)
    found: dict[str, str] = {}
    for text in given:
        check_text(text, option="--to")
        pool, spec = _split(text)
        if pool in found:
            raise UsageError(f"archive: two pools are called '{pool}'; name them --to POOL=ARCHIVE")
        found[pool] = spec
    return found


def _split(text: str) -> tuple[str, str]:
    named = re.fullmatch("([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", text)
    if named:
        return named[1], named[2]
    last = Path(text.partition("?")[0]).name
    return re.sub("[^A-Za-z0-9._-]", "-", last) or "pool", text


def open_copies(copies: Mapping[str, str]) -> Copies:
    """Open the archive of every copy.

    Raises
    ------
    ArchiveError
        If one is not there.
    """
    return tuple((open_backend(spec), pool) for pool, spec in copies.items())


def take_down(
    writer: EvidenceWriter,
    plan: PlanPaper,
    copies: Copies,
    *,
    ask: Callable[[Backend, str, str], Receipt],
    action: str,
    began_ns: int,
) -> None:
    """Ask for the receipt of every package and file in every pool, and keep what was said.

    Before a batch is dealt with, the journal says so. A package is a batch of its own, so that it
    goes to all pools before the next one is made.

    Parameters
    ----------
    ask : callable
        Given an archive, a pool, and the path of a parcel, returns the receipt.
    action : str
        ``put`` or ``query``.
    began_ns : int
        When the first one was asked for; receipts count from then.
    """
    faults: list[Refusal] = []
    for start, batch in _batches(plan):
        for backend, pool in copies:
            writer.append(
                "intent", action=action, pool=pool, plan_id=plan.plan_id, first=start, n=len(batch)
            )
            told = []
            for file in batch:
                # Archives have clocks of their own; what they say is compared with this machine's.
                earliest = time.time_ns() - plan.policy.release.receipt_hours * HOUR_NS
                receipt = ask(backend, pool, file.path)
                faults += _about(receipt, plan.prefix + file.path, pool, earliest=earliest)
                told.append(receipt_to_json(receipt))
            name = f"receipts/{plan.plan_id[:8]}/{pool}-{start}.json"
            writer.write(name, json.dumps(told, sort_keys=True).encode())
    found = [asdict(fault) for fault in dict.fromkeys(faults)]
    writer.append("asked", plan_id=plan.plan_id, faults=found, began_ns=began_ns)


def _batches(plan: PlanPaper) -> Iterator[tuple[int, Sequence[FileRecord]]]:
    """Parcels that are dealt with together, and the number of the first one."""
    parcels, n_packages = plan.parcels, len(plan.packages)
    for start in range(n_packages):
        yield start, parcels[start : start + 1]
    for start in range(n_packages, len(parcels), BATCH):
        yield start, parcels[start : start + BATCH]


def _about(receipt: Receipt, path: str, pool: str, *, earliest: float) -> list[Refusal]:
    """What is wrong with a receipt that its own fields do not show."""
    found = []
    if receipt.path != path:
        found.append(refuse("R04", f"{path}: the receipt is for another file"))
    if receipt.queried_at_ns < earliest:
        found.append(refuse("R04", f"{path}: the receipt is an old one"))
    if pool not in {copy.pool for copy in receipt.copies}:
        found.append(refuse("R07", f"{path}: no copy is in the pool '{pool}'"))
    return found
