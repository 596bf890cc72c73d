"""Model folders: ``model.safetensors``, ``config.json`` and ``README.md``, in and out.

Weights are never pickled: a model file from elsewhere must not be able to run code. The same
weights and the same configuration give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sfxreduce.drift import Reference
from sfxreduce.errors import ModelError, OutputError, OutputExists, UsageError
from sfxreduce.geometry import CENTRE_TILE
from sfxreduce.level import LevelRule
from sfxreduce.probability import Calibration, ReliabilityBin
from sfxreduce.scorers.candidates import CandidateFinder
from sfxreduce.scorers.normalise import Normalisation
from sfxreduce.scorers.pooling import Pooling
from sfxreduce.scorers.unlike import Usual
from sfxreduce.small_files import parse_json, read_small
from sfxreduce.window_choice import CENTRE, TileChoice, WindowLoss

__all__ = [
    "ARCHITECTURES",
    "CALIBRATION",
    "SCHEMA",
    "USUAL",
    "Model",
    "ModelConfig",
    "Provenance",
    "TrainingRun",
    "check_model_path",
    "default_model",
    "read_model",
    "write_model",
]

SCHEMA = 3
"""Version of the configuration's layout."""

ARCHITECTURES = ("poster", "patches")
"""Networks by name."""

CALIBRATION = "calibration."
"""Beginning of the names of arrays that are no weights: what the threshold rests on."""

USUAL = tuple(f"{CALIBRATION}traits_{name}" for name in ("mean", "whitening", "limit"))
"""Names of the arrays of what is usual: see `sfxreduce.scorers.unlike.Usual`."""

MOST_WEIGHT_BYTES = 1 << 30
MOST_HEADER_BYTES = 1 << 20
MOST_CONFIG_BYTES = 4 << 20
MOST_CARD_BYTES = 4 << 20

