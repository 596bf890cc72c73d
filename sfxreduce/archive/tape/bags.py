"""Bags: what an archive plan is about, as BagIt 1.0 (RFC 8493).

A plan's bag is holey: it names its files in place, with their checksums, and holds none of them.

References
----------
.. [1] J. Kunze et al., The BagIt File Packaging Format (V1.0), RFC 8493 (2018).
       doi:10.17487/RFC8493
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sfxreduce.archive.tape.paths import check_path, encode_path
from sfxreduce.errors import SchemaError, UsageError
from sfxreduce.io.files.durable import FileRecord, output_errors, write_file
from sfxreduce.io.writers.publish import check_outputs, staged

__all__ = ["CRATE_FILE", "PACKAGES_FILE", "PLAN_FILE", "crate_metadata", "write_bag"]

CRATE_FILE = "ro-crate-metadata.json"
PACKAGES_FILE = "sfxreduce-packages.json"
PLAN_FILE = "sfxreduce-plan.json"

DECLARATION = b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
MANIFEST, TAG_MANIFEST = "manifest-sha256.txt", "tagmanifest-sha256.txt"
OWN_FILES = ("bagit.txt", "bag-info.txt", "fetch.txt", MANIFEST, TAG_MANIFEST)
LABEL = re.compile("[A-Za-z][A-Za-z0-9-]*")


def write_bag(
    folder: Path,
    *,
    files: Sequence[FileRecord],
    source: Path,
    info: Mapping[str, str],
    tag_files: Mapping[str, bytes],
    run: Path | None = None,
) -> None:
    """Write a holey bag; it appears under its name whole.

    Nothing in it depends on the time: a date is in it if `info` has one.

    Parameters
    ----------
    folder : Path
        Of the bag; nothing may lie there.
    files : sequence of FileRecord
        The payload, by its path below `source`.
    source : Path
        Absolute; what ``fetch.txt`` says where the files are. Only its name is used.
    info : mapping of str to str
        Of ``bag-info.txt``; ``External-Identifier`` at least. ``Payload-Oxum`` is added.
    tag_files : mapping of str to bytes
        Further files beside the payload, such as `PLAN_FILE`. Without one,
        ``ro-crate-metadata.json`` is written.
    run : Path, optional
        What the bag may not overlap; `source` by default, which may hold much else if the run is
        one file.

    Raises
    ------
    SchemaError
        If a path is not safe, or two of them are one to other systems.
    UsageError
        If the identifier is missing, or a tag file or a line of `info` is not possible.
    OutputExists
        If something lies at the folder.
    OutputError
        If it cannot be written.
    """
    _check_files(files, where=str(folder))
    _check_tags(info, tag_files, where=str(folder))
    if not source.is_absolute():
        raise UsageError(f"{source}: expected the absolute path of the source")
    payload = sorted(files, key=lambda file: file.path)
    documents = {CRATE_FILE: crate_metadata(payload, info=info), **tag_files}
    documents |= _payload_lists(payload, source=source, info=info)
    sums = ((hashlib.sha256(data).hexdigest(), name) for name, data in sorted(documents.items()))
    documents[TAG_MANIFEST] = _lines(f"{value}  {encode_path(name)}" for value, name in sums)
    check_outputs(stores=[folder], inputs=[run or source])
    with staged(stores=[folder]) as paths, output_errors(folder):
        hidden = paths[folder]
        (hidden / "data").mkdir(parents=True)
        for name, data in documents.items():
            write_file(hidden / name, data, below=hidden)


def _payload_lists(
    payload: Sequence[FileRecord], *, source: Path, info: Mapping[str, str]
) -> dict[str, bytes]:
    """Files that RFC 8493 asks for, by their names: what the payload is, and where it lies."""
    oxum = f"{sum(file.size for file in payload)}.{len(payload)}"
    return {
        "bagit.txt": DECLARATION,
        "bag-info.txt": _lines(f"{k}: {v}" for k, v in {**info, "Payload-Oxum": oxum}.items()),
        MANIFEST: _lines(f"{file.sha256}  data/{encode_path(file.path)}" for file in payload),
        "fetch.txt": _lines(
            f"{(source / file.path).as_uri()} {file.size} data/{encode_path(file.path)}"
            for file in payload
        ),
    }


def _check_files(files: Sequence[FileRecord], *, where: str) -> None:
    """Refuse paths that are not safe, or that another system would take for the same."""
    seen: dict[str, str] = {}
    for file in files:
        check_path(file.path, where=where)
        plain = unicodedata.normalize("NFC", file.path)
        if plain in seen:
            raise SchemaError(
                f"{where}: '{file.path}' and '{seen[plain]}' are one path to other systems; rename "
                "one of them"
            )
        seen[plain] = file.path


def _check_tags(info: Mapping[str, str], tag_files: Mapping[str, bytes], *, where: str) -> None:
    if not info.get("External-Identifier"):
        raise UsageError(f"{where}: expected an External-Identifier in the bag's information")
    for label, value in info.items():
        if not LABEL.fullmatch(label) or label == "Payload-Oxum" or "\n" in value or "\r" in value:
            raise UsageError(f"{where}: bag-info cannot hold '{label}: {value!a}'")
    for name in tag_files:
        check_path(name, where=where)
        if name in OWN_FILES or name.startswith(("data/", "~", "manifest-", "tagmanifest-")):
            raise UsageError(f"{where}: '{name}' is a file of the bag itself; choose another name")


def _lines(lines: Iterator[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


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
