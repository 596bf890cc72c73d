"""Charts and pictures of the report page: SVG by matplotlib, PNG in data URIs, no script.

matplotlib is imported where a chart is drawn: a command without a page does without it.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.special import logit

from sfxreduce._numba import compiled
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.run.detector import Detector
from sfxreduce.run.window import TileChoice
from sfxreduce.scorers.calibration.probability import ReliabilityBin
from sfxreduce.scorers.calibration.windows import WindowLoss
from sfxreduce.scorers.peaks.finder import PeakFinder, radius_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOURS",
    "INK",
    "Picture",
    "assembled_png",
    "brightest_blocks",
    "chart",
    "draw_calibration",
    "draw_run",
    "draw_scores",
    "draw_windows",
    "peaks_in_picture",
    "readable",
    "score_axis",
]

COLOURS = {Decision.HIT: "#1b7f5c", Decision.UNDECIDED: "#d69a00", Decision.REJECT: "#aab1bc"}
NAMES = {Decision.HIT: "hits", Decision.UNDECIDED: "undecided", Decision.REJECT: "rejected"}
INK = "#33414f"
_LOST, _WEAK, _KEPT, _POINT = "#c0392b", "#d69a00", "#8a93a0", "#2d6cb5"

WIDTH, HEIGHT = 380, 200
"""Points of a chart: the width of a phone, so that its letters are as large there as beside it."""

STYLE: Any = {
    "svg.fonttype": "none",  # letters stay text: small, sharp, and found by a search
    "svg.hashsalt": "sfxreduce",
    "text.usetex": False,
    "font.size": 10.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
}
PICTURE_PIXELS = 360
GREYS = 24
"""Levels of grey of a picture: enough for the eye, and noise packs to half of its bytes."""

MOST_BLOCKS = 60
WIDE_RANGE = 50
_MOST_SHOWN = 0.2


def readable(value: float) -> str:
    """Number with three digits, or a whole one, written out and without an exponent.

    Examples
    --------
    >>> readable(4.9623e-05), readable(0.04246135175228119), readable(12345.6), readable(1333.0)
    ('0.0000496', '0.0425', '12,300', '1,333')
    """
    if not np.isfinite(value):
        return str(value)
    short = float(value) if float(value).is_integer() else float(f"{value:.3g}")
    if abs(short) >= 1000:
        return f"{short:,.0f}"
    return np.format_float_positional(short, trim="-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One event as the report shows it.

    Parameters
    ----------
    png : str
        Assembled picture as a data URI.
    size : tuple of int
        (width, height) of the assembled picture in detector pixels.
    peaks : tuple of tuple of float
        (column, row) of the Bragg peaks found, in detector pixels of the assembled picture.
    """

    event: int
    score: float
    decision: Decision
    png: str
    size: tuple[int, int]
    peaks: tuple[tuple[float, float], ...]

    @property
    def marks(self) -> str:
        """SVG path of two short lines beside every peak, which itself stays free."""
        side = max(self.size)
        gap, length = side / 90, side / 100
        return "".join(
            f"M{x - gap - length:.0f} {y:.0f}h{length:.0f}m{2 * gap:.0f} 0h{length:.0f}"
            for x, y in self.peaks
        )

    @property
    def caption(self) -> str:
        """What is said below it, and to those who cannot see it."""
        n = len(self.peaks)
        return f"score {readable(self.score)}, {n:,} peak{'' if n == 1 else 's'}"


