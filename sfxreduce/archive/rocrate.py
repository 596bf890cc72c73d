"""What a plan is about, for programs that know research data but not us: RO-Crate 1.1."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from sfxreduce.manifest import FileRecord

__all__ = ["CRATE_FILE", "crate_metadata"]

CRATE_FILE = "ro-crate-metadata.json"


def crate_metadata(files: Sequence[FileRecord], *, info: Mapping[str, str]) -> bytes:
    """Metadata of a bag as RO-Crate 1.1.

    Checksums are not repeated: they stand in the bag's manifest.

    Parameters
    ----------
    files : sequence of FileRecord
        The payload, below ``data/``.
    info : mapping of str to str
        Of ``bag-info.txt``.

    Examples
    --------
    >>> files = [FileRecord(path="run.h5", size=3, sha256="")]
    >>> crate = json.loads(crate_metadata(files, info={"External-Identifier": "exp/r1"}))
    >>> [thing["@id"] for thing in crate["@graph"]]
    ['ro-crate-metadata.json', './', 'data/run.h5']
    """
    payload = [
        {
            "@id": quote(f"data/{file.path}"),
            "@type": "File",
            "name": file.path.rsplit("/", 1)[-1],
            "contentSize": str(file.size),
        }
        for file in files
    ]
    root: dict[str, Any] = {
        "@id": "./",
        "@type": "Dataset",
        "identifier": info.get("External-Identifier", ""),
        "name": info.get("External-Identifier", ""),
        "description": info.get("External-Description", "Files of one run, to be archived."),
        "hasPart": [{"@id": part["@id"]} for part in payload],
    }
    if "Bagging-Date" in info:
        root["datePublished"] = info["Bagging-Date"]
    descriptor = {
        "@id": CRATE_FILE,
        "@type": "CreativeWork",
        "about": {"@id": "./"},
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
    }
    crate = {
        "@context": "https://w3id.org/ro/crate/1.1/context",
        "@graph": [descriptor, root, *payload],
    }
    return (json.dumps(crate, indent=1, sort_keys=True) + "\n").encode()
