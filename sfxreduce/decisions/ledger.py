"""The ledger: every source event exactly once, with its score, its decision and why."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.decisions.decide import Decision, Decisions, ScoreBound
from sfxreduce.errors import SchemaError
from sfxreduce.run.reasons import EventClass, Reason, reason_named

__all__ = ["ledger_root", "ledger_table", "read_ledger"]


_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "source_index": {"long_name": "position in the source run", "units": "1"},
    "score": {"long_name": "score of the event", "units": "1"},
    "score_bound": {
        "long_name": "what the number is to the score of the event",
        "flag_values": [int(bound) for bound in ScoreBound],
        "flag_meanings": " ".join(bound.name.lower() for bound in ScoreBound),
    },
    "score_first": {"long_name": "score of the first tiles alone", "units": "1"},
    "decision": {
        "long_name": "what became of the event",
        "flag_values": [int(d) for d in Decision],
        "flag_meanings": " ".join(d.name.lower() for d in Decision),
    },
    "reason": {
        "long_name": "what is odd about the event",
        "flag_masks": [int(r) for r in Reason],
        "flag_meanings": " ".join(str(r.name).lower() for r in Reason),
    },
    "tiles": {
        "long_name": "tiles of the window that the score rests on; 0 for whole frames",
        "units": "1",
    },
    "class": {
        "long_name": "what kind of event it is; no decision rests on it",
        "flag_values": [int(kind) for kind in EventClass],
        "flag_meanings": " ".join(kind.name.lower() for kind in EventClass),
    },
    "n_peaks": {
        "long_name": "peaks by the conventional rule; -1 where not counted",
        "units": "1",
    },
    "n_peaks_tiles": {
        "long_name": "tiles on which peaks were counted; 0 for whole frames",
        "units": "1",
    },
    "peak_width_px": {
        "long_name": "median standard deviation of these peaks",
        "units": "pixel",
    },
    "payload_high": {
        "long_name": "high word of XXH3 (128 bits) of the event's encoded tiles in grid order as "
        "they are stored; zero where nothing was kept",
        "units": "1",
    },
    # A column each: a second axis would give every event two rows in a table.
    "payload_low": {"long_name": "low word of the same", "units": "1"},
}
"""What a ledger says of its own columns, in CF's words."""


def ledger_table(decisions: Decisions, columns: xr.Dataset | None = None) -> xr.Dataset:
    """Ledger of a run as a table, one row per source event in source order.

    Parameters
    ----------
    columns : Dataset, optional
        Per-event columns of the source: where each event lies in the files it was read from.

    Returns
    -------
    Dataset
        On dimension ``source``: ``source_index`` (int64), ``score`` (float32), ``score_bound``
        (uint8, with flag_values and flag_meanings), ``score_first`` (float32), ``decision`` (uint8,
        with flag_values and flag_meanings), ``reason`` (uint32, with flag_masks), ``tiles``
        (uint16), ``class`` (uint8, with flag_values and flag_meanings), ``n_peaks`` (int16),
        ``n_peaks_tiles`` (uint16), ``peak_width_px`` (float32), ``payload_high`` and
        ``payload_low`` (uint64); with `columns` also ``source_file`` (text) and ``source_event``
        (int64).

    Raises
    ------
    SchemaError
        If there are not as many decisions as events.

    Examples
    --------
    >>> from sfxreduce.decisions.decide import decide
    >>> made = decide(np.float32([0.9, 0.1]), np.zeros(2, np.uint32), threshold=0.5)
    >>> ledger_table(made).decision.values
    array([2, 0], dtype=uint8)
    """
    n_events = decisions.score.size
    if columns is not None and columns.sizes["event"] != n_events:
        raise SchemaError(
            f"ledger: {n_events} decisions for {columns.sizes['event']} source events; nothing is "
            "written that does not account for every event once"
        )
    located = {
        name: ("source", columns[name].values, columns[name].attrs)
        for name in ("source_file", "source_event")
        if columns is not None
    }
    return xr.Dataset(
        {
            **{
                name: ("source", values, _ATTRIBUTES[name])
                for name, values in _columns(decisions).items()
            },
            **located,
        }
    )


def _columns(decisions: Decisions) -> dict[str, NDArray[Any]]:
    """Columns of a ledger by their names."""
    n_events, payload = decisions.score.size, _payload(decisions)
    return {
        "source_index": np.arange(n_events, dtype=np.int64),
        "score": decisions.score.astype(np.float32),
        "score_bound": decisions.bound,
        "score_first": decisions.first.astype(np.float32),
        "decision": decisions.decision,
        "reason": decisions.reason,
        "tiles": np.zeros(n_events, np.uint16) if decisions.tiles is None else decisions.tiles,
        "class": (
            np.zeros(n_events, np.uint8) if decisions.event_class is None else decisions.event_class
        ),
        "n_peaks": decisions.peaks,
        "n_peaks_tiles": decisions.peak_tiles,
        "peak_width_px": decisions.peak_width_px,
        "payload_high": payload[:, 0],
        "payload_low": payload[:, 1],
    }