def assembled_png(frame: NDArray[np.generic], detector: Detector) -> str:
    """Assembled picture of a frame as a PNG data URI, small enough for a page.

    Each point shows the brightest trusted pixel it covers, so that one-pixel peaks stay visible;
    grey runs from the darkest to well above the median. Source frames of shape (frame axes).
    """
    brightest, _ = brightest_blocks(frame, detector, most=PICTURE_PIXELS)
    lit = brightest[np.isfinite(brightest)]
    low, middle = np.percentile(lit, [2, 50]) if lit.size else (0.0, 1.0)
    span = max(6 * (middle - low), 1e-6)
    bright = np.clip((brightest - low) / span, 0, 1) ** 0.8
    grey = 255 - np.rint(bright * GREYS) * (255 / GREYS)
    grey[~np.isfinite(brightest)] = 225
    buffer = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).save(buffer, "PNG", compress_level=4)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def brightest_blocks(
    frame: NDArray[np.generic], detector: Detector, *, most: int
) -> tuple[NDArray[np.float32], int]:
    """Assembled picture of a frame, made small by the brightest trusted pixel of each block.

    Parameters
    ----------
    frame : ndarray
        Shape (frame axes), in ADU.
    most : int
        Longest side of what comes out, in blocks.

    Returns
    -------
    tuple of ndarray and int
        Shape (row, column), -inf where there is no such pixel; and the side of a block in pixels.
    """
    index, good = detector.assembly(), detector.good().reshape(-1)
    step = max(-(-max(index.shape) // most), 1)
    # A picture of one row is no thinner than one point.
    n_rows, n_columns = (max(n // step, 1) for n in index.shape)
    brightest = np.full((n_rows, n_columns), -np.inf, np.float32)
    _raise_to_brightest(brightest, frame.reshape(-1).astype(np.float32), good, index, step)
    return np.where(np.isfinite(brightest), brightest, np.float32(-np.inf)), step


@compiled(borrows=True)
def _raise_to_brightest(
    brightest: NDArray[np.float32],
    frame: NDArray[np.float32],
    good: NDArray[np.bool_],
    index: NDArray[np.int64],
    step: int,
) -> None:
    """Raise every block to its brightest trusted pixel; what is no number counts for nothing."""
    n_rows, n_columns = brightest.shape
    for y in range(min(n_rows * step, index.shape[0])):
        row = brightest[y // step]
        # Blocks in the inner loop: pixels of one block would have to wait for one another.
        for x in range(min(step, index.shape[1])):
            for column in range(n_columns):
                at = index[y, column * step + x]
                # No branch on what is higher: on noise the processor would guess it wrong.
                value = frame[at] if at >= 0 and good[at] else np.float32(-np.inf)
                row[column] = value if value > row[column] else row[column]


def peaks_in_picture(
    frame: NDArray[np.generic], detector: Detector
) -> tuple[tuple[float, float], ...]:
    """Peaks of a frame by the conventional rule, (column, row) in the assembled picture."""
    peaks = PeakFinder().find(
        frame, detector.good(), radius_of(detector), adu_per_photon=detector.adu_per_photon
    )
    row, column = _places(detector)
    y, x = np.rint(peaks.y).astype(int), np.rint(peaks.x).astype(int)
    at = (peaks.panel, y, x) if detector.stacked else (y, x)
    return tuple(zip(column[at].tolist(), row[at].tolist(), strict=True))


@lru_cache(maxsize=1)
def _places(detector: Detector) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return detector.assembled_positions()


def chart(draw: Callable[[Axes], None], *, name: str, alt: str) -> str:
    """SVG element of one chart, for a page that holds several.

    Parameters
    ----------
    draw : callable
        Draws into axes.
    name : str
        Of the chart: it sets its identifiers apart from those of other charts.
    alt : str
        What the chart shows, for those who cannot see it.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        axes = figure.add_axes((0.125, 0.2, 0.83, 0.68))
        draw(axes)
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    inner = text[text.index(">") + 1 :]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt)}">{inner}'
    )


def draw_run(axes: Axes, decisions: Decisions) -> None:
    """Hits along the run in per cent of the events, undecided ones on top of them."""
    n = decisions.decision.size
    edges = np.unique(np.linspace(0, n, min(MOST_BLOCKS, n) + 1).astype(int))
    bottom = np.zeros(edges.size - 1)
    for decision in (Decision.HIT, Decision.UNDECIDED):
        is_one = (decisions.decision == decision).astype(float)
        share = np.add.reduceat(is_one, edges[:-1]) / np.diff(edges) if n else bottom
        axes.bar(
            edges[:-1],
            share,
            np.diff(edges),
            bottom,
            align="edge",
            color=COLOURS[decision],
            label=NAMES[decision],
        )
        bottom = bottom + share
    axes.set_xlim(0, max(n, 1))
    axes.set_ylim(0, min(max(float(bottom.max(initial=0.0)) * 1.1, 0.01), 1.0))
    axes.xaxis.set_major_formatter(_thousands)
    axes.yaxis.set_major_formatter(_per_cent)
    axes.set_xlabel("event")
    _legend_above(axes)


def draw_scores(axes: Axes, decisions: Decisions, *, threshold: float) -> None:
    """Histogram of the scores by decision on a logarithmic count axis, with the threshold."""
    score = decisions.score.astype(np.float64)
    known = np.isfinite(score)
    along, ticks, name = score_axis(np.append(score[known], threshold))
    low, high = float(along(ticks).min()), float(along(ticks).max())
    values = along(np.append(score[known], threshold))
    low, high = min(low, values.min()), max(high, values.max())
    bins = np.linspace(low, high if high > low else low + 1, 61)
    for decision in (Decision.REJECT, Decision.UNDECIDED, Decision.HIT):
        those = along(score[known & (decisions.decision == decision)])
        if those.size:
            axes.hist(
                those, bins.tolist(), color=COLOURS[decision], alpha=0.8, label=NAMES[decision]
            )
    limit = float(along(threshold))
    axes.axvline(limit, color=_LOST, linewidth=1.2, linestyle=(0, (4, 3)))
    right = limit < (low + high) / 2
    axes.annotate(
        f"threshold {readable(threshold)}",
        (limit, 0.97),
        (4 if right else -4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="left" if right else "right",
        va="top",
        color=_LOST,
        fontsize=9.0,
    )
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(0.7, max(axes.get_ylim()[1] * 1.6, 10))
    axes.yaxis.set_major_formatter(_thousands)
    axes.set_xticks(along(ticks), [readable(tick) for tick in ticks])
    axes.set_xlabel(name)
    if known.any():
        _legend_above(axes)


def score_axis(
    scores: NDArray[np.float64],
) -> tuple[Callable[[ArrayLike], NDArray[np.float64]], NDArray[np.float64], str]:
    """How scores are laid out, the scores that are written below, and the name of the axis.

    Parameters
    ----------
    scores : ndarray
        Shape (event,), finite, and at least one.
    """
    low, high = float(scores.min()), float(scores.max())
    if low >= 0.0 and high <= 1.0:
        # Blanks crowd at zero and hits at one; odds tell both apart.
        powers = np.array([1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99])
        inside = powers[(powers >= low / 3) & (powers <= max(high, 0.5))]
        return _odds, inside[::2] if inside.size > 5 else inside, "score, a probability (logit)"
    if low >= 0.0 and high > WIDE_RANGE:
        # Peak counts run from none to a thousand; the threshold lies among the small ones.
        counts = np.array([0, 3, 10, 30, 100, 300, 1000, 3000, 10000, 100000], np.float64)
        return _counts, counts[counts <= high], "score (log)"
    steps = np.linspace(low, high, 5) if high > low else np.array([low, low + 1])
    return _as_it_is, steps, "score"


def _odds(scores: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(logit(np.clip(np.asarray(scores, np.float64), 1e-6, 1 - 1e-6)), np.float64)


def _counts(scores: ArrayLike) -> NDArray[np.float64]:
    return np.log1p(np.asarray(scores, np.float64))


def _as_it_is(scores: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(scores, np.float64)


def draw_windows(axes: Axes, curve: Sequence[WindowLoss], *, chosen: TileChoice | None) -> None:
    """What is lost through each window: hits, weak hits, and blanks that are kept, in per cent.

    A bar beyond the scale has its number above it. The window in use is written in bold.
    """
    shares: Mapping[str, tuple[str, list[float]]] = {
        "hits lost": (_LOST, [one.mean_loss for one in curve]),
        "weak hits lost": (_WEAK, [one.weak_loss or 0.0 for one in curve]),
        "blanks kept, at worst": (_KEPT, [1.0 - one.least_specificity for one in curve]),
    }
    most = max((share for _, values in shares.values() for share in values), default=0.0)
    top = min(max(0.02, most), _MOST_SHOWN)
    places = np.arange(len(curve))
    for number, (name, (colour, values)) in enumerate(shares.items()):
        at = places + 0.25 * (number - 1)
        axes.bar(at, values, 0.22, color=colour, label=name)
        for x, share in zip(at, values, strict=True):
            if share > top:
                axes.text(x, top, f"{share:.0%}", ha="center", va="bottom", fontsize=8.0)
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter(_per_cent)
    axes.set_xticks(places, [one.tiles.name.replace(", ", "\n") for one in curve], fontsize=8.0)
    for label, one in zip(axes.get_xticklabels(), curve, strict=True):
        label.set_fontweight("bold" if one.tiles == chosen else "normal")
    _legend_above(axes)


def draw_calibration(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    """Calibrated probabilities against observed shares, with 95 % intervals; ideal is the diagonal.

    A point's area grows with its number of events.
    """
    axes.plot([0, 1], [0, 1], color=_KEPT, linestyle=(0, (4, 3)), linewidth=1)
    x = np.array([b.mean_probability for b in bins])
    y = np.array([b.observed for b in bins])
    low, high = np.array([b.interval95 for b in bins]).reshape(-1, 2).T
    axes.vlines(x, low, high, color=_POINT, linewidth=1)
    most = max((b.n_events for b in bins), default=1)
    axes.scatter(x, y, [15 + 60 * b.n_events / most for b in bins], color=_POINT, alpha=0.75)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(0, 1.05)
    axes.xaxis.set_major_formatter(_per_cent)
    axes.yaxis.set_major_formatter(_per_cent)
    axes.set_xlabel("probability")


def _thousands(value: float, _: object = None) -> str:
    return f"{value:,.0f}"


def _per_cent(value: float, _: object = None) -> str:
    return f"{round(100 * value, 2):g} %"


def _legend_above(axes: Axes) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=3, columnspacing=1.2,
        handlelength=1.0, handletextpad=0.5, borderaxespad=0.0,
    )  # fmt: skip
