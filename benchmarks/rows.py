"""One line of a benchmark's table, and how CPU time is taken."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

__all__ = ["Row", "Turns", "cpu_ms", "cpu_ms_by_turns"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What something costs, and how often that is the cost of what it is compared with.

    Parameters
    ----------
    section, name : str
    cpu_ms : float or None
        CPU milliseconds per event on one core; None if it could not be measured.
    against : str
        What it is compared with, measured in the same run.
    ratio : float or None
    wanted : str
        What the ratio should be: "at most 1.3", "at least 50"; empty if nothing is promised.
    note : str
        What is in it, or why there is no figure.
    n_turns, n_events : int
        Of how many turns it is the median, and the events of all of them; 0 if that is the
        section's own.
    """

    section: str
    name: str
    cpu_ms: float | None
    against: str = ""
    ratio: float | None = None
    wanted: str = ""
    note: str = ""
    n_turns: int = 0
    n_events: int = 0

    @property
    def holds(self) -> bool | None:
        """Whether the ratio is what it should be; None if nothing is promised or measured."""
        if not self.wanted or self.ratio is None:
            return None
        word, _, limit = self.wanted.rpartition(" ")
        ratio = float(self.ratio)
        return ratio <= float(limit) if word == "at most" else ratio >= float(limit)

    @property
    def line(self) -> str:
        """One line for a terminal."""
        spent = f"{'-':>9}" if self.cpu_ms is None else f"{self.cpu_ms:9.3f}"
        words = [f"{self.name:<46}{spent} ms"]
        if self.ratio is not None:
            words.append(f"{self.ratio:8.2f}x of {self.against}")
        if self.holds is not None:
            words.append(f"({self.wanted}: {'holds' if self.holds else 'MISSED'})")
        return "  ".join([*words, *([self.note] if self.note else [])])

    def to_json(self) -> dict[str, Any]:
        """Everything by its name."""
        return asdict(self) | {"holds": self.holds}


class Turns:
    """CPU milliseconds per event of several methods that take turns, so that all meet the same
    machine.
    """

    def __init__(self) -> None:
        self._turns: dict[str, list[tuple[float, int]]] = defaultdict(list)

    def time(self, name: str, action: Callable[[], Result], *, n_events: int) -> Result:
        """Take a turn of this process."""
        started = time.process_time()
        result = action()
        self.add(name, 1e3 * (time.process_time() - started) / n_events, n_events=n_events)
        return result

    def add(self, name: str, cpu_ms: float, *, n_events: int) -> None:
        """Note a turn that another process took."""
        self._turns[name].append((cpu_ms, n_events))

    def median(self, name: str) -> float:
        """Median over the turns, CPU milliseconds per event."""
        return statistics.median(cpu_ms for cpu_ms, _ in self._turns[name])

    def total_ms(self, name: str) -> float:
        """CPU milliseconds of all turns."""
        return sum(cpu_ms * n for cpu_ms, n in self._turns[name])

    def size(self, name: str) -> dict[str, int]:
        """Number of turns, and events of all of them, as a `Row` wants them."""
        turns = self._turns[name]
        return {"n_turns": len(turns), "n_events": sum(n for _, n in turns)}


def cpu_ms(action: Callable[[], object], *, repeats: int = 5) -> float:
    """Median CPU time of one call in milliseconds, after one that does not count."""
    return cpu_ms_by_turns({"": action}, repeats=repeats)[""]


def cpu_ms_by_turns(
    actions: Mapping[str, Callable[[], object]], *, repeats: int = 5
) -> dict[str, float]:
    """Median CPU times of several actions, turn by turn, so that all see the same machine."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats + 1):
        for name, action in actions.items():
            started = time.process_time()
            action()
            if turn:
                taken[name].append(time.process_time() - started)
    return {name: 1e3 * statistics.median(times) for name, times in taken.items()}