def _payload(decisions: Decisions) -> NDArray[np.uint64]:
    if decisions.payload is None:
        return np.zeros((decisions.score.size, 2), np.uint64)
    return decisions.payload


def read_ledger(table: xr.Dataset, *, where: str) -> Decisions:
    """Decisions as a ledger holds them.

    Parameters
    ----------
    table : Dataset
        As `ledger_table` made it.
    where : str
        Path of the store, for the message.

    Raises
    ------
    SchemaError
        If a column is missing, if not every source event is there exactly once and in order, or if
        the ledger gives the name of one reason to the bit of another.
    """
    missing = {"source_index", "score", "decision", "reason"} - set(map(str, table))
    if missing:
        raise SchemaError(f"{where}/ledger: no column {sorted(missing)}; was it made by 'filter'?")
    index = table["source_index"].values
    if not np.array_equal(index, np.arange(index.size)):
        raise SchemaError(
            f"{where}/ledger: expected every source event once and in order, found "
            f"{index.size} rows that are not; the ledger is damaged, filter the run again"
        )
    _check_names(table["reason"].attrs, where=where)
    return Decisions(
        decision=table["decision"].values.astype(np.uint8),
        reason=table["reason"].values.astype(np.uint32),
        score=table["score"].values.astype(np.float32),
        event_class=table["class"].values.astype(np.uint8) if "class" in table else None,
        tiles=table["tiles"].values.astype(np.uint16) if "tiles" in table else None,
        **_optional(table),
        payload=_stored_payload(table),
    )


def _stored_payload(table: xr.Dataset) -> NDArray[np.uint64] | None:
    """Hashes of what was kept, shape (event, word); earlier versions stored them as one column."""
    if "payload" in table:
        return table["payload"].values.astype(np.uint64)
    if "payload_high" not in table or "payload_low" not in table:
        return None
    words = [table[f"payload_{word}"].values.astype(np.uint64) for word in ("high", "low")]
    return np.stack(words, axis=1)


def _check_names(attributes: Mapping[str, Any], *, where: str) -> None:
    """Refuse a ledger that means another reason by a bit; a name that is new to us means itself."""
    bits, names = attributes.get("flag_masks"), attributes.get("flag_meanings")
    if not isinstance(bits, list) or not isinstance(names, str):
        return  # The column says nothing of its bits, which keep their meaning between versions.
    for bit, name in zip(bits, names.split(), strict=False):
        reason = reason_named(name)
        if reason is not None and reason != bit:
            raise SchemaError(
                f"{where}/ledger: expected bit {reason.value} for the reason '{name}', found "
                f"{bit}; the ledger is damaged, filter the run again"
            )


def _optional(table: xr.Dataset) -> dict[str, NDArray[Any]]:
    """Columns that earlier versions did not write, or under another name."""
    columns: dict[str, tuple[str, type[np.generic]]] = {
        "peaks": ("peaks", np.int16),
        "score_bound": ("bound", np.uint8),
        "score_first": ("first", np.float32),
        "n_peaks": ("peaks", np.int16),
        "n_peaks_tiles": ("peak_tiles", np.uint16),
        "peak_width_px": ("peak_width_px", np.float32),
    }
    return {
        field: table[name].values.astype(dtype)
        for name, (field, dtype) in columns.items()
        if name in table
    }


def ledger_root(decisions: Decisions) -> str:
    """Hash of a whole ledger: it changes with anything that it says of any event.

    The sha256 of the number of events and of the columns one after the other, all little-endian,
    so that it depends neither on how nor on which machine the ledger is stored.

    Returns
    -------
    str
        In hexadecimal.

    Examples
    --------
    >>> from sfxreduce.decisions.decide import decide
    >>> made = decide(np.float32([0.9, 0.1]), np.zeros(2, np.uint32), threshold=0.5)
    >>> ledger_root(made)[:16]
    'aafef1762d47e830'
    """
    digest = hashlib.sha256(b"sfxreduce ledger 2\n")
    digest.update(np.array(decisions.score.size, "<u8").tobytes())
    digest.update(decisions.decision.astype("u1").tobytes())
    digest.update(decisions.reason.astype("<u4").tobytes())
    # There are many bit patterns of "no score", and only one meaning.
    score = np.where(np.isnan(decisions.score), np.float32(np.nan), decisions.score)
    digest.update(score.astype("<f4").tobytes())
    digest.update(_payload(decisions).astype("<u8").tobytes())
    return digest.hexdigest()
