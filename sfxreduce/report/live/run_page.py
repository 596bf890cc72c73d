"""A filter run while it is under way: the page ``/sfxreduce`` of the Dask dashboard."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache, partial
from html import escape
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, FixedTicker, NumeralTickFormatter, Range1d
from bokeh.models.annotations import Span
from bokeh.models.widgets import Div
from bokeh.plotting import figure
from PIL import Image

from sfxreduce.cluster.dashboard import Dashboard
from sfxreduce.decisions.assurance import CHECKS, Assurance, Check
from sfxreduce.decisions.decide import Decision
from sfxreduce.report.figures import COLOURS, INK, readable, score_axis
from sfxreduce.report.live.frames import Frames, SeenFrame
from sfxreduce.report.live.guard import GuardedPages
from sfxreduce.report.live.serve import served_beside
from sfxreduce.report.live.so_far import RunSoFar, Snapshot
from sfxreduce.report.report import counted, human_bytes, short_path

__all__ = ["served_run_page"]

EVERY_MS = 1000
"""Between two looks at the run."""

THUMBNAIL_POINTS = 240
BINS = 60
LOST = "#c0392b"
BUSY = "#2d6cb5"

PROVISIONAL = (
    "Hits are provisional until every event is scored: the first tiles of an event give the "
    "highest score that it can have, and the run's own threshold is set after that."
)


@contextmanager
def served_run_page(so_far: RunSoFar, dashboard: Dashboard | None) -> Iterator[str]:
    """Serve the page of a run as long as the block lasts.

    Parameters
    ----------
    dashboard : Dashboard or None
        Of the cluster, which gets the page ``/sfxreduce``; a server of its own without one.

    Yields
    ------
    str
        Address of the page, token included.
    """
    frames = Frames(so_far.run, most_points=THUMBNAIL_POINTS, peaks=False)
    with closing(frames), ExitStack() as stack:
        built = partial(_built, so_far, frames)
        pages = GuardedPages("/sfxreduce", built, alone=dashboard is None)
        if dashboard is None:
            yield stack.enter_context(served_beside(pages))
        else:
            dashboard.add(pages)
            yield f"{dashboard.address}{pages.entry}"


def _built(so_far: RunSoFar, frames: Frames, document: Document) -> None:
    page = _RunPage(so_far, frames)
    document.title = "sfxreduce"
    document.add_root(page.layout)
    page.refresh()
    document.add_periodic_callback(page.refresh, EVERY_MS)


class _RunPage:
    """The page in one browser."""

    def __init__(self, so_far: RunSoFar, frames: Frames) -> None:
        self._so_far, self._frames = so_far, frames
        wide: Any = {"sizing_mode": "stretch_width"}
        self._head = Div(**wide, styles={"font-size": "15px"})
        self._facts = Div(styles={"flex": "1 1 320px", "min-width": "0"})
        self._checks = Div(styles={"flex": "1 1 320px", "min-width": "0"})
        self._pictures = Div(**wide)
        self._rate = ColumnDataSource({"x": [], "width": [], "hit": [], "top": []})
        self._bins = ColumnDataSource({"left": [], "right": [], "top": []})
        self._pace = ColumnDataSource({"y": [], "right": [], "name": []})
        self._events, self._rates_up, self._along, self._scores_up, self._paces, self._workers = (
            Range1d(start=0, end=1) for _ in range(6)
        )
        self._limit = Span(
            location=None, dimension="height", line_color=LOST, line_dash="dashed", line_width=1.5
        )
        self._scores = self._score_figure()
        charts = row(
            self._rate_figure(), self._scores, self._pace_figure(), styles=_wrapped(), **wide
        )
        facts = row(self._facts, self._checks, styles=_wrapped(), **wide)
        self.layout = column(
            self._head, charts, facts, self._pictures,
            styles={"font-family": "sans-serif", "color": INK, "max-width": "1240px"}, **wide,
        )  # fmt: skip

    def _rate_figure(self) -> figure:
        plot = _figure(
            "Hit rate along the run",
            "event",
            self._events,
            self._rates_up,
        )
        plot.vbar(
            "x", width="width", top="hit", source=self._rate, line_color=None,
            color=COLOURS[Decision.HIT], legend_label="hits",
        )  # fmt: skip
        plot.vbar(
            "x", width="width", bottom="hit", top="top", source=self._rate, line_color=None,
            color=COLOURS[Decision.UNDECIDED], legend_label="undecided",
        )  # fmt: skip
        plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
        plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
        plot.legend.orientation = "horizontal"
        plot.legend.location = "top_left"
        plot.legend.background_fill_alpha = 0.6
        plot.legend.border_line_color = None
        return plot

    def _score_figure(self) -> figure:
        plot = _figure("Scores, and the threshold", "score", self._along, self._scores_up)
        plot.quad(
            left="left", right="right", bottom=0, top="top", source=self._bins,
            color=COLOURS[Decision.REJECT], line_color=None,
        )  # fmt: skip
        plot.add_layout(self._limit)
        return plot

    def _pace_figure(self) -> figure:
        plot = _figure("Events a second, by worker", "events/s", self._paces, self._workers)
        plot.hbar(
            y="y", right="right", left=0, height=0.7, source=self._pace, color=BUSY, alpha=0.45
        )
        plot.text(
            x=0, y="y", text="name", source=self._pace, x_offset=4, text_baseline="middle",
            text_font_size="12px", text_color=INK,
        )  # fmt: skip
        plot.yaxis.visible = False
        return plot

    def refresh(self) -> None:
        """Show how far the run is now."""
        now = self._so_far.snapshot()
        self._frames.turn_to(self._so_far.run)
        self._head.text = _heading(now, self._so_far)
        self._facts.text = _facts(now)
        self._checks.text = _checks(now.assurance)
        self._show_rates(now)
        self._show_scores(now)
        self._show_pace()
        self._show_pictures(now)

    def _show_rates(self, now: Snapshot) -> None:
        n_parts = now.hit_rates.size
        if not n_parts:
            return
        self._events.end = self._so_far.run.n_events
        width = self._so_far.run.n_events / n_parts
        hit, undecided = np.nan_to_num(now.hit_rates), np.nan_to_num(now.undecided_rates)
        self._rate.data = {
            "x": (np.arange(n_parts) + 0.5) * width,
            "width": np.full(n_parts, 0.98 * width),
            "hit": hit,
            "top": hit + undecided,
        }
        self._rates_up.end = max(1.1 * float((hit + undecided).max()), 0.01)

    def _show_scores(self, now: Snapshot) -> None:
        known = now.scores.astype(np.float64)
        given = [] if now.threshold is None else [now.threshold]
        if not known.size:
            self._bins.data = {"left": [], "right": [], "top": []}
            return
        along, ticks, name = score_axis(np.append(known, given))
        places = along(np.append(known, given))
        edges = np.linspace(places.min(), max(places.max(), places.min() + 1e-3), BINS + 1)
        heights = np.histogram(along(known), edges)[0].astype(float)
        self._bins.data = {"left": edges[:-1], "right": edges[1:], "top": heights}
        self._along.update(start=float(edges[0]), end=float(edges[-1]))
        self._scores_up.end = 1.1 * float(heights.max())
        self._limit.location = float(along(given)[0]) if given else None
        axis = self._scores.xaxis[0]
        axis.ticker = FixedTicker(ticks=along(ticks).tolist())
        axis.major_label_overrides = {
            float(at): readable(tick) for at, tick in zip(along(ticks), ticks, strict=True)
        }
        axis.axis_label = name

    def _show_pace(self) -> None:
        pace = sorted(self._so_far.workers().items())
        self._pace.data = {
            "y": list(range(len(pace))),
            "right": [events for _, events in pace],
            "name": [f"{name.rpartition('/')[2]}: {events:.3g}" for name, events in pace],
        }
        self._paces.end = max([1.1 * events for _, events in pace], default=1)
        self._workers.update(start=-1, end=max(len(pace), 1))

    def _show_pictures(self, now: Snapshot) -> None:
        rows = [
            ("Latest hits", now.latest),
            ("Nearest to the threshold", now.nearest),
        ]
        text = "".join(
            f"<h3 style='margin:12px 0 4px'>{title}</h3><div style='display:flex;flex-wrap:wrap;"
            f"gap:8px'>{''.join(map(self._figure_of, events))}</div>"
            for title, events in rows
            if events
        )
        if text != self._pictures.text:
            self._pictures.text = text

    def _figure_of(self, one: tuple[int, float]) -> str:
        event, score = one
        asked = self._frames.ask(event)
        picture = _thumbnail(asked.result()) if asked.done() else "<span>reading ...</span>"
        return (
            "<figure style='margin:0;width:164px'><div style='width:164px;min-height:120px;"
            f"background:#eef1f4'>{picture}</div>"
            f"<figcaption>event {event}, score {readable(score)}</figcaption></figure>"
        )


def _figure(title: str, below: str, across: Range1d, up: Range1d) -> figure:
    plot = figure(
        title=title,
        height=240,
        x_range=across,
        y_range=up,
        sizing_mode="stretch_width",
        toolbar_location=None,
        output_backend="svg",
        tools="",
        x_axis_label=below,
        styles={"flex": "1 1 320px", "min-width": "0"},
    )
    plot.grid.grid_line_alpha = 0.4
    plot.axis.minor_tick_line_color = None
    plot.min_border_left, plot.min_border_right = 48, 12
    return plot


def _wrapped() -> dict[str, str]:
    return {"flex-wrap": "wrap", "gap": "12px"}


def _heading(now: Snapshot, so_far: RunSoFar) -> str:
    run = so_far.run
    pace = f" · {now.scored / now.seconds:.3g} events/s" if now.seconds > 0 else ""
    rate = f" ({100 * now.hits / now.scored:.1f} %)" if now.scored else ""
    stage = escape(now.stage) or "done"
    note = f"<p style='margin:4px 0;color:#5b6773'>{PROVISIONAL}</p>" if now.provisional else ""
    return (
        f"<h2 style='margin:4px 0;overflow-wrap:anywhere'>{escape(short_path(run.path))}</h2>"
        f"<p style='margin:4px 0'><b id='scored'>{now.scored:,}/{run.n_events:,}</b> events · "
        f"<b>{counted(now.hits, 'hit')}</b>{rate} · {now.undecided:,} undecided{pace} · "
        f"<b>{stage}</b></p>{note}"
    )


def _facts(now: Snapshot) -> str:
    lines = [
        ("pixels scored", f"{human_bytes(now.bytes_scored)} of {human_bytes(now.bytes_all)}"),
        ("written", human_bytes(now.bytes_written)),
        *((f"undecided: {name.replace('_', ' ')}", f"{n:,}") for name, n in now.reasons.items()),
    ]
    if not now.reasons:
        lines.append(("undecided", "none"))
    return _table("Bytes, and undecided events by reason", lines)


def _checks(assurance: Assurance | None) -> str:
    if assurance is None:
        lines = [(name.replace("_", " "), "waits for all scores") for name in CHECKS]
        return _table("Run-similarity check", lines)
    lines = [
        (name.replace("_", " "), _outcome(assurance.checks.get(name, Check()))) for name in CHECKS
    ]
    return (
        _table("Run-similarity check", lines)
        + f"<p style='margin:6px 0'>{escape(assurance.sentence)}.</p>"
    )


def _outcome(check: Check) -> str:
    if check.passed:
        return "passed"
    return "; ".join(check.alarms) or "did not run"


def _table(title: str, lines: Sequence[tuple[str, str]]) -> str:
    body = "".join(
        f"<tr><td style='padding:2px 16px 2px 0'>{escape(name)}</td>"
        f"<td style='padding:2px 0'>{escape(value)}</td></tr>"
        for name, value in lines
    )
    return f"<h3 style='margin:12px 0 4px'>{title}</h3><table>{body}</table>"


@lru_cache(maxsize=64)
def _thumbnail(seen: SeenFrame) -> str:
    if seen.fault:
        return f"<span>{escape(seen.fault)}</span>"
    grey = np.where(seen.grey == 0, 225, 255 - np.minimum(seen.grey.astype(int) * 1.4, 255))
    buffer = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<img alt='frame of event {seen.event}' style='width:164px;display:block' "
        f"src='data:image/png;base64,{data}'>"
    )
