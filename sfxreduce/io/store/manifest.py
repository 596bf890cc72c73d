"""The manifest: what was written, from what, by what, with a checksum for every file.

It is written last: an output without a valid manifest does not count as written. Nothing in it
depends on time or on the workers; where the source lies does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sfxreduce.errors import VerificationError
from sfxreduce.io.files.durable import FileRecord
from sfxreduce.io.files.safe_read import parse_as

__all__ = ["Manifest", "manifest_from_json", "manifest_to_json"]

MANIFEST_VERSION = 1


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
        return parse_as(Manifest, {"assurance": {}, **body})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VerificationError(
            f"{where}: the manifest is damaged ({error}); the output does not count as written"
        ) from error


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
