"""Events one by one, large, by keyboard: to look at a run, or to label it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

import numpy as np
from bokeh.document import Document
from bokeh.events import ButtonClick
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, CustomJS, LinearColorMapper, Range1d
from bokeh.models.widgets import Button, CheckboxButtonGroup, Div, Select, Slider
from bokeh.palettes import Greys256
from bokeh.plotting import figure
from numpy.typing import NDArray

from sfxreduce.errors import SfxReduceError
from sfxreduce.report.live.frames import Frames, Ring, SeenFrame
from sfxreduce.run.labels import Label

__all__ = ["Album", "review_page"]

PEAK, RING, PAPER = "#d1560f", "#2d6cb5", "#dfe3e8"

KEYS = {"h": Label.HIT, "m": Label.MISS, "u": Label.MAYBE}
"""What a key calls the event on the screen; ``u`` for unsure."""

HELP = (
    "<b>h</b> hit · <b>m</b> miss · <b>u</b> maybe · <b>← →</b> step · <b>p</b> peaks · "
    "<b>r</b> rings · <b>+ -</b> contrast"
)
HELP_WITHOUT_LABELS = "<b>← →</b> step · <b>p</b> peaks · <b>r</b> rings · <b>+ -</b> contrast"

ON_KEY = """
if (window.sfxreduce_keys) return
window.sfxreduce_keys = true
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.repeat) return
  const at = e.composedPath()[0]
  if (at instanceof HTMLInputElement && at.type == "text") return
  if (at instanceof HTMLTextAreaElement) return
  const flip = (n) => {
    const now = new Set(marks.active)
    now.has(n) ? now.delete(n) : now.add(n)
    marks.active = [...now].sort()
  }
  const named = {ArrowLeft: "left", ArrowRight: "right"}[e.key] ?? e.key
  if (named == "p") flip(0)
  else if (named == "r") flip(1)
  else if (named == "+") bright.value = Math.min(bright.value + 20, bright.end)
  else if (named == "-") bright.value = Math.max(bright.value - 20, bright.start)
  else if (["left", "right", "h", "m", "u"].includes(named)) {
    // The event that is on the screen, which is the one that is meant.
    typed.data = {key: [named], event: [shown.data.event[0]], count: [typed.data.count[0] + 1]}
  } else return
  e.preventDefault()
})
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Album:
    """Events to look at, and what is known and said of them.

    Parameters
    ----------
    title : str
        Of the page.
    lists : mapping of str to ndarray of int64
        Positions in the run, by the name of the list; at least one list.
    blind : collection of str
        Lists of which nothing is told before an event has its label.
    rings : tuple of Ring
        Resolutions to draw.
    explain : callable
        Sentences on an event.
    label_of : callable
        Label of an event, or None.
    give : callable, optional
        Takes down a label for good; without it there are none to give.
    first : int
        Place in the first list to begin at.
    """

    title: str
    lists: Mapping[str, NDArray[np.int64]]
    frames: Frames
    rings: tuple[Ring, ...]
    explain: Callable[[int], Sequence[str]]
    label_of: Callable[[int], Label | None]
    give: Callable[[int, Label], None] | None = None
    blind: frozenset[str] = frozenset()
    first: int = 0


def review_page(album: Album) -> Callable[[Document], None]:
    """Return what builds the page, once for each browser."""
    return partial(_built, album)


def _built(album: Album, document: Document) -> None:
    _ReviewPage(album, document)


