"""What the process that reads an untrusted run says of it, and how that is taken in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import SourceError
from sfxreduce.io.store.metadata import detector_from_json, detector_to_json, illegal_value
from sfxreduce.run.columns import plain_text
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import DeclaresMissing, Run
from sfxreduce.run.window import Window

__all__ = ["Answers", "OpenedRun", "opened_run"]

_OF_RUN = ("path", "n_events", "experiment", "name", "provenance", "events_per_block")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenedRun:
    """All of a run but its frames.

    Parameters
    ----------
    facts : mapping
        ``path``, ``n_events``, ``dtype``, ``n_bytes``, ``inputs``, ``fill``, ``experiment``,
        ``name``, ``provenance`` and ``events_per_block``.
    """

    facts: Mapping[str, Any]
    detector: Detector
    columns: xr.Dataset
    truth: xr.Dataset | None


class Answers:
    """The child's side: opens one run, and reads its events.

    Parameters
    ----------
    open_run : callable
        `sfxreduce.io.open.open_run`, which this module cannot import: it leads here.
    """

    def __init__(self, open_run: Callable[..., Run]) -> None:
        self._open_run = open_run
        self._run: Run | None = None

    def to(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Answer a question.

        Raises
        ------
        SfxReduceError
            If the run cannot be opened.
        """
        if "paths" in question:
            self._run = self._open_run(
                question["paths"], data_path=question["data_path"], roots=question["roots"]
            )
            return _of_run(self._run)
        if self._run is None:
            raise SourceError("no run was opened")
        tiles = question["window"]
        window = None if tiles is None else _window(tiles)
        reading = self._run.source.read(question["events"], window)
        places = list(reading.missing)
        return {"missing": places}, [
            reading.reasons,
            reading.pixels,
            *(reading.missing[place] for place in places),
        ]


def _window(tiles: Mapping[str, Any]) -> Window:
    n_y, n_x = tiles["tile_shape"]
    origins = tuple((int(y), int(x)) for y, x in tiles["origins"])
    return Window(name=str(tiles["name"]), tile_shape=(n_y, n_x), origins=origins)


def _of_run(run: Run) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Describe a run in a message."""
    arrays: list[NDArray[Any]] = [run.detector.mask]
    return {
        "facts": {
            **{name: getattr(run, name) for name in _OF_RUN},
            "dtype": np.dtype(run.source.dtype).str,
            "n_bytes": run.source.n_bytes,
            "inputs": [str(path) for path in run.source.inputs],
            "fill": _fill_of(run),
        },
        "detector": detector_to_json(run.detector),
        "columns": _of_table(run.columns, arrays),
        "not_carried": run.columns.attrs.get("not_carried"),
        "warnings": list(run.warnings),
        "truth": None if run.truth is None else _of_table(run.truth, arrays),
    }, arrays


def _fill_of(run: Run) -> int | None:
    """What stands in missing pixels; None for those that hold NaN."""
    dtype = np.dtype(run.source.dtype)
    if dtype.kind == "f":
        return None
    return int(run.source.fill if isinstance(run.source, DeclaresMissing) else illegal_value(dtype))


def _of_table(table: xr.Dataset, arrays: list[NDArray[Any]]) -> list[dict[str, Any]]:
    """Describe a table; its numbers are added to the arrays."""
    described = []
    for name, variable in table.variables.items():
        entry: dict[str, Any] = {"name": str(name), "attrs": _plain(variable.attrs)}
        entry["dims"] = [str(dim) for dim in variable.dims]
        values = np.asarray(variable.values)
        if values.dtype.kind in "biuf":
            entry["array"] = len(arrays)
            arrays.append(values)
        else:
            entry["text"] = [str(value) for value in values.ravel()]
            entry["shape"] = list(values.shape)
        described.append(entry)
    return described


def _plain(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes that JSON can hold."""
    plain = {}
    for name, value in attributes.items():
        item = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        if isinstance(item, str | int | float | bool | list):
            plain[str(name)] = item
    return plain


def opened_run(answer: Mapping[str, Any], arrays: list[NDArray[Any]], *, where: str) -> OpenedRun:
    """Take in what a process said of the run at `where`; nothing of it is believed to be in form.

    Raises
    ------
    SourceError
        If it makes no sense.
    SchemaError
        If the detector makes none.
    """
    try:
        facts = dict(answer["facts"])
        _check_facts(facts)
        mask = np.asarray(arrays[0], np.uint32)
        truth, left = answer["truth"], answer["not_carried"]
        columns = _table(answer["columns"], arrays)
        if left is not None:
            columns.attrs["not_carried"] = [str(path) for path in left]
        columns.attrs["warnings"] = [plain_text(str(text)) for text in answer["warnings"]]
        return OpenedRun(
            facts=facts,
            detector=detector_from_json(answer["detector"], mask=mask, where=where),
            columns=columns,
            truth=None if truth is None else _table(truth, arrays),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise SourceError(
            f"{where}: the process that read it said something that makes no sense ({error}); "
            "nothing of it was used"
        ) from error


def _check_facts(facts: dict[str, Any]) -> None:
    """Hold numbers and names of a run against what they have to be; raises ValueError."""
    for name in ("n_events", "n_bytes", "events_per_block"):
        if type(facts[name]) is not int or facts[name] < (name == "events_per_block"):
            raise ValueError(f"{name} {facts[name]!r:.40}")
    for name in ("path", "dtype", "experiment", "name", "provenance"):
        facts[name] = str(facts[name])
    facts["fill"] = math.nan if facts["fill"] is None else int(facts["fill"])
    if np.dtype(facts["dtype"]).kind not in "iuf":
        raise ValueError(f"dtype {facts['dtype']:.40}")


def _table(described: Iterable[Mapping[str, Any]], arrays: list[NDArray[Any]]) -> xr.Dataset:
    """Table of its description."""
    variables = {}
    for entry in described:
        if "text" in entry:
            values = np.array([str(text) for text in entry["text"]], object)
            values = values.reshape([int(n) for n in entry["shape"]])
        else:
            values = arrays[int(entry["array"])]
        dims = [str(dim) for dim in entry["dims"]]
        variables[str(entry["name"])] = (dims, values, dict(entry["attrs"]))
    return xr.Dataset(variables)