_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
_CARD = "README.md"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """One run a model has learned from or was stopped by.

    Parameters
    ----------
    experiment, name : str
    role : str
        "training", "stopping" or "threshold".
    events, hits, misses, unlabelled : int
        Numbers of events; the last three sum to the first.
    """

    experiment: str
    name: str
    role: str
    events: int
    hits: int
    misses: int
    unlabelled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How a model came to be.

    Parameters
    ----------
    recipe : mapping
        Every setting of the recipe, its name included.
    seed : int
    labels : str
        In one sentence, how events were told into hits and misses.
    threshold : str
        In one sentence, how the threshold was chosen.
    runs : tuple of TrainingRun
    versions : mapping of str to str
        Of the packages that made the numbers.
    """

    recipe: Mapping[str, bool | float | int | str] = field(default_factory=dict)
    seed: int = 0
    labels: str = ""
    threshold: str = ""
    runs: tuple[TrainingRun, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything about a model but its numbers.

    Parameters
    ----------
    architecture : str
        One of `ARCHITECTURES`.
    window : TileChoice
        Tiles of the assembled picture that the threshold was chosen for.
    curve : tuple of WindowLoss
        What was lost through other windows when this one was chosen.
    tile_shape : tuple of int
        (y, x) pixels of a tile of the window.
    threshold : float
        Smallest hit probability of a hit, in a run of the lowest level.
    hit : str
        What was a hit when the threshold was chosen: "an event with ...".
    shows : str
        What shows diffraction, in the words of the calibrated probability.
    reliability : tuple of ReliabilityBin
        Calibrated probabilities against what became true, on experiments not learned from.
    normalisation : Normalisation
        For the poster's network.
    candidates : CandidateFinder
    pooling : Pooling
        For the patch network.
    level : LevelRule
        How the threshold follows the level of a run's own scores.
    provenance : Provenance
    """

    architecture: str = "poster"
    window: TileChoice = CENTRE
    curve: tuple[WindowLoss, ...] = ()
    tile_shape: tuple[int, int] = CENTRE_TILE
    threshold: float = 0.5
    hit: str = "what the labels call one"
    shows: str = ""
    reliability: tuple[ReliabilityBin, ...] = ()
    normalisation: Normalisation = field(default_factory=Normalisation)
    candidates: CandidateFinder = field(default_factory=CandidateFinder)
    pooling: Pooling = field(default_factory=Pooling)
    level: LevelRule = field(default_factory=LevelRule)
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES or self.tile_shape != CENTRE_TILE:
            raise ModelError(
                f"model: expected an architecture of {ARCHITECTURES} and tiles of {CENTRE_TILE} "
                f"pixels, found {(self.architecture, self.tile_shape)}; a newer sfxreduce may know "
                "them"
            )
        if not 0.0 <= self.threshold <= 1.0:
            raise ModelError(
                f"model: expected a threshold between 0 and 1, found {self.threshold}; "
                "it is a probability"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A trained network and what is known about it.

    Parameters
    ----------
    config : ModelConfig
    weights : mapping of str to ndarray of float32
        The network's parameters by their names.
    card : str
        Model card in Markdown: what it is for, how well it does, where it fails.
    """

    config: ModelConfig
    weights: Mapping[str, NDArray[np.float32]] = field(repr=False)
    card: str = field(default="", repr=False)

    @property
    def encoded(self) -> bytes:
        """Bytes of ``model.safetensors``."""
        arrays = {name: np.ascontiguousarray(self.weights[name]) for name in sorted(self.weights)}
        return bytes(save(arrays))

    @property
    def sha256(self) -> str:
        """SHA-256 of ``model.safetensors`` in hexadecimal: the model's name in every output."""
        return hashlib.sha256(self.encoded).hexdigest()

    @property
    def hit_scores(self) -> NDArray[np.float32]:
        """Scores of the labelled hits the threshold rests on; none if it rests on no count."""
        none = np.zeros(0, np.float32)
        return self.weights.get(f"{CALIBRATION}hit_scores", none)

    @property
    def hit_groups(self) -> NDArray[np.int32]:
        """Experiment of each of these hits; one and the same where they are not told apart."""
        alike = np.zeros(self.hit_scores.size, np.int32)
        return np.asarray(self.weights.get(f"{CALIBRATION}hit_groups", alike), np.int32)

    @property
    def class_head(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Weight and bias of `sfxreduce.scorers.classes.class_of`; None if it has no such head."""
        weight = self.weights.get(f"{CALIBRATION}class_weight")
        bias = self.weights.get(f"{CALIBRATION}class_bias")
        return None if weight is None or bias is None else (weight, bias)

    @property
    def usual(self) -> Usual | None:
        """Which events are like the calibrated ones; None if that was not measured.

        Raises
        ------
        ModelError
            If only a part of it is there, or it is damaged.
        """
        missing = sorted(name for name in USUAL if name not in self.weights)
        if len(missing) == len(USUAL):
            return None
        if missing:
            raise ModelError(
                f"model: expected all of what is usual, or nothing of it, found no {missing}; "
                "copy the model again, or train it anew"
            )
        mean, whitening, limit = (self.weights[name].astype(np.float64) for name in USUAL)
        return Usual(mean=mean, whitening=whitening, limit=float(limit.max(initial=-np.inf)))

    def without_usual(self) -> Model:
        """The same model, to which no event is unlike the calibrated ones."""
        kept = {name: array for name, array in self.weights.items() if name not in USUAL}
        return replace(self, weights=kept)

    @property
    def probability(self) -> Calibration | None:
        """From reduced scores to calibrated probabilities; None if that was not measured."""
        knots = self.weights.get(f"{CALIBRATION}probability")
        if knots is None:
            return None
        *inner, (hit_rate, _) = knots.astype(np.float64).tolist()
        score, probability = np.array(inner).T
        return Calibration(score=score, probability=probability, hit_rate=hit_rate)

    @property
    def reference(self) -> Reference:
        """What a run is compared with; a part that is not stored with the model is empty."""

        def stored(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
            return self.weights.get(f"{CALIBRATION}{name}", np.zeros(shape, np.float32))

        return Reference(
            hit_scores=self.hit_scores,
            blank_scores=stored("blank_scores", (0,)),
            envelope=stored("envelope", (0, 2)).astype(np.float64),
            usual_shape=float(stored("usual_shape", (1,))[0]),
        )


def default_model() -> Path:
    """Folder of the model that comes with the package."""
    return Path(str(files("sfxreduce"))) / "models" / "default"


def read_model(path: Path | str) -> Model:
    """Read a model folder.

    Parameters
    ----------
    path : Path or str

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
        _ = model.usual
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
    if folder.exists() and not (overwrite and (folder / _CONFIG).is_file()):
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
    model : Model
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
    parts = {
        _WEIGHTS: model.encoded,
        _CONFIG: (json.dumps(document, indent=2, sort_keys=True) + "\n").encode(),
        _CARD: model.card.encode(),
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as near:
            _publish(parts, Path(near), folder)
    except OSError as error:
        raise OutputError(
            f"{folder}: the model cannot be written ({error}); free space or pass another --out"
        ) from error


def _publish(parts: Mapping[str, bytes], near: Path, folder: Path) -> None:
    """Write the files beside the folder, then let them take its place."""
    staged = near / "new"
    staged.mkdir()
    for name, data in parts.items():
        with (staged / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    if not folder.exists():
        staged.replace(folder)
        return
    folder.replace(near / "old")
    try:
        staged.replace(folder)
    except OSError:
        (near / "old").replace(folder)
        raise


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
    if not isinstance(document, dict) or set(document) != wanted or document["schema"] != SCHEMA:
        raise ModelError(
            f"{folder / _CONFIG}: expected schema {SCHEMA} with {sorted(wanted)}, found something "
            "else; it is from another version of sfxreduce, train again or install that version"
        )
    return document


def _config(values: dict[str, Any], folder: Path) -> ModelConfig:
    """Build the configuration, and say which entry is not as expected."""
    try:
        provenance = dict(values["provenance"])
        provenance["runs"] = tuple(_build(TrainingRun, run) for run in provenance["runs"])
        return _build(
            ModelConfig,
            values
            | {
                "window": _build(TileChoice, values["window"]),
                "curve": tuple(map(_window_loss, values["curve"])),
                "reliability": tuple(_build(ReliabilityBin, v) for v in values["reliability"]),
                "tile_shape": tuple(values["tile_shape"]),
                "normalisation": _build(Normalisation, values["normalisation"]),
                "candidates": _build(CandidateFinder, values["candidates"]),
                "pooling": _build(Pooling, values["pooling"]),
                "level": _build(LevelRule, values["level"]),
                "provenance": _build(Provenance, provenance),
            },
        )
    except (KeyError, TypeError, ValueError, ModelError, UsageError) as error:
        raise ModelError(
            f"{folder / _CONFIG}: not the configuration of a model ({error}); "
            "copy the model again or train a new one"
        ) from error


def _window_loss(values: Mapping[str, Any]) -> WindowLoss:
    """One point of the curve."""
    return _build(WindowLoss, {**values, "tiles": _build(TileChoice, values["tiles"])})


def _build(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """Build a dataclass from exactly its fields: a misspelt or absent one is an error."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{kind.__name__}: expected its entries, found {values!r}")
    wanted = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if set(values) != wanted:
        odd = sorted(wanted.symmetric_difference(values))
        raise ValueError(f"{kind.__name__}: missing or unknown {odd}")
    return kind(**values)
