"""Why an event may not be trusted, and what kind of event it is."""

from __future__ import annotations

from enum import IntEnum, IntFlag

__all__ = ["FORMER_NAMES", "HARMLESS", "UNREAD", "UNSAFE", "EventClass", "Reason", "reason_named"]


class EventClass(IntEnum):
    """What an event shows besides being a hit or not."""

    UNKNOWN = 0
    SINGLE = 1
    MULTIPLE = 2
    ARTEFACT = 3


class Reason(IntFlag):
    """What is odd about an event; zero if nothing is. Bits keep their meaning between versions."""

    FILE_UNREADABLE = 1 << 0
    READ_ERROR = 1 << 1
    DATA_HOLE = 1 << 2
    NO_IMAGE = 1 << 3
    PANELS_MISSING = 1 << 4
    FEW_NONFINITE = 1 << 5
    MANY_NONFINITE = 1 << 6
    CONSTANT = 1 << 7
    DARK = 1 << 8
    SATURATED = 1 << 9
    UNEXPECTED_FORMAT = 1 << 10
    SCORE_INVALID = 1 << 11
    WORKER_LOST = 1 << 12
    DUPLICATE_ID = 1 << 13
    TIMESTAMP_ORDER = 1 << 14
    METADATA_MISSING = 1 << 15
    AUDIT_SAMPLE = 1 << 16
    UNLIKE_CALIBRATION = 1 << 17
    PANEL_HOT = 1 << 18
    GAIN_UNKNOWN = 1 << 19
    UNSTABLE_READ = 1 << 20
    OUT_OF_DISTRIBUTION = 1 << 21
    PEAK_COUNT = 1 << 22
    CHANGED = 1 << 23
    DOUBTED_AT_FIRST = 1 << 24


UNREAD = Reason.FILE_UNREADABLE | Reason.READ_ERROR | Reason.DATA_HOLE
"""What is said of an event that could not be read; of a healthy run, by a process that does not see
it."""

FORMER_NAMES = {
    "nonfinite_few": Reason.FEW_NONFINITE,
    "nonfinite_many": Reason.MANY_NONFINITE,
    "schema": Reason.UNEXPECTED_FORMAT,
    "dup_id": Reason.DUPLICATE_ID,
    "ts_order": Reason.TIMESTAMP_ORDER,
    "meta_missing": Reason.METADATA_MISSING,
    "drift": Reason.UNLIKE_CALIBRATION,
    "no_calib": Reason.GAIN_UNKNOWN,
    "ood": Reason.OUT_OF_DISTRIBUTION,
}
"""Names that ledgers of earlier versions give to reasons. They are read, and no longer written."""


def reason_named(name: str) -> Reason | None:
    """Reason that a ledger of this or an earlier version calls by a name; None if there is none.

    Examples
    --------
    >>> reason_named("out_of_distribution") is reason_named("ood") is Reason.OUT_OF_DISTRIBUTION
    True
    """
    return Reason.__members__.get(name.upper(), FORMER_NAMES.get(name))


HARMLESS = (
    Reason.FEW_NONFINITE
    | Reason.AUDIT_SAMPLE
    | Reason.TIMESTAMP_ORDER
    | Reason.METADATA_MISSING
    | Reason.DOUBTED_AT_FIRST
)
"""Reasons that say nothing against a score."""

UNSAFE = ~HARMLESS
"""Reasons that forbid a reject: the event was not seen as the scorer was made to see it."""
