"""Training of the head that tells single crystals, several crystals and artefacts apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sfxreduce.run.reasons import EventClass
from sfxreduce.scorers.cnn.model import CALIBRATION, Model
from sfxreduce.scorers.cnn.patches.pooling import class_of
from sfxreduce.simulate.truth import Kind

__all__ = [
    "ClassHead",
    "classes_of_kinds",
    "confusion_of",
    "fit_head",
    "table_of_confusions",
    "with_head",
]

_CLASS_OF_KIND = {
    Kind.BLANK: EventClass.UNKNOWN,
    Kind.HIT: EventClass.SINGLE,
    Kind.WEAK: EventClass.SINGLE,
    Kind.MULTI: EventClass.MULTIPLE,
    Kind.ARTEFACT: EventClass.ARTEFACT,
}
_N_CLASSES = len(EventClass) - 1
_ROUNDS = 200
_WEIGHT_DECAY = 1e-2


class ClassHead(NamedTuple):
    """Weights of `sfxreduce.scorers.cnn.patches.pooling.class_of`, for features as they come."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]


def classes_of_kinds(kinds: NDArray[np.integer]) -> NDArray[np.uint8]:
    """`EventClass` of events by their true `Kind`; a blank has none."""
    table = np.array([_CLASS_OF_KIND[kind] for kind in Kind], np.uint8)
    found: NDArray[np.uint8] = table[kinds]
    return found


def fit_head(features: NDArray[np.float64], classes: NDArray[np.uint8]) -> ClassHead:
    """Fit the head; every class weighs the same, and the same input gives the same head.

    Parameters
    ----------
    features : ndarray
        Shape (event, feature).
    classes : ndarray of uint8
        `EventClass`, shape (event,); unknown ones are left out.
    """
    known = classes > EventClass.UNKNOWN
    own, target = features[known], classes[known].astype(np.int64) - EventClass.SINGLE
    mean, spread = own.mean(axis=0), own.std(axis=0) + 1e-6
    seen, wanted = torch.from_numpy((own - mean) / spread), torch.from_numpy(target)
    counts = np.bincount(target, minlength=_N_CLASSES)
    balance = torch.from_numpy(target.size / (_N_CLASSES * np.maximum(counts, 1.0)))
    weight = torch.zeros((own.shape[1], _N_CLASSES), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(_N_CLASSES, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=_ROUNDS)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = seen @ weight + bias
        found = torch.nn.functional.cross_entropy(logits, wanted, weight=balance)
        found = found + _WEIGHT_DECAY * (weight**2).sum()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    scaled = weight.detach().numpy() / spread[:, np.newaxis]
    return ClassHead(weight=scaled, bias=bias.detach().numpy() - mean @ scaled)


def confusion_of(
    head: ClassHead, features: NDArray[np.float64], classes: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Count events by their true class (rows) and by what the head says (columns)."""
    told = class_of(features, head.weight, head.bias)
    table = np.zeros((_N_CLASSES, _N_CLASSES), np.int64)
    known = classes > EventClass.UNKNOWN
    first = int(EventClass.SINGLE)
    np.add.at(table, (classes[known] - first, told[known] - first), 1)
    return table


def table_of_confusions(names: Sequence[str], tables: Sequence[NDArray[np.int64]]) -> str:
    """Table in Markdown: one line for each experiment and true class."""
    classes = [kind.name.lower() for kind in EventClass if kind is not EventClass.UNKNOWN]
    lines = [
        "What the class head says of events whose class is known, in experiments it has not seen:",
        "",
        f"| experiment left out | true class | {' | '.join(classes)} |",
        "|---|---|---|---|---|",
    ]
    for name, table in zip(names, tables, strict=True):
        for kind, row in zip(classes, table.tolist(), strict=True):
            lines.append(f"| {name} | {kind} | {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def with_head(model: Model, head: ClassHead) -> Model:
    """Return the same model with a class head, stored as float32."""
    arrays = {"class_weight": head.weight, "class_bias": head.bias}
    stored = {f"{CALIBRATION}{name}": array.astype(np.float32) for name, array in arrays.items()}
    return replace(model, weights={**model.weights, **stored})
