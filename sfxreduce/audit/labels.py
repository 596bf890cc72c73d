"""Labels of audited events: from the peak finder, an indexer or a person, as one CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sfxreduce.errors import LabelError
from sfxreduce.run.labels import Label

__all__ = ["EventLabel", "label_by_count", "labels_from_csv", "labels_to_csv"]

COLUMNS = ("source_index", "label", "by")


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLabel:
    """What one event is held to be, and by whom.

    Parameters
    ----------
    source_index : int
        Position of the event in its source run.
    label : Label
        `Label.MAYBE` if it cannot be told, or the event cannot be read.
    by : str
        The definition applied: a method with its settings, or who looked.
    """

    source_index: int
    label: Label
    by: str


def label_by_count(
    events: Sequence[int], counts: ArrayLike, *, min_peaks: int, by: str
) -> tuple[EventLabel, ...]:
    """Label events by their number of Bragg peaks on the whole frame.

    Parameters
    ----------
    events : sequence of int
        Positions in the source run.
    counts : array_like
        Peaks of each, in the same order; NaN where the event cannot be read or trusted.
    min_peaks : int
        Fewest peaks of a hit.
    by : str
        Name of the finder and its settings.

    Examples
    --------
    >>> [e.label.name for e in label_by_count([4, 7, 9], [0, 12, np.nan], min_peaks=8, by="me")]
    ['MISS', 'HIT', 'MAYBE']
    """
    definition = f"{by}, at least {min_peaks} peaks"
    number = np.asarray(counts, np.float64)
    label = np.select([np.isnan(number), number >= min_peaks], [Label.MAYBE, Label.HIT], Label.MISS)
    return tuple(
        EventLabel(source_index=int(event), label=Label(int(value)), by=definition)
        for event, value in zip(events, label, strict=True)
    )


def labels_to_csv(labels: Iterable[EventLabel]) -> str:
    """Text of a CSV with the columns source_index, label (hit, miss, maybe) and by.

    Examples
    --------
    >>> print(labels_to_csv([EventLabel(source_index=3, label=Label.HIT, by="A. Looker")]), end="")
    source_index,label,by
    3,hit,A. Looker
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows((e.source_index, e.label.name.lower(), e.by) for e in labels)
    return text.getvalue()


def labels_from_csv(text: str, *, where: str) -> tuple[EventLabel, ...]:
    """Labels of a CSV: source_index and label (hit, miss or maybe), and who gave it if it says so.

    This is how an indexer or a person takes part in an audit: list the events, say what they are.

    Parameters
    ----------
    where : str
        Name of the file: for messages, and as the labeller of rows that name none.

    Raises
    ------
    LabelError
        If a column is missing, a value is none of these, or an event is listed twice.
    """
    rows = csv.DictReader(io.StringIO(text))
    try:
        found = tuple(rows.fieldnames or ())
    except csv.Error as error:
        raise LabelError(f"{where}: cannot be read as CSV ({error})") from error
    if not {*COLUMNS[:2]} <= set(found):
        raise LabelError(f"{where}: expected the columns source_index and label, found {found[:8]}")
    labels: dict[int, EventLabel] = {}
    for row in _rows(rows, where):
        try:
            label = EventLabel(
                source_index=int(row["source_index"]),
                label=Label[row["label"].strip().upper()],
                by=(row.get("by") or "").strip() or where,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LabelError(
                f"{where}, line {rows.line_num}: expected a position and hit, miss or maybe, "
                f"found '{str(row['source_index'])[:40]}' and '{str(row['label'])[:40]}'"
            ) from error
        if label.source_index in labels:
            raise LabelError(
                f"{where}, line {rows.line_num}: event {label.source_index} is listed twice; "
                "one label per event"
            )
        labels[label.source_index] = label
    return tuple(labels.values())


def _rows(rows: csv.DictReader[str], where: str) -> Iterator[dict[str, str]]:
    """Rows of a CSV; what cannot be read as one is an error of ours."""
    try:
        yield from rows
    except csv.Error as error:
        raise LabelError(
            f"{where}, line {rows.line_num}: cannot be read as CSV ({error})"
        ) from error
