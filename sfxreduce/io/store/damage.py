"""Files of an output that are not as its manifest says, and the events that this concerns."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.chunks.shards import ShardFile, check_crc, payload_hash
from sfxreduce.io.files.durable import FileRecord, sha256_file
from sfxreduce.io.store.manifest import Manifest
from sfxreduce.io.store.names import AUDIT_GROUP, MANIFEST_GROUP

__all__ = [
    "MANIFEST_FILE",
    "Damage",
    "FileJob",
    "check_file",
    "file_jobs",
    "irregular_files",
    "shard_of",
    "strangers",
    "written_by_zarr",
]

MANIFEST_FILE = f"{MANIFEST_GROUP}/zarr.json"

_GROUP = {"zarr_format": 3, "node_type": "group", "consolidated_metadata": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One file that is not as it was written.

    Parameters
    ----------
    path : str
        Relative to the output.
    what : str
        What is wrong with it, to follow its name.
    events : sequence of int
        Positions, in its part of the output, of the events of which it holds damaged tiles. All
        events of a shard where its index is damaged, or where no checksum tells which. None for
        other files.
    sha256 : str
        Of what lies there; empty where that was not worked out.
    """

    path: str
    what: str
    events: Sequence[int] = ()
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJob:
    """One file to compare with the manifest.

    Parameters
    ----------
    store : str
        Path of the output.
    layout : Layout or None
        Of the frames, if the file is a shard of frames and the layout is known.
    events : range
        Positions, in its part of the output, of the events of the shard.
    payloads : tuple of str
        What `payload_hash` made of each of them when it was written; zero where not known.
    """

    store: str
    record: FileRecord
    layout: Layout | None = None
    events: range = range(0)
    payloads: tuple[str, ...] = ()


def shard_of(path: str) -> tuple[str, int] | None:
    """Part of the output and number of a shard of frames; None for other files.

    Examples
    --------
    >>> shard_of("frames/c/3/0/0"), shard_of("audit/frames/c/12/0/0"), shard_of("score/c/0")
    (('', 3), ('audit', 12), None)
    """
    names = path.split("/")
    part = AUDIT_GROUP if names[0] == AUDIT_GROUP else ""
    match names[1:] if part else names:
        case ["frames", "c", number, *_] if number.isascii() and number.isdecimal():
            return part, int(number)
    return None


def file_jobs(
    store: Path,
    manifest: Manifest,
    *,
    layout: Layout | None,
    payloads: Mapping[str, NDArray[np.uint64]],
) -> Iterator[FileJob]:
    """One job for each file of the manifest.

    Parameters
    ----------
    layout : Layout or None
        Of the frames; without it no event of a damaged shard can be named.
    payloads : mapping of str to ndarray of uint64
        For each part of the output, the payload of each of its events as a ledger has it, shape
        (event, 2); zero where it is not known.
    """
    for record in manifest.files:
        job = FileJob(store=str(store), record=record)
        shard = shard_of(record.path)
        if shard and layout:
            known = payloads.get(shard[0], np.zeros((0, 2), np.uint64))
            first = shard[1] * layout.events_per_shard
            inside = range(first, min(first + layout.events_per_shard, len(known)))
            own = tuple(f"{high:016x}{low:016x}" for high, low in known[inside.start : inside.stop])
            job = replace(job, layout=layout, events=inside, payloads=own)
        yield job


def check_file(job: FileJob) -> Damage | None:
    """Compare a file with the manifest; of a shard that differs, find the damaged events."""
    file = Path(job.store) / job.record.path
    sha256 = ""
    try:
        facts = file.lstat()
        what = _unlike(facts, job.record)
        if not what or (job.layout and stat.S_ISREG(facts.st_mode)):
            sha256 = sha256_file(file)
        if sha256 != job.record.sha256:
            what = what or "does not match its sha256"
    except FileNotFoundError:
        what = "is missing"
    except (OSError, ValueError) as error:
        what = f"cannot be read ({error})"
    if not what:
        return None
    events: Sequence[int] = job.events
    if job.layout and sha256:
        events = _damaged_events(file, job.layout, job) or events
    return Damage(path=job.record.path, what=what, events=events, sha256=sha256)


def irregular_files(store: Path) -> Iterator[Damage]:
    """Find links, pipes, devices and what else must not be opened in an output that one distrusts.

    Behind a link lies what no checksum of the output speaks for; a pipe or a device may never end.
    """
    for folder, folders, files in os.walk(store, onerror=_raise):
        for name in sorted([*folders, *files]):
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                what = "is a symbolic link" if stat.S_ISLNK(mode) else "is no plain file"
                yield Damage(path=str(path.relative_to(store)), what=what)


def strangers(store: Path, manifest: Manifest) -> Iterator[Damage]:
    """Find files that the manifest does not know."""
    known = {MANIFEST_FILE, *(file.path for file in manifest.files)}
    for folder, _, files in os.walk(store):
        for name in sorted(files):
            path = str((Path(folder) / name).relative_to(store))
            if path not in known:
                yield Damage(path=path, what="is not in the manifest")


def written_by_zarr(store: Path) -> bool:
    """Whether the manifest's own file, for which no other file speaks, is to the byte as Zarr
    writes it: a bit without meaning may be the first of many.
    """
    try:
        raw = (store / MANIFEST_FILE).read_bytes()
        facts = json.loads(raw)
        rest = {name: value for name, value in facts.items() if name != "attributes"}
        spaced = {json.dumps(facts, indent=indent).encode() for indent in (2, None)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    return raw in spaced and {"consolidated_metadata": None, **rest} == _GROUP


def _raise(error: OSError) -> NoReturn:
    """Let a folder that cannot be listed be no empty one."""
    raise error


def _unlike(facts: os.stat_result, record: FileRecord) -> str:
    """What tells a file from the one that was written without reading it."""
    if not stat.S_ISREG(facts.st_mode):
        return "is no plain file"
    if facts.st_size != record.size:
        return f"is {facts.st_size} bytes long, {record.size} were written"
    return ""


def _damaged_events(file: Path, layout: Layout, job: FileJob) -> Sequence[int]:
    """Events of a shard whose stored tiles do not match a checksum; none if all do.

    A tile that the index does not list was a hole when the shard was written, unless the event's
    payload says otherwise.
    """
    damaged = []
    try:
        with ShardFile(file, n_tiles=layout.tiles_per_event * layout.events_per_shard) as shard:
            for place, (event, payload) in enumerate(zip(job.events, job.payloads, strict=True)):
                if not _is_whole(shard, place, layout.tiles_per_event, payload):
                    damaged.append(event)
    except SourceError:
        return job.events
    return damaged


def _is_whole(shard: ShardFile, place: int, n_tiles: int, payload: str) -> bool:
    """Whether an event's tiles match their own checksums, and the event's."""
    tiles = []
    try:
        for tile in range(place * n_tiles, (place + 1) * n_tiles):
            encoded = shard.read(tile)
            if encoded is not None:
                check_crc(encoded)
            tiles.append(encoded)
    except SourceError:
        return False
    return int(payload, 16) in (0, int(payload_hash(tiles), 16))
