"""Model folders: ``model.safetensors``, ``config.json`` and ``README.md``, in and out.

Weights are never pickled: a model file from elsewhere must not be able to run code. The same
weights and the same configuration give the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load

from sfxreduce.errors import ModelError, OutputExists, UsageError
from sfxreduce.io.files.durable import output_errors, write_file
from sfxreduce.io.files.safe_read import parse_as, parse_json, read_small
from sfxreduce.io.writers.publish import recover, staged
from sfxreduce.scorers.cnn.model import Model, ModelConfig

__all__ = ["SCHEMA", "check_model_path", "default_model", "read_model", "write_model"]

SCHEMA = 5
"""Version of the configuration's layout. Version 3 knew no search on squares of pixels, version 4
no first look."""

MOST_WEIGHT_BYTES = 1 << 30
MOST_HEADER_BYTES = 1 << 20
MOST_CONFIG_BYTES = 4 << 20
MOST_CARD_BYTES = 4 << 20

_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
_CARD = "README.md"


def default_model() -> Path:
    """Folder of the model that comes with the package."""
    return Path(str(files("sfxreduce.scorers"))) / "models" / "default"


def read_model(path: Path | str) -> Model:
    """Read a model folder.

    Raises
    ------
    ModelError
        If a file is missing, damaged, of another schema, or not the one the configuration names.
    """
    folder = Path(path)
    encoded = _read(folder, _WEIGHTS, MOST_WEIGHT_BYTES)
    document = _document(folder)
    found = hashlib.sha256(encoded).hexdigest()
    if document["weights_sha256"] != found:
        raise ModelError(
            f"{folder / _WEIGHTS}: expected sha256 {document['weights_sha256']}, found {found}; "
            "the file was changed or damaged, copy the model again"
        )
    try:
        _check_header(encoded)
        weights = load(encoded)
    except (SafetensorError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise ModelError(
            f"{folder / _WEIGHTS}: not a safetensors file ({error}); copy the model again"
        ) from error
    card = _read(folder, _CARD, MOST_CARD_BYTES) if (folder / _CARD).is_file() else b""
    model = Model(
        config=_config(document["config"], folder),
        weights=weights,
        card=card.decode("utf-8", errors="replace"),
    )
    try:
        _ = model.usual, model.usual_first, model.class_head
    except ModelError as error:
        raise ModelError(f"{folder / _WEIGHTS}: {error}") from error
    return model


def check_model_path(path: Path | str, *, overwrite: bool = False) -> None:
    """Refuse a folder that `write_model` would refuse: before hours of training, not after.

    Raises
    ------
    OutputExists
        If something lies at `path` and is not to be overwritten, or is no model.
    """
    folder = Path(path)
    recover(folder)
    if folder.exists() and not (overwrite and _is_model(folder)):
        raise OutputExists(
            f"{folder}: expected no folder, found one; pass another --out"
            + ("" if overwrite else " or --overwrite")
        )


def write_model(path: Path | str, model: Model, *, overwrite: bool = False) -> None:
    """Write a model folder; it is complete under its name, or it is not there.

    Parameters
    ----------
    path : Path or str
        The folder; its parent is made if need be.
    overwrite : bool
        Replace a model that is already there.

    Raises
    ------
    OutputExists
        If something lies at `path` and is not to be overwritten, or is no model.
    OutputError
        If the folder cannot be written.
    """
    folder = Path(path)
    check_model_path(folder, overwrite=overwrite)
    document = {"schema": SCHEMA, "weights_sha256": model.sha256, "config": asdict(model.config)}
    contents = {
        _WEIGHTS: model.encoded,
        _CONFIG: (json.dumps(document, indent=2, sort_keys=True) + "\n").encode(),
        _CARD: model.card.encode(),
    }
    with output_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        staged(stores=[folder], overwrite=overwrite, is_ours=_is_model) as paths,
        output_errors(folder),
    ):
        paths[folder].mkdir()
        for name, data in contents.items():
            write_file(paths[folder] / name, data)


def _is_model(path: Path) -> bool:
    return (path / _CONFIG).is_file() and not path.is_symlink()


def _read(folder: Path, name: str, most_bytes: int) -> bytes:
    """Read one file of a model."""
    try:
        return read_small(folder / name, most_bytes=most_bytes)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder}: expected a model folder with {_WEIGHTS} and {_CONFIG}, found no readable "
            f"{name} ({getattr(error, 'strerror', None) or error}); make one with 'sfxreduce train'"
        ) from error


def _check_header(encoded: bytes) -> None:
    """Refuse a header that is no JSON of a few arrays, before the library parses it.

    Raises
    ------
    ValueError
        If it is longer than `MOST_HEADER_BYTES` or than the file, or is no plain JSON.
    """
    n_bytes = int.from_bytes(encoded[:8], "little")
    if n_bytes > min(MOST_HEADER_BYTES, len(encoded) - 8):
        raise ValueError(f"a header of {n_bytes} bytes in a file of {len(encoded)}")
    parse_json(encoded[8 : 8 + n_bytes])


def _document(folder: Path) -> dict[str, Any]:
    """Parse a model's configuration and check its schema."""
    try:
        document = parse_json(_read(folder, _CONFIG, MOST_CONFIG_BYTES))
    except ValueError as error:
        raise ModelError(
            f"{folder / _CONFIG}: expected JSON, found {error}; copy the model again"
        ) from error
    wanted = {"schema", "weights_sha256", "config"}
    is_known = isinstance(document, dict) and set(document) == wanted
    if not is_known or document["schema"] not in range(SCHEMA - 2, SCHEMA + 1):
        raise ModelError(
            f"{folder / _CONFIG}: expected schema {SCHEMA} with {sorted(wanted)}, found something "
            "else; it is from another version of sfxreduce, train again or install that version"
        )
    if document["schema"] < SCHEMA:
        with contextlib.suppress(AttributeError, KeyError, TypeError):  # `_config` says what is odd
            document["config"]["candidates"].setdefault("coarse", 1)
            document["config"].setdefault("covers", [])
            document["config"].setdefault("first_look", None)
    known: dict[str, Any] = document
    return known


def _config(values: Any, folder: Path) -> ModelConfig:
    """Build the configuration, and say which entry is not as expected."""
    try:
        return parse_as(ModelConfig, values)
    except (ValueError, ModelError, UsageError) as error:
        raise ModelError(
            f"{folder / _CONFIG}: not the configuration of a model ({error}); "
            "copy the model again or train a new one"
        ) from error
