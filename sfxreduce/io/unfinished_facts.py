"""What is there of an output that is not finished, for people who ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfxreduce.io.journal import read_journal
from sfxreduce.io.unfinished import JOURNAL, moves_under_way, unfinished_folder

__all__ = ["UnfinishedFacts", "describe_unfinished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedFacts:
    """What is there of an output that is not finished.

    Parameters
    ----------
    folder : Path
    pins : mapping
        Everything the output depends on.
    scored : int
        Parts of the run that were scored.
    shards : int
        Shards that were written and acknowledged.
    bytes : int
        Of these shards.
    appearing : bool
        Whether all of it was complete and only its appearing was cut off.
    """

    folder: Path
    pins: Mapping[str, Any]
    scored: int
    shards: int
    bytes: int
    appearing: bool


def describe_unfinished(store: Path) -> UnfinishedFacts | None:
    """Say what is there of an output that is not finished; None if nothing is.

    Raises
    ------
    VerificationError
        If its journal was changed.
    SourceError
        If it cannot be read.
    """
    folder = unfinished_folder(store)
    if not (folder / JOURNAL).exists():
        return None
    scored, sizes, entries = set(), {}, read_journal(folder / JOURNAL)
    for done in (done for entry in entries for done in entry.body.get("done", ())):
        if "shard" in done:
            sizes[done["shard"]["path"]] = int(done["shard"]["size"])
        elif done["note"][0] == "score":
            scored.add(done["note"][1])
    return UnfinishedFacts(
        folder=folder,
        pins=entries[0].body.get("begin", {}) if entries else {},
        scored=len(scored),
        shards=len(sizes),
        bytes=sum(sizes.values()),
        appearing=bool(moves_under_way(entries)),
    )
