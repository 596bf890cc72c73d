"""A ledger as a table that other programs read: CSV or Parquet, one row for each source event."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import xarray as xr
from numpy.typing import NDArray
from pyarrow import csv, parquet

from sfxreduce.decisions.decide import Decision, ScoreBound
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.errors import UsageError
from sfxreduce.io.files.durable import output_errors
from sfxreduce.io.readers.zarr.run import open_table
from sfxreduce.io.store.names import LEDGER_GROUP
from sfxreduce.io.writers.publish import check_outputs, staged
from sfxreduce.run.reasons import EventClass, Reason

__all__ = ["ledger_rows", "ledger_run"]

FORMULA_STARTS = "=+-@\t\r"
"""First characters of what spreadsheets compute when they open a CSV file, as OWASP lists them."""


def ledger_rows(table: xr.Dataset, *, where: str) -> pa.Table:
    """Ledger with decisions and reasons in words.

    Parameters
    ----------
    table : Dataset
        As a reduced store holds it.
    where : str
        Path of the store, for the message.

    Returns
    -------
    Table
        ``source_index``, ``source_file``, ``source_event``, ``score``, ``score_bound``,
        ``score_first``, ``decision``, ``reason`` (names joined by ``|``), ``tiles``, ``class``,
        ``n_peaks``, ``n_peaks_tiles``, ``payload`` (XXH3 of 128 bits in hexadecimal,
        empty where nothing was kept).

    Raises
    ------
    SchemaError
        If it does not account for every source event exactly once.
    """
    decisions = read_ledger(table, where=where)
    n_events = decisions.score.size
    absent = np.zeros(n_events, np.uint16)
    columns = {"source_index": np.arange(n_events)}
    for name in ("source_file", "source_event"):
        if name in table:
            columns[name] = table[name].values
    return pa.table(
        {
            **columns,
            "score": decisions.score,
            "score_bound": _names(decisions.bound, {b.value: b.name.lower() for b in ScoreBound}),
            "score_first": decisions.first,
            "decision": _names(decisions.decision, {d.value: d.name.lower() for d in Decision}),
            "reason": _reasons(decisions.reason),
            "tiles": absent if decisions.tiles is None else decisions.tiles,
            "class": _names(
                absent if decisions.event_class is None else decisions.event_class,
                {kind.value: kind.name.lower() for kind in EventClass},
            ),
            "n_peaks": decisions.peaks,
            "n_peaks_tiles": decisions.peak_tiles,
            "payload": _hexadecimal(decisions.payload, n_events),
        }
    )


def ledger_run(store: Path, out: Path, *, overwrite: bool = False) -> int:
    """Write the ledger of a reduced store as CSV or Parquet, as the name of the file says.

    Parameters
    ----------
    store : Path
        A reduced store.
    out : Path
        Ends in ``.csv`` or ``.parquet``.
    overwrite : bool
        Replace what lies there.

    Returns
    -------
    int
        Number of rows.

    Raises
    ------
    UsageError
        If the name says neither.
    SchemaError
        If the store has no ledger, or one that is damaged.
    OutputError
        If the file is there already or cannot be written.
    """
    if out.suffix not in (".csv", ".parquet"):
        raise UsageError(f"{out}: expected a name ending in .csv or .parquet, found '{out.suffix}'")
    check_outputs(files=[out], inputs=[store], overwrite=overwrite)
    rows = ledger_rows(open_table(store, LEDGER_GROUP), where=str(store))
    write = csv.write_csv if out.suffix == ".csv" else parquet.write_table
    if out.suffix == ".csv" and "source_file" in rows.column_names:
        rows = _without_formulas(rows, "source_file")
    with staged(files=[out], overwrite=overwrite) as hidden, output_errors(out):
        write(rows, hidden[out])
    return int(rows.num_rows)


def _without_formulas(rows: pa.Table, name: str) -> pa.Table:
    """Rows whose relative paths begin with ``./`` where a spreadsheet would take them for formulas.

    The path leads to the same file.
    """
    paths = rows.column(name).to_pylist()
    plain = [f"./{path}" if path[:1] in FORMULA_STARTS and path else path for path in paths]
    return rows.set_column(rows.column_names.index(name), name, pa.array(plain, pa.string()))


def _names(values: NDArray[np.unsignedinteger], words: dict[int, str]) -> NDArray[np.object_]:
    found, places = np.unique(values, return_inverse=True)
    return np.array([words.get(int(v), str(v)) for v in found], object)[places]


def _reasons(values: NDArray[np.uint32]) -> NDArray[np.object_]:
    found, places = np.unique(values, return_inverse=True)
    names = ["|".join(str(r.name).lower() for r in Reason if int(v) & r) for v in found]
    return np.array(names, object)[places]


def _hexadecimal(payload: NDArray[np.uint64] | None, n_events: int) -> NDArray[np.object_]:
    if payload is None:
        return np.full(n_events, "", object)
    return np.array(
        [f"{int(h):016x}{int(low):016x}" if h or low else "" for h, low in payload], object
    )
