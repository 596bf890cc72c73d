"""What was saved over many runs: sums by run, experiment and site, and what they are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sfxreduce.archive.savings.costs import Amounts, Cost, Rates, cost_of
from sfxreduce.archive.savings.values import (
    ADDED,
    Freed,
    Part,
    RunSavings,
    Weight,
    total_weight,
)

__all__ = ["Group", "Savings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Some runs together: one of them, an experiment, or the site.

    Parameters
    ----------
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
            "parts": {str(part): asdict(weight) for part, weight in self.parts.items()},
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
        names = (
            *("run", "experiment", "state", "output", "events", "hits", "undecided", "rejected"),
            *("kept_without_pixels", "kept_with_holes"),
        )
        return {
            **{name: getattr(run, name) for name in names},
            "problem": run.problem or None,
            "notes": list(run.notes),
            **{name: told[name] for name in ("parts", "total", "savings")},
            "alternatives": run.alternatives.to_json() if run.alternatives else None,
        }
