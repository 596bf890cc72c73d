"""What was saved, over many runs: where every byte is, and what it was worth.

Realised is what a release ticket named and what is in fact gone from the disk. Potential is what a
ticket could free beyond that, by the evidence as it is now. Neither is told without the hits that
may have been lost for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from sfxreduce.costs import Amounts, Cost, Rates, cost_of

__all__ = [
    "ADDED",
    "Alternatives",
    "Freed",
    "Group",
    "LostHits",
    "Part",
    "RunSavings",
    "Savings",
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
    rejected : int
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
    seed : int
    codec : str
    stored_bytes, recoded_bytes : int
        Of the frames read, as they lie in the run and packed by `codec`.
    exact : bool
        Whether `stored_bytes` are those of these very frames; else their share of the run.
    peak_hits : int
        Frames read that the peak finder calls hits.
    min_peaks : int
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
    run, experiment : str
    state : str
        On its way to the archive.
    output : str or None
        The reduced store; None if there is none.
    events, hits, undecided, rejected : int
        Of the output; 0 without one.
    parts : mapping of Part to Weight
    freed : Freed
    lost : LostHits
    notes : tuple of str
        What has to be known to read the numbers.
    problem : str
        What is damaged; empty if nothing is.
    alternatives : Alternatives or None
    """

    run: str
    experiment: str
    state: str
    output: str | None = None
    events: int = 0
    hits: int = 0
    undecided: int = 0
    rejected: int = 0
    parts: Parts = field(default_factory=dict)
    freed: Freed = field(default_factory=Freed)
    lost: LostHits = field(default_factory=LostHits)
    notes: tuple[str, ...] = ()
    problem: str = ""
    alternatives: Alternatives | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Some runs together: one of them, an experiment, or the site.

    Parameters
    ----------
    name : str
    runs : tuple of RunSavings
    rates : Rates
    stray : Weight
        What lies in the same folders and belongs to none of the runs.
    """

    name: str
    runs: tuple[RunSavings, ...]
    rates: Rates
    stray: Weight = field(default_factory=Weight)

    @property
    def parts(self) -> dict[Part, Weight]:
        """Every part of all runs."""
        found = {
            part: total_weight(run.parts.get(part, Weight()) for run in self.runs) for part in Part
        }
        found[Part.UNASSIGNED] += self.stray
        return found

    @property
    def total(self) -> Weight:
        """All that lies on the disk."""
        return total_weight(self.parts.values())

    @property
    def freed(self) -> Freed:
        """What left the disk, or may."""
        return sum((run.freed for run in self.runs), Freed())

    @property
    def added(self) -> int:
        """Bytes on the disk that a reduction put beside the raw data."""
        parts = self.parts
        return sum(parts[part].bytes for part in ADDED)

    @property
    def realised(self) -> Amounts:
        """What is saved now: bytes that are gone, less those that were added; and tape."""
        return Amounts(
            disk_bytes=self.freed.realised - self.added,
            tape_bytes=self.freed.tape,
            events=sum(run.events for run in self.runs),
        )

    @property
    def potential(self) -> Amounts:
        """What tickets could add to that."""
        found = self.freed
        return Amounts(disk_bytes=found.potential, tape_bytes=found.tape_to_come, events=0)

    @property
    def realised_cost(self) -> Cost:
        """What is saved now, in money."""
        return cost_of(self.realised, self.rates)

    @property
    def final_cost(self) -> Cost:
        """What would be saved if every ticket that could be written were acted upon."""
        return cost_of(self.realised + self.potential, self.rates)

    @property
    def unbounded(self) -> int:
        """Runs with rejected events of which no certificate says how many are hits."""
        return sum(run.lost.rejected > 0 and run.lost.missed_upper is None for run in self.runs)

    @property
    def missed_upper(self) -> int:
        """Sum of the runs' bounds on the hits that were rejected, of those that have one."""
        return sum(run.lost.missed_upper or 0 for run in self.runs)

    @property
    def missed_told(self) -> str:
        """How many hits may have been rejected, in words."""
        open_ended = sum(run.lost.rejected for run in self.runs if run.lost.missed_upper is None)
        bounded = any(run.lost.missed_upper is not None for run in self.runs)
        told = f"at most {self.missed_upper:,} with 95 % confidence in each run" if bounded else ""
        rest = f"not known for {open_ended:,} rejected events" if open_ended else ""
        return "; ".join(filter(None, (told, rest))) or "none: no event was rejected"

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return {
            "runs": len(self.runs),
            "parts": _parts_to_json(self.parts),
            "total": asdict(self.total),
            "savings": {
                "realised": {
                    "bytes": self.freed.realised,
                    "added_disk_bytes": self.added,
                    "net_disk_bytes": self.realised.disk_bytes,
                    "tape_bytes": self.freed.tape,
                    "tape_bytes_not_walked": self.freed.unwalked,
                    "cost": self.realised_cost.to_json(),
                },
                "potential": {
                    "bytes": self.freed.potential,
                    "ready_bytes": self.freed.ready,
                    "tape_bytes_to_come": self.freed.tape_to_come,
                    "cost_if_realised": self.final_cost.to_json(),
                },
                "hits_that_may_be_lost": {
                    "rejected": sum(run.lost.rejected for run in self.runs),
                    "missed_upper95": self.missed_upper,
                    "runs_without_a_bound": self.unbounded,
                },
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """What was saved over all runs that were looked at.

    Parameters
    ----------
    runs : tuple of RunSavings
    rates : Rates
    paths : tuple of str
        Whatever was walked; no file below any of them is left out.
    stray : Weight
        See `Group`.
    unseen : tuple of str
        What could not be looked at, and is in no sum.
    """

    runs: tuple[RunSavings, ...]
    rates: Rates
    paths: tuple[str, ...]
    stray: Weight = field(default_factory=Weight)
    unseen: tuple[str, ...] = ()

    @property
    def site(self) -> Group:
        """All of it."""
        return Group(name="all", runs=self.runs, rates=self.rates, stray=self.stray)

    @property
    def experiments(self) -> Sequence[Group]:
        """Runs by their experiment, in order of name."""
        names = Counter(run.experiment for run in self.runs)
        return [
            Group(
                name=name,
                runs=tuple(run for run in self.runs if run.experiment == name),
                rates=self.rates,
            )
            for name in sorted(names)
        ]

    def alone(self, run: RunSavings) -> Group:
        """One run by itself."""
        return Group(name=run.run, runs=(run,), rates=self.rates)

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return {
            "paths": list(self.paths),
            "site": self.site.to_json(),
            "total": asdict(self.site.total),
            "experiments": [{"experiment": e.name, **e.to_json()} for e in self.experiments],
            "runs": [self._run_to_json(run) for run in self.runs],
            "stray": asdict(self.stray),
            "unseen": list(self.unseen),
            "rates": self.rates.model_dump(mode="json"),
        }

    def _run_to_json(self, run: RunSavings) -> dict[str, Any]:
        told = self.alone(run).to_json()
        told["savings"]["hits_that_may_be_lost"] = {
            "rejected": run.lost.rejected,
            "missed_upper95": run.lost.missed_upper,
            "loss_upper95": run.lost.loss_upper,
            "told": run.lost.told,
        }
        names = ("run", "experiment", "state", "output", "events", "hits", "undecided", "rejected")
        return {
            **{name: getattr(run, name) for name in names},
            "problem": run.problem or None,
            "notes": list(run.notes),
            **{name: told[name] for name in ("parts", "total", "savings")},
            "alternatives": run.alternatives.to_json() if run.alternatives else None,
        }


def _parts_to_json(parts: Parts) -> dict[str, Any]:
    return {str(part): asdict(weight) for part, weight in parts.items()}