class _ReviewPage:
    """The page in one browser."""

    def __init__(self, album: Album, document: Document) -> None:
        self._album = album
        self._document = document
        self._list, self._place = next(iter(album.lists)), album.first
        self._fault = ""
        self._size_px = (0, 0)
        self._picture = ColumnDataSource({"grey": [], "width": [], "height": []})
        self._peaks = ColumnDataSource({"x": [], "y": []})
        self._shown = ColumnDataSource({"event": [-1]})
        self._typed = ColumnDataSource({"key": [""], "event": [-1], "count": [0]})
        self._typed.on_change("data", self._on_typed)
        self._words = Div(sizing_mode="stretch_width", styles={"font-size": "15px"})
        self._mapper = LinearColorMapper(palette=Greys256[::-1], low=1, high=180, low_color=PAPER)
        self._x, self._y = Range1d(start=0, end=1), Range1d(start=1, end=0)
        self._figure, marks = self._drawn()
        self._lay_out(marks)
        self._show()

    def _drawn(self) -> tuple[figure, Sequence[object]]:
        """Empty picture, and the renderers of peaks and rings."""
        plot = figure(
            tools="pan,wheel_zoom,box_zoom,reset",
            active_scroll="wheel_zoom",
            x_range=self._x,
            y_range=self._y,
            sizing_mode="scale_width",
            aspect_ratio=1.0,
            toolbar_location="above",
            output_backend="canvas",
        )
        plot.toolbar_inner = True  # beside the picture it would take the place of pixels
        plot.toolbar.autohide = True
        plot.axis.visible = False
        plot.grid.visible = False
        plot.background_fill_color = PAPER
        plot.image(  # type: ignore[call-arg]  # bokeh's types lack the mapper
            image="grey", x=0, y=0, dw="width", dh="height",
            source=self._picture, color_mapper=self._mapper,
        )  # fmt: skip
        rings = self._album.rings
        places = ColumnDataSource(
            {
                "x": [ring.column for ring in rings],
                "y": [ring.row for ring in rings],
                "side": [2 * ring.radius for ring in rings],
                "top": [ring.row - ring.radius for ring in rings],
                "text": [f"{ring.resolution_a:g} Å" for ring in rings],
            }
        )
        return plot, (
            plot.scatter(
                "x", "y", source=self._peaks, marker="circle", size=13,
                fill_color=None, line_color=PEAK, line_width=1.2,
            ),
            plot.ellipse(
                "x", "y", width="side", height="side", source=places,
                fill_color=None, line_color=RING, line_alpha=0.8, line_dash="dashed",
            ),
            plot.text(  # type: ignore[call-arg]  # bokeh's types lack the background
                "x", "top", "text", source=places, text_color=RING, text_align="center",
                text_baseline="bottom", text_font_size="13px",
                background_fill_color="white", background_fill_alpha=0.7,
            ),
        )  # fmt: skip

    def _lay_out(self, renderers: Sequence[object]) -> None:
        album = self._album
        marks = CheckboxButtonGroup(labels=["peaks", "rings"], active=[0, 1], width=160)
        peaks, *rings = renderers
        marks.js_on_change(
            "active",
            CustomJS(
                args={"peaks": peaks, "rings": rings},
                code="peaks.visible = this.active.includes(0)\n"
                "for (const ring of rings) ring.visible = this.active.includes(1)",
            ),
        )
        bright = Slider(
            start=1, end=251, value=76, step=5, title="contrast", show_value=False, width=200
        )
        bright.js_on_change(
            "value", CustomJS(args={"map": self._mapper}, code="map.high = 256 - this.value")
        )
        which = Select(title="events", options=self._options(), value=self._list)
        which.on_change("value", self._on_list)
        self._which = which
        buttons = [Button(label="←", width=50), Button(label="→", width=50)]
        steps = ["left", "right"]
        if album.give is not None:
            buttons += [
                Button(label="hit", button_type="success", width=70),
                Button(label="miss", width=70),
                Button(label="maybe", button_type="warning", width=70),
            ]
            steps += list(KEYS)
        for button, key in zip(buttons, steps, strict=True):
            button.on_event(ButtonClick, partial(self._on_button, key))
        help_ = Div(text=HELP if album.give else HELP_WITHOUT_LABELS)
        keys = CustomJS(
            args={"typed": self._typed, "shown": self._shown, "marks": marks, "bright": bright},
            code=ON_KEY,
        )
        self._document.js_on_event("document_ready", keys)
        side = column(
            which, self._words, row(*buttons, styles={"flex-wrap": "wrap"}), marks, bright, help_,
            styles={"flex": "1 1 300px", "min-width": "0"},
        )  # fmt: skip
        picture = column(
            self._figure, styles={"flex": "1 1 340px", "max-width": "860px", "min-width": "0"}
        )
        # What is no part of the page is not kept alike here and in the browser.
        picture.tags = [self._typed, self._shown]
        self._document.add_root(
            row(
                picture, side, sizing_mode="stretch_width",
                styles={"flex-wrap": "wrap", "gap": "16px", "font-family": "sans-serif"},
            )
        )  # fmt: skip
        self._document.title = album.title

    def _options(self) -> list[str | tuple[str, str]]:
        return [(name, f"{name} ({events.size:,})") for name, events in self._album.lists.items()]

    @property
    def _events(self) -> NDArray[np.int64]:
        return self._album.lists[self._list]

    @property
    def _event(self) -> int | None:
        return int(self._events[self._place]) if self._events.size else None

    def _on_list(self, _name: str, _old: str, new: str) -> None:
        self._list, self._place = new, 0
        self._show()

    def _on_button(self, key: str, _: ButtonClick) -> None:
        if self._event is not None:
            self._on_key(key, self._event)

    def _on_typed(self, _name: str, _old: object, new: Mapping[str, Sequence[object]]) -> None:
        self._on_key(str(new["key"][0]), int(str(new["event"][0])))

    def _on_key(self, key: str, event: int) -> None:
        """Step, or label the event that was on the screen, and step on."""
        if self._event is None:
            return
        self._fault = ""
        if key in KEYS:
            if self._album.give is None or event != self._event:
                return  # no labels to give, or typed before the last key had its effect
            try:
                self._album.give(event, KEYS[key])
            except SfxReduceError as error:
                self._fault = str(error)
                self._show()
                return
        self._place = (self._place + (-1 if key == "left" else 1)) % self._events.size
        self._show()

    def _show(self) -> None:
        """Show the event at this place, and have the next one read meanwhile."""
        event = self._event
        if event is None:
            self._words.text = "<p>No events in this list.</p>"
            self._picture.data = {"grey": [], "width": [], "height": []}
            self._peaks.data = {"x": [], "y": []}
            return
        seen = self._album.frames.ask(event).result()
        following = int(self._events[(self._place + 1) % self._events.size])
        self._album.frames.ask(following)
        self._draw(seen)
        self._words.text = self._text(event, seen)
        self._shown.data = {"event": [event]}
        # Keys are of use only to a browser that knows which event it shows.
        self._document.title = f"event {event} · {self._album.title}"

    def _draw(self, seen: SeenFrame) -> None:
        n_rows, n_columns = (n * seen.step for n in seen.grey.shape)
        self._picture.data = {"grey": [seen.grey], "width": [n_columns], "height": [n_rows]}
        x, y = zip(*seen.peaks, strict=True) if seen.peaks else ((), ())
        self._peaks.data = {"x": list(x), "y": list(y)}
        if (self._size_px) != (n_rows, n_columns):
            self._size_px = (n_rows, n_columns)
            self._x.end = self._x.reset_end = n_columns
            self._y.start = self._y.reset_start = n_rows
            self._figure.aspect_ratio = n_columns / n_rows

    def _text(self, event: int, seen: SeenFrame) -> str:
        label = self._album.label_of(event)
        done = sum(self._album.label_of(int(one)) is not None for one in self._events)
        hidden = self._list in self._album.blind and label is None
        parts = [f"<h2 style='margin:0'>event {event}</h2>"]
        counted = f"{self._place + 1:,} of {self._events.size:,}"
        if self._album.give is not None:
            counted += f" · {done:,} labelled"
            said = "no label yet" if label is None else f"label: <b>{label.name.lower()}</b>"
            parts.append(f"<p id='label' style='margin:4px 0'>{said}</p>")
        parts.insert(1, f"<p style='margin:4px 0;color:#5b6773'>{counted}</p>")
        if self._fault:
            parts.append(f"<p style='color:#b00020'><b>Not saved:</b> {escape(self._fault)}</p>")
        if seen.fault:
            parts.append(f"<p><b>No picture:</b> {escape(seen.fault)}</p>")
        if hidden:
            parts.append("<p>Drawn for an audit: the decision is shown after the label.</p>")
        else:
            parts += [f"<p style='margin:6px 0'>{escape(s)}</p>" for s in self._explained(event)]
        return "".join(parts)

    def _explained(self, event: int) -> Sequence[str]:
        try:
            return self._album.explain(event)
        except SfxReduceError as error:
            return (str(error),)
