"""The manifest: what was written, from what, by what, with a checksum for every file.

It is written last: an output without a valid manifest does not count as written. Nothing in it
depends on time or on the workers; where the source lies does.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import xxhash

from sfxreduce.errors import VerificationError
from sfxreduce.io.files.durable import FileRecord, blocks_of
from sfxreduce.io.files.safe_read import content_pin, parse_as

__all__ = [
    "MadeBy",
    "Manifest",
    "PublishJob",
    "made_here",
    "manifest_from_json",
    "manifest_to_json",
    "publish_file",
]

MANIFEST_VERSION = 1

PARTS = ("numpy", "dask", "distributed", "zarr", "numcodecs", "torch", "numba")
"""Packages that an output, or the way to it, depends on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeBy:
    """What made an output, in every process that took part.

    Parameters
    ----------
    code : str
        sha256 of the files of this package, with their names.
    versions : mapping of str to str
        Of Python and of the packages that matter; empty for one that is not there.
    """

    code: str
    versions: dict[str, str]


def made_here() -> MadeBy:
    """Say what an output would be made by in this process."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PARTS}
    return MadeBy(code=_code(), versions=versions)


@cache
def _code() -> str:
    return content_pin(Path(str(files("sfxreduce"))), suffix=".py")


def _version(name: str) -> str:
    """Version of a package: what was loaded, else what would be."""
    if told := getattr(sys.modules.get(name), "__version__", ""):
        return str(told)
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What one output consists of and how it came to be.

    Parameters
    ----------
    software : str
        Name and version of the program.
    source : str
        Absolute path of the source run.
    source_events, source_bytes : int
        Events and bytes of the source run.
    scorer, settings : str
        How events were judged.
    threshold : float
        Smallest score of a hit.
    model_sha256 : str or None
        Of the model's weights; None for a scorer without.
    hits, undecided, rejected : int
        Numbers of source events.
    assurance : mapping
        What is promised for the run, as `filter --json` tells it; empty in outputs of earlier
        versions.
    made_by : tuple of MadeBy
        The distinct code and versions of all processes that took part; none in outputs of earlier
        versions.
    options : mapping
        Values of the options that decided on events, each with its ``origin``; empty if no command
        line was used.
    incomplete : tuple of str
        "CODE: words" of each sign that the run was still being written when it was judged.
    files : tuple of FileRecord
        All files of the output but the manifest's own, sorted by path.

    Raises
    ------
    VerificationError
        If the counts do not add up, or a path leaves the output.
    """

    software: str
    source: str
    source_events: int
    source_bytes: int
    scorer: str
    settings: str
    threshold: float
    model_sha256: str | None
    hits: int
    undecided: int
    rejected: int
    files: tuple[FileRecord, ...]
    assurance: dict[str, Any] = field(default_factory=dict)
    made_by: tuple[MadeBy, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    incomplete: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counted = self.hits + self.undecided + self.rejected
        if counted != self.source_events or min(self.hits, self.undecided, self.rejected) < 0:
            raise VerificationError(
                f"manifest: {self.hits} hits, {self.undecided} undecided and {self.rejected} "
                f"rejected do not make {self.source_events} events; the output is not to be trusted"
            )
        for file in self.files:
            parts = file.path.split("/")
            if file.path.startswith("/") or ".." in parts or "" in parts:
                raise VerificationError(
                    f"manifest: the path '{file.path}' leaves the output; it is not to be trusted"
                )


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """Manifest as JSON with its own sha256 over canonical JSON."""
    body = {"manifest_version": MANIFEST_VERSION, **asdict(manifest)}
    body["files"] = [asdict(file) for file in manifest.files]
    return {**body, "sha256": _digest(body)}


def manifest_from_json(facts: Mapping[str, Any], *, where: str) -> Manifest:
    """Manifest from JSON, its own checksum compared.

    Raises
    ------
    VerificationError
        If it was changed, or lacks a part.
    """
    body = {key: value for key, value in facts.items() if key != "sha256"}
    try:
        if body.pop("manifest_version") != MANIFEST_VERSION:
            raise VerificationError(f"{where}: the manifest is of another version of sfxreduce")
        if _digest({"manifest_version": MANIFEST_VERSION, **body}) != facts["sha256"]:
            raise VerificationError(f"{where}: the manifest does not match its own sha256")
        of_earlier_versions: dict[str, Any] = {
            "assurance": {},
            "options": {},
            "made_by": [],
            "incomplete": [],
        }
        return parse_as(Manifest, of_earlier_versions | body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VerificationError(
            f"{where}: the manifest is damaged ({error}); the output does not count as written"
        ) from error


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishJob:
    """One staged file to be read back.

    Parameters
    ----------
    store : str
        Path of the staged output.
    path : str
        Of the file, relative to it.
    digest : str
        XXH3 of the bytes that were to be written, 128 bits; empty if a library wrote them.
    """

    store: str
    path: str
    digest: str = ""


def publish_file(job: PublishJob) -> FileRecord:
    """Read a staged file back through a fresh handle and take down what it holds.

    One that does not hold what was to be written is removed: the same command makes it anew.

    Raises
    ------
    VerificationError
        If it does not hold what was to be written, or cannot be read.
    """
    file = Path(job.store) / job.path
    # Both in one pass: what was to be written is known by the cheap one, and the manifest, which
    # archives read, has the one that nobody can forge.
    sha256, fast = hashlib.sha256(), xxhash.xxh3_128()
    try:
        for block in blocks_of(file):
            sha256.update(block)
            fast.update(block)
        size = file.stat().st_size
    except OSError as error:
        fault = f"cannot be read back ({error.strerror or error})"
    else:
        if not job.digest or fast.hexdigest() == job.digest:
            return FileRecord(path=job.path, size=size, sha256=sha256.hexdigest())
        fault = "what was read back differs from what was written"
    file.unlink(missing_ok=True)
    raise VerificationError(
        f"{file}: {fault}; nothing was published, check the disk and start again"
    )
