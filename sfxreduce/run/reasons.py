"""Why an event may not be trusted, and what kind of event it is."""

from __future__ import annotations

from enum import IntEnum, IntFlag

__all__ = ["HARMLESS", "UNSAFE", "EventClass", "Reason"]


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
    NONFINITE_FEW = 1 << 5
    NONFINITE_MANY = 1 << 6
    CONSTANT = 1 << 7
    DARK = 1 << 8
    SATURATED = 1 << 9
    SCHEMA = 1 << 10
    SCORE_INVALID = 1 << 11
    WORKER_LOST = 1 << 12
    DUP_ID = 1 << 13
    TS_ORDER = 1 << 14
    META_MISSING = 1 << 15
    AUDIT_SAMPLE = 1 << 16
    DRIFT = 1 << 17
    PANEL_HOT = 1 << 18
    NO_CALIB = 1 << 19
    UNSTABLE_READ = 1 << 20
    OOD = 1 << 21


HARMLESS = Reason.NONFINITE_FEW | Reason.AUDIT_SAMPLE | Reason.TS_ORDER | Reason.META_MISSING
"""Reasons that say nothing against a score."""

UNSAFE = ~HARMLESS
"""Reasons that forbid a reject: the event was not seen as the scorer was made to see it."""
