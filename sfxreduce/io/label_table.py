"""Labels of a run's events as one CSV file: written whole, read back and held against the run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import LabelError, RunNotFound, SourceError
from sfxreduce.io.files.durable import write_file
from sfxreduce.io.files.safe_read import read_small
from sfxreduce.io.writers.publish import check_outputs, staged
from sfxreduce.run.labels import Label
from sfxreduce.run.run import Run

__all__ = ["COLUMNS", "read_labels", "write_labels"]

MOST_LABEL_BYTES = 256 << 20
"""Longest file of labels: some four million events."""

MOST_DIGITS = 19

COLUMNS = ("event", "event_id", "label", "source")


def write_labels(
    path: Path, label: NDArray[np.int8], *, run: Run, source: str, overwrite: bool = False
) -> None:
    """Write the label of every event of a run as CSV, whole or not at all.

    Parameters
    ----------
    label : ndarray of int8
        Shape (event,): `Label` of each event.
    source : str
        Where the labels are from: "peaks", "quartiles", "truth", "stream" or "csv".

    Raises
    ------
    OutputExists
        If the file exists and is not to be replaced.
    OutputError
        If it cannot be written.
    """
    check_outputs(files=[path], inputs=run.inputs, overwrite=overwrite)
    names = [str(name) for name in run.columns["event_id"].values]
    # A bare carriage return would be read back as the end of a row.
    is_odd = any("\r" in name for name in names)
    text = io.StringIO()
    text.write(",".join(COLUMNS) + "\n")
    rows = csv.writer(
        text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC if is_odd else csv.QUOTE_MINIMAL
    )
    rows.writerows(
        (event, name, Label(int(value)).name.lower(), source)
        for event, (name, value) in enumerate(zip(names, label, strict=True))
    )
    with staged(files=[path], overwrite=overwrite) as hidden:
        write_file(hidden[path], text.getvalue().encode())


def read_labels(path: Path, *, run: Run) -> NDArray[np.int8]:
    """Labels of a run's events from a CSV file; events that it does not list are left open.

    Parameters
    ----------
    path : Path
        With the columns ``label`` (hit, miss or maybe, in any case) and ``event`` or, as files of
        an audit or a review have it, ``source_index`` (position in the run), or ``event_id``. With
        position and ``event_id``, they must name the same event; but a table of
        `write_labels` may be of the run's hits, whose positions are others: if they are, its events
        are found by ``event_id``.

    Returns
    -------
    ndarray of int8
        Shape (event,): `Label` of each event.

    Raises
    ------
    RunNotFound
        If there is no such file.
    SourceError
        If it cannot be read as text.
    LabelError
        If a column is missing, a label or an event is not known, or two rows disagree.
    """
    try:
        text = read_small(path, most_bytes=MOST_LABEL_BYTES).decode("utf-8-sig")
        by_id = _is_of_hits(csv.DictReader(io.StringIO(text, newline="")), run)
        return _read(csv.DictReader(io.StringIO(text, newline="")), path, run, by_id=by_id)
    except FileNotFoundError as error:
        raise RunNotFound(f"{path}: no such file; check the path of the labels") from error
    except (OSError, UnicodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as CSV ({error}); save it as UTF-8") from error


def _is_of_hits(rows: csv.DictReader[str], run: Run) -> bool:
    """Whether a table of our own has its events at other positions than the run, and all of them
    by the names of the run's.
    """
    names = [str(name) for name in run.columns["event_id"].values]
    known, moved = set(names), False
    if tuple(rows.fieldnames or ()) != COLUMNS:
        return False
    for number, row in enumerate(rows):
        if row["event_id"] not in known or row["event"] != str(number):
            return False
        moved = moved or number >= len(names) or row["event_id"] != names[number]
    return moved


def _read(rows: csv.DictReader[str], path: Path, run: Run, *, by_id: bool) -> NDArray[np.int8]:
    """Labels of all rows; by the names of their events alone if so asked."""
    names = tuple(rows.fieldnames or ())
    if "label" not in names or not {"event", "event_id", "source_index"} & set(names):
        raise LabelError(
            f"{path}: expected the columns label and event, source_index or event_id, found "
            f"{', '.join(names)}"
        )
    events = [str(name) for name in run.columns["event_id"].values]
    by_name: dict[str, int] = {}
    for event, name in enumerate(events):
        by_name[name] = -1 if name in by_name else event
    label = np.full(run.n_events, Label.MAYBE, np.int8)
    given = np.zeros(run.n_events, np.bool_)
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if by_id:
            row["event"] = ""
        event = _event_of(row, events, by_name, where=where, run=run.path)
        value = _label(row["label"], where=where)
        if given[event] and label[event] != value:
            raise LabelError(
                f"{where}: event {event} is called {value.name.lower()}, but above "
                f"{Label(int(label[event])).name.lower()}; leave one of them"
            )
        label[event], given[event] = value, True
    return label


def _label(word: str | None, *, where: str) -> Label:
    """Label of a word."""
    try:
        return Label[(word or "").strip().upper()]
    except KeyError as error:
        raise LabelError(f"{where}: expected hit, miss or maybe, found '{word}'") from error


def _event_of(
    row: dict[str, str], names: Sequence[str], by_name: Mapping[str, int], *, where: str, run: str
) -> int:
    """Position of the event that a row means; `by_name` has -1 where several share a name."""
    position = (row.get("event") or row.get("source_index") or "").strip()
    name = row.get("event_id") or ""
    if not position:
        event = by_name.get(name, -1) if name else -1
        if event < 0:
            many = "several events" if name in by_name else "no event"
            raise LabelError(f"{where}: {run} has {many} with the event_id '{name}'")
        return event
    is_number = position.isascii() and position.isdigit() and len(position) < MOST_DIGITS
    if not (is_number and int(position) < len(names)):
        raise LabelError(
            f"{where}: expected an event from 0 to {len(names) - 1} of {run}, "
            f"found '{position[:40]}'"
        )
    event = int(position)
    if name and name != names[event]:
        raise LabelError(
            f"{where}: event {event} of {run} is '{names[event]}', found '{name}'; "
            "are these the labels of another run?"
        )
    return event
