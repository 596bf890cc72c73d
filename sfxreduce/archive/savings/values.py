"""What was saved of a run: where every byte is, what left the disk, what it may have cost.

Realised is what a release ticket named and what is in fact gone from the disk. Potential is what a
ticket could free beyond that, by the evidence as it is now. Neither is told without the hits that
may have been lost for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

__all__ = [
    "ADDED",
    "Alternatives",
    "Freed",
    "LostHits",
    "Part",
    "Parts",
    "RunSavings",
    "Weight",
    "total_weight",
]


class Part(StrEnum):
    """What a byte is there for; every byte is there for one thing."""

    RAW = "raw"
    HITS = "hits"
    UNDECIDED = "undecided"
    AUDIT_SET = "audit_set"
    SIDECARS = "sidecars"
    EXTRA_COPIES = "extra_copies"
    ARCHIVE_COPIES = "archive_copies"
    UNASSIGNED = "unassigned"


ADDED = (Part.HITS, Part.UNDECIDED, Part.AUDIT_SET, Part.SIDECARS, Part.EXTRA_COPIES)
"""Parts that lie on the disk beside the raw data, and would not without a reduction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """How much there is of a part.

    Parameters
    ----------
    bytes : int
        Sizes of regular files, or of ranges of them.
    files : int
        A file that holds several parts counts for the one that has most of its bytes.
    """

    bytes: int = 0
    files: int = 0

    def __add__(self, other: Weight) -> Weight:
        """Both together."""
        return Weight(bytes=self.bytes + other.bytes, files=self.files + other.files)


Parts = Mapping[Part, Weight]


def total_weight(weights: Iterable[Weight]) -> Weight:
    """Sum of weights.

    Examples
    --------
    >>> total_weight([Weight(bytes=3, files=1), Weight(bytes=4, files=2)])
    Weight(bytes=7, files=3)
    """
    return sum(weights, Weight())


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """Bytes that left the disk, or may.

    Parameters
    ----------
    realised : int
        Named by a ticket, and gone.
    potential : int
        Still there, and a ticket could name them.
    ready : int
        Of these, what a ticket names already or would if it were asked for now.
    tape : int
        On tape now, all copies together, whether it can be walked or not.
    tape_to_come : int
        That would have to be written there before the potential is realised.
    unwalked : int
        Of those on tape, what only the archive's receipts know of.
    """

    realised: int = 0
    potential: int = 0
    ready: int = 0
    tape: int = 0
    tape_to_come: int = 0
    unwalked: int = 0

    def __add__(self, other: Freed) -> Freed:
        """Both together."""
        ours, theirs = asdict(self), asdict(other)
        return Freed(**{name: ours[name] + theirs[name] for name in ours})


@dataclass(frozen=True, slots=True, kw_only=True)
class LostHits:
    """How many hits may be among the rejected events.

    Parameters
    ----------
    missed_upper : int or None
        At most so many with 95 % confidence; None without a certificate that fits.
    loss_upper : float or None
        The same as a share of all hits.
    told : str
        Where the bound comes from, or why there is none.
    """

    rejected: int = 0
    missed_upper: int | None = None
    loss_upper: float | None = None
    told: str = "nothing was rejected: there is no output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """What other ways would have saved, measured on a sample of one run.

    Parameters
    ----------
    sampled, read : int
        Events drawn, and those of them that could be read.
    stored_bytes, recoded_bytes : int
        Of the frames read, as they lie in the run and packed by `codec`.
    exact : bool
        Whether `stored_bytes` are those of these very frames; else their share of the run.
    peak_hits : int
        Frames read that the peak finder calls hits.
    hits : int
        Frames read that the output holds as hits.
    hits_lost : int
        Of these, what the peak finder would have rejected.
    raw_bytes : int
        Of the whole run.
    """

    sampled: int
    read: int
    seed: int
    codec: str
    stored_bytes: int
    recoded_bytes: int
    exact: bool
    peak_hits: int
    min_peaks: int
    hits: int
    hits_lost: int
    raw_bytes: int

    @property
    def recoded_run_bytes(self) -> int:
        """Bytes of the whole run if all of it were packed like the sample."""
        return self._scaled(self.recoded_bytes, self.stored_bytes)

    @property
    def peaks_run_bytes(self) -> int:
        """Bytes of the run if only what the peak finder calls hits were kept, as it is packed."""
        return self._scaled(self.peak_hits, self.read)

    def _scaled(self, part: int, whole: int) -> int:
        return round(self.raw_bytes * part / whole) if whole else self.raw_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return {
            **asdict(self),
            "recoded_run_bytes": self.recoded_run_bytes,
            "recoded_saves_bytes": self.raw_bytes - self.recoded_run_bytes,
            "peaks_run_bytes": self.peaks_run_bytes,
            "peaks_saves_bytes": self.raw_bytes - self.peaks_run_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSavings:
    """One run: its bytes, what left the disk, and what that may have cost.

    Parameters
    ----------
    state : str
        On its way to the archive.
    output : str or None
        The reduced store; None if there is none.
    events, hits, undecided, rejected : int
        Of the output; 0 without one.
    kept_without_pixels, kept_with_holes : int
        Hits and undecided events of which the output has no pixel, or lacks some: they are safe in
        a copy of the raw run only.
    notes : tuple of str
        What has to be known to read the numbers.
    problem : str
        What is damaged; empty if nothing is.
    """

    run: str
    experiment: str
    state: str
    output: str | None = None
    events: int = 0
    hits: int = 0
    undecided: int = 0
    rejected: int = 0
    kept_without_pixels: int = 0
    kept_with_holes: int = 0
    parts: Parts = field(default_factory=dict)
    freed: Freed = field(default_factory=Freed)
    lost: LostHits = field(default_factory=LostHits)
    notes: tuple[str, ...] = ()
    problem: str = ""
    alternatives: Alternatives | None = None
