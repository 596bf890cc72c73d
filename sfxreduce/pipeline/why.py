"""``sfxreduce why``: what became of one event, and what that rests on, in words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.errors import UsageError
from sfxreduce.io.readers.zarr.run import open_table, read_manifest
from sfxreduce.io.store.manifest import Manifest
from sfxreduce.io.store.names import AUDIT_GROUP, LEDGER_GROUP
from sfxreduce.report.figures import readable
from sfxreduce.report.report import counted, short_path
from sfxreduce.run.reasons import UNSAFE, Reason

__all__ = ["Explanation", "JudgedEvents", "read_judged", "why_event"]

IN_WORDS: Mapping[Reason, str] = {
    Reason.FILE_UNREADABLE: "its file cannot be read",
    Reason.READ_ERROR: "reading it ended in an error",
    Reason.DATA_HOLE: "a part of its data was never written",
    Reason.NO_IMAGE: "it has no image",
    Reason.PANELS_MISSING: "panels are missing from it",
    Reason.FEW_NONFINITE: "a few of its pixels are not finite numbers",
    Reason.MANY_NONFINITE: "many of its pixels are not finite numbers",
    Reason.CONSTANT: "all of its pixels have the same value",
    Reason.DARK: "there was no light on it",
    Reason.SATURATED: "it is saturated",
    Reason.UNEXPECTED_FORMAT: "it is not stored as the other events are",
    Reason.SCORE_INVALID: "its score is not a number",
    Reason.WORKER_LOST: "scoring it ended every process that tried",
    Reason.DUPLICATE_ID: "another event has the same identifier",
    Reason.TIMESTAMP_ORDER: "its time is earlier than that of the event before",
    Reason.METADATA_MISSING: "some of its metadata are missing",
    Reason.AUDIT_SAMPLE: "it was drawn at random to be kept for an audit",
    Reason.UNLIKE_CALIBRATION: "its run is unlike those the scorer was calibrated on",
    Reason.PANEL_HOT: "a panel is far brighter than in other events",
    Reason.GAIN_UNKNOWN: "the gain of the detector is not known",
    Reason.UNSTABLE_READ: "it came out differently when it was read again",
    Reason.OUT_OF_DISTRIBUTION: "it is unlike anything the scorer was calibrated on",
    Reason.PEAK_COUNT: "it has clearly more peaks than the blanks of its run",
    Reason.CHANGED: "its pixels changed between scoring and copying",
}
"""What each reason says about an event. One that is not listed is called by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What became of an event.

    Parameters
    ----------
    event : int
        Position in the source run.
    decision : str
        "hit", "undecided" or "reject".
    score : float or None
        None if it has none.
    threshold : float
        Smallest score of a hit.
    reasons : tuple of str
        Names of the flags that are set.
    peaks : int or None
        By the conventional rule, on the tiles scored; None if they were not counted.
    position : int or None
        Among the frames of the output, or of its group ``audit``; None if it is in neither.
    sentences : tuple of str
        All of this in words.
    """

    event: int
    decision: str
    score: float | None
    threshold: float
    reasons: tuple[str, ...]
    peaks: int | None
    position: int | None
    sentences: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return asdict(self)


def why_event(store: Path, event: int) -> Explanation:
    """Explain the decision on one event, from the ledger of an output.

    Parameters
    ----------
    store : Path
        A reduced store.
    event : int
        Position in the source run.

    Raises
    ------
    UsageError
        If the run has no such event.
    SchemaError
        If the store has no ledger, or one that is damaged.
    """
    return read_judged(store).explain(event)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedEvents:
    """A reduced store, and what its ledger says of every event of its source.

    Parameters
    ----------
    table : Dataset
        The ledger as it is stored.
    """

    store: Path
    manifest: Manifest
    table: xr.Dataset
    decisions: Decisions

    def explain(self, event: int) -> Explanation:
        """Explain the decision on one event; see `why_event`."""
        store, manifest, decisions = self.store, self.manifest, self.decisions
        n_events = decisions.score.size
        if not 0 <= event < n_events:
            raise UsageError(
                f"{store}: event {event}: expected a position in the source run from 0 to "
                f"{n_events - 1}; 'sfxreduce ledger --in {store} --out ledger.csv' lists all"
            )
        score, peaks = float(decisions.score[event]), int(decisions.peaks[event])
        flags = [one for one in Reason if int(decisions.reason[event]) & one]
        decision = Decision(decisions.decision[event])
        stored, words = _stored(store, decisions, event)
        became = {Decision.HIT: "a hit, kept", Decision.REJECT: "rejected"}.get(
            decision, "undecided, and therefore kept"
        )
        return Explanation(
            event=event,
            decision=decision.name.lower(),
            score=score if np.isfinite(score) else None,
            threshold=manifest.threshold,
            reasons=tuple(str(flag.name).lower() for flag in flags),
            peaks=peaks if peaks >= 0 else None,
            position=stored,
            sentences=(
                f"Event {event} of {short_path(manifest.source)}{self._origin(event)} is {became}.",
                _on_score(score, manifest),
                *(_on_flag(flag) for flag in flags),
                *([] if peaks < 0 else [f"It shows {counted(peaks, 'peak')} on the tiles scored."]),
                words,
                *_to_keep(store, manifest, score, decision),
            ),
        )

    def _origin(self, event: int) -> str:
        """File that the event is from, and its place there, if the ledger says it."""
        if not {"source_file", "source_event"} <= set(self.table):
            return ""
        file, place = self.table["source_file"].values[event], self.table["source_event"][event]
        return f", {file} //{int(place)}" if file else ""


def read_judged(store: Path) -> JudgedEvents:
    """Read the ledger of a reduced store.

    Raises
    ------
    SchemaError
        If the store has no ledger, or one that is damaged.
    """
    manifest = read_manifest(store)
    table = open_table(store, LEDGER_GROUP)
    decisions = read_ledger(table, where=str(store))
    return JudgedEvents(store=store, manifest=manifest, table=table, decisions=decisions)


def _on_score(score: float, manifest: Manifest) -> str:
    if not np.isfinite(score):
        return f"It has no score; an event without one is never rejected ({manifest.scorer})."
    side = "below" if score < manifest.threshold else "not below"
    return (
        f"Its score, {readable(score)}, is {side} the threshold, {readable(manifest.threshold)} "
        f"({manifest.scorer})."
    )


def _on_flag(flag: Reason) -> str:
    words = IN_WORDS.get(flag, str(flag.name).lower().replace("_", " "))
    rests = "; an event with this flag is not rejected" if flag & UNSAFE else ""
    return f"Flag: {words}{rests}."


def _stored(store: Path, decisions: Decisions, event: int) -> tuple[int | None, str]:
    """Where its frame is in the output, and that in words."""
    name = short_path(store)
    kept, sample = decisions.kept, decisions.sample
    if event in kept:
        at = int(np.searchsorted(kept, event))
        return at, f"Its frame is number {at} of {name}."
    if event in sample:
        at = int(np.searchsorted(sample, event))
        return at, f"Its frame is number {at} of {name}/{AUDIT_GROUP}."
    return None, "Its frame is in the source only."


def _to_keep(store: Path, manifest: Manifest, score: float, decision: Decision) -> list[str]:
    """What to type to keep a rejected event."""
    if decision is not Decision.REJECT:
        return []
    lower = np.format_float_positional(np.float32(score), trim="-")
    source, name = shlex.quote(short_path(manifest.source)), shlex.quote(short_path(store))
    return [
        f"To keep it: sfxreduce redecide --in {name} --against {source} --threshold {lower} "
        "--out more.zarr"
    ]
