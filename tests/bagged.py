"""Bags as another program reads them: by bagit-python, not by what wrote them."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import bagit

from sfxreduce.archive.tape.bags import OWN_FILES
from sfxreduce.io.files.durable import FileRecord


def decode_path(written: str) -> str:
    """Path from a manifest of a bag, as RFC 8493 has it; other percent signs stay as they are."""
    plain = {"%25": "%", "%0A": "\n", "%0D": "\r"}
    return re.sub("%25|%0[AaDd]", lambda match: plain[match[0].upper()], written)


def read_bag(folder: Path) -> tuple[FileRecord, ...]:
    """Payload of a bag as its manifest and ``fetch.txt`` tell, whether or not it is there."""
    sizes = {
        decode_path(path): int(size)
        for _, size, path in (
            line.split(" ", 2) for line in (folder / "fetch.txt").read_text().split("\n")[:-1]
        )
    }
    entries = {
        decode_path(path): sums["sha256"]
        for path, sums in bagit.Bag(str(folder)).payload_entries().items()
    }
    assert set(entries) == set(sizes)
    return tuple(
        FileRecord(path=path.removeprefix("data/"), size=sizes[path], sha256=entries[path])
        for path in sorted(entries)
    )


def validate_bag(folder: Path) -> list[str]:
    """What is wrong with a bag; its payload has to be there, and is read whole."""
    missing = [name for name in OWN_FILES if not (folder / name).is_file()]
    if missing:
        return [f"{folder}: no {', '.join(missing)}"]
    try:
        bag = bagit.Bag(str(folder))
        # bagit-python does not know that RFC 8493 writes a percent sign as %25.
        bag.entries = {decode_path(path): sums for path, sums in bag.entries.items()}
        bag.normalized_manifest_names = {
            unicodedata.normalize("NFC", path): path for path in bag.entries
        }
        bag.validate(processes=1)
    except bagit.BagValidationError as error:
        return [str(detail) for detail in error.details or ()] or [f"{folder}: {error}"]
    except (bagit.BagError, bagit.FileNormalizationConflict, OSError, ValueError) as error:
        return [f"{folder}: {error}"]
    return []
