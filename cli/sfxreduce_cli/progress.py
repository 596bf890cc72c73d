"""How far a command is: bars and a hit rate on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text

import sfxreduce
from sfxreduce_cli.output import say

if TYPE_CHECKING:
    from sfxreduce.decisions.assurance import Assurance
    from sfxreduce.decisions.decide import Decisions
    from sfxreduce.report.live.so_far import RunSoFar
    from sfxreduce.run.run import Run
    from sfxreduce.scorers.protocol import Scorer

__all__ = ["ProgressDisplay", "Tally", "sparkline"]

SECONDS_A_LINE = 5.0
"""Between two lines of a stage where nothing can be drawn over: a log stays short for hours."""

BINS = 24
"""Parts of a run whose hit rates are drawn side by side."""

LEVELS = " ▁▂▃▄▅▆▇█"
UNITS = {"score": "events", "reduce": "shards", "publish": "files"}


@dataclass(slots=True)
class Tally:
    """Events scored, and hits among them, along a run.

    Parameters
    ----------
    hit_from : float or None
        Score from which an event is counted as a hit; none are counted if it is not known.
    total : int
        Events to score.
    """

    hit_from: float | None
    total: int
    events: list[int] = field(default_factory=lambda: [0] * BINS)
    hits: list[int] = field(default_factory=lambda: [0] * BINS)

    def add(self, first: int, scores: Any) -> None:
        """Count some consecutive events.

        Parameters
        ----------
        first : int
            Position of the first of them.
        scores : ndarray of float32
            Shape (event,).
        """
        for number in range(BINS):
            start, stop = (-(-(number + k) * self.total // BINS) - first for k in (0, 1))
            some = scores[max(start, 0) : max(stop, 0)]
            self.events[number] += len(some)
            if self.hit_from is not None:
                self.hits[number] += int((some >= self.hit_from).sum())

    @property
    def rates(self) -> list[float | None]:
        """Hit rate of each part of the run; None where nothing was scored yet."""
        return [h / n if n else None for h, n in zip(self.hits, self.events, strict=True)]

    def words(self) -> str:
        """Events done, and hits among them."""
        done, hits = sum(self.events), sum(self.hits)
        text = f"{done:,}/{self.total:,} events"
        if self.hit_from is None or not done:
            return text
        return f"{text} · {hits:,} hit{'' if hits == 1 else 's'} ({100 * hits / done:.1f} %)"


def sparkline(rates: list[float | None]) -> str:
    """Rates as a row of blocks, the highest as high as a line; a dot where there is none yet.

    Examples
    --------
    >>> sparkline([0.0, 0.1, 0.2, None])
    ' ▄█·'
    """
    top = max((rate for rate in rates if rate), default=1.0)
    return "".join(
        "·" if rate is None else LEVELS[round(rate / top * (len(LEVELS) - 1))] for rate in rates
    )


class _Bars(Progress):
    """Bars, and below them the hit rate along the run."""

    tally: Tally | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        """See `rich.progress.Progress.get_renderables`."""
        yield self.make_tasks_table(self.tasks)
        tally = self.tally
        if tally is not None and tally.hit_from is not None and any(tally.events):
            top = max((rate for rate in tally.rates if rate), default=0.0)
            yield Text(f"hit rate {sparkline(tally.rates)} up to {100 * top:.0f} %")


class ProgressDisplay:
    """Shows how far the stages are, on stderr; see `sfxreduce.cluster.pool.Progress`.

    Parameters
    ----------
    page : bool
        Whether a page in a browser is told, too.
    """

    def __init__(self, *, page: bool = False) -> None:
        self._page = page
        self.so_far: RunSoFar | None = None
        self._show_page: Callable[[RunSoFar], None] | None = None
        self._tally: Tally | None = None
        self._bars = _Bars(
            TextColumn("{task.description:>8}", table_column=Column(no_wrap=True, min_width=8)),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}
        self._begun: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> ProgressDisplay:
        if self._bars.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def expect(self, run: Run, scorer: Scorer, *, hit_from: float | None, out: Path) -> None:
        """Prepare to count the hits of a run, here and on a page if there is to be one."""
        self._tally = self._bars.tally = Tally(hit_from, run.n_events)
        if self.so_far is not None:
            self.so_far.begin(run, scorer, hit_from=hit_from, out=out)
        elif self._page:
            self.so_far = sfxreduce.RunSoFar(run, scorer, hit_from=hit_from, out=out)
            if self._show_page is not None:
                self._show_page(self.so_far)

    def show_page(self, show: Callable[[RunSoFar], None]) -> None:
        """Have the page shown as soon as there is a run to be seen, if there is to be a page."""
        self._show_page = show
        if self.so_far is not None:
            show(self.so_far)

    def ended(self) -> None:
        """Take note that the output is there."""
        if self.so_far is not None:
            self.so_far.ended()

    def close(self) -> None:
        """Draw no more."""
        if self._bars.console.is_terminal:
            self._bars.stop()

    def begin(self, what: str) -> None:
        """Begin anew with something else, of which a line says what it is."""
        for task in self._tasks.values():
            self._bars.remove_task(task)
        for known in (self._tasks, self._begun, self._said):
            known.clear()
        self._bars.console.print(what, highlight=False, markup=False)

    def scored(self, first: int, rows: Any) -> None:
        """Count hits. See `sfxreduce.pipeline.stages.score.SeesScores`."""
        if self._tally is not None:
            self._tally.add(first, rows["score"])
        if self.so_far is not None:
            self.so_far.scored(first, rows)

    def settled(self, rows: Any, threshold: float) -> None:
        """Pass final scores on. See `sfxreduce.pipeline.stages.score.SeesScores`."""
        if self.so_far is not None:
            self.so_far.settled(rows, threshold)

    def planned(self, decisions: Decisions, assurance: Assurance) -> None:
        """Pass decisions on. See `sfxreduce.pipeline.filter.SeesPlan`."""
        if self.so_far is not None:
            self.so_far.planned(decisions, assurance)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of progress. See `sfxreduce.cluster.pool.Progress`."""
        if self.so_far is not None:
            self.so_far(stage, done, total)
        now = time.monotonic()
        begun = self._begun.setdefault(stage, now)
        note = self._note(stage, done, total, seconds=now - begun)
        if self._bars.console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
            self._bars.update(self._tasks[stage], completed=done, note=note)
            return
        ended = done >= total
        if done and (ended or now - self._said.setdefault(stage, begun) >= SECONDS_A_LINE):
            self._said[stage] = now
            say(f"{stage:>8} {note}")

    def _note(self, stage: str, done: int, total: int, *, seconds: float) -> str:
        """What is said of a stage: how much is done, how fast, and how long the rest takes."""
        tally = self._tally if stage == "score" else None
        if tally is None:
            words = [f"{done:,}/{total:,} {UNITS.get(stage, '')}".rstrip()]
        else:
            words = [tally.words()]
            if seconds > 0 and done:
                words.append(f"{sum(tally.events) / seconds:.3g} events/s")
        if 0 < done < total:
            left = seconds * (total - done) / done
            words.append(f"{int(left) // 60:02}:{int(left) % 60:02} left")
        return " · ".join(words)
