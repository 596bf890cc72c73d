"""Small pictures for the report page: inline SVG and PNG, no network, no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.run.detector import Detector
from sfxreduce.run.window import TileChoice
from sfxreduce.scorers.calibration.probability import ReliabilityBin
from sfxreduce.scorers.calibration.windows import WindowLoss
from sfxreduce.scorers.peaks.finder import MIN_PEAKS

__all__ = [
    "Thumbnail",
    "assembled_png",
    "curve_svg",
    "histogram_svg",
    "hit_rate_svg",
    "reliability_svg",
    "share_svg",
    "svg",
]

WIDTH, HEIGHT = 640, 170
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 34
COLOURS = {Decision.HIT: "#1b7f5c", Decision.UNDECIDED: "#d69a00", Decision.REJECT: "#b8bec8"}
INK = "#33414f"
THUMBNAIL_PIXELS = 280
WIDE_RANGE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
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

    source_index: int
    score: float
    decision: Decision
    png: str
    size: tuple[int, int]
    peaks: tuple[tuple[float, float], ...]

    @property
    def has_peaks(self) -> bool:
        """Whether the conventional peak finder would call it a hit."""
        return len(self.peaks) >= MIN_PEAKS


def assembled_png(frame: NDArray[np.generic], detector: Detector) -> str:
    """Assembled picture of a frame as a PNG data URI, small enough for a page.

    Each point shows the brightest trusted pixel it covers, so that one-pixel peaks stay visible;
    grey runs from the median to well above it. Source frames of shape (frame axes).
    """
    index = detector.assembly()
    seen = (index >= 0) & detector.good().reshape(-1)[index]
    values = np.where(seen, frame.reshape(-1)[index].astype(np.float32), np.nan)
    step = max(-(-max(values.shape) // THUMBNAIL_PIXELS), 1)
    # A picture of one row is no thinner than one point: it is filled up to a whole block.
    filled = [(0, max(step - n, 0)) for n in values.shape]
    values = np.pad(values, filled, constant_values=np.nan)
    rows, columns = (n // step * step for n in values.shape)
    blocks = values[:rows, :columns].reshape(rows // step, step, columns // step, step)
    brightest = np.nan_to_num(blocks, nan=-np.inf, posinf=-np.inf).max(axis=(1, 3))
    lit = brightest[np.isfinite(brightest)]
    low, middle = np.percentile(lit, [2, 50]) if lit.size else (0.0, 1.0)
    span = max(6 * (middle - low), 1e-6)
    grey = 255 - 255 * np.clip((brightest - low) / span, 0, 1) ** 0.7
    grey[~np.isfinite(brightest)] = 225
    buffer = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def share_svg(hits: int, undecided: int, rejected: int) -> str:
    """One bar: how the events divide."""
    total = max(hits + undecided + rejected, 1)
    counts = {
        Decision.HIT: hits,
        Decision.UNDECIDED: undecided,
        Decision.REJECT: rejected,
    }
    parts, x = [], 0.0
    for decision, count in counts.items():
        width = WIDTH * count / total
        label = f"{count:,} {decision.name.lower()}"
        parts.append(
            f'<rect x="{x:.1f}" y="0" width="{width:.1f}" height="26" fill="{COLOURS[decision]}">'
            f"<title>{label}</title></rect>"
        )
        x += width
    return svg("".join(parts), height=26)


def hit_rate_svg(decisions: Decisions, *, n_bins: int = 60) -> str:
    """Share of kept events along the run, in blocks of consecutive events."""
    kept = (decisions.decision != Decision.REJECT).astype(float)
    if not kept.size:
        return svg("", height=HEIGHT)
    edges = np.unique(np.linspace(0, kept.size, min(n_bins, kept.size) + 1).astype(int))
    rates = np.add.reduceat(kept, edges[:-1]) / np.diff(edges)
    top = min(max(float(rates.max()) * 1.15, 0.01), 1.0)
    bars = _bars(edges / kept.size, rates / top, [COLOURS[Decision.HIT]] * len(rates))
    axes = _axes("event", "kept", x_labels=("0", f"{kept.size:,}"), y_top=f"{top:.0%}")
    return svg("".join(bars) + axes)


def histogram_svg(score: NDArray[np.float32], *, threshold: float, n_bins: int = 60) -> str:
    """Histogram of the scores on a logarithmic count axis, with the threshold."""
    finite = score[np.isfinite(score)].astype(float)
    if not finite.size:
        return svg("", height=HEIGHT)
    low, high = min(finite.min(), threshold), max(finite.max(), threshold)
    high = high if high > low else low + 1
    # Peak counts run from none to a thousand; the threshold lies among the small ones.
    along = np.log1p if high - low > WIDE_RANGE else np.asarray
    places = along(finite - low) / along(high - low)
    limit = float(along(threshold - low) / along(high - low))
    counts, edges = np.histogram(places, bins=n_bins, range=(0.0, 1.0))
    heights = np.log10(counts + 1) / np.log10(counts.max() + 1) / 1.1
    middles = (edges[:-1] + edges[1:]) / 2
    colours = [COLOURS[Decision.HIT if m >= limit else Decision.REJECT] for m in middles]
    bars = _bars(edges, heights, colours)
    x = LEFT + limit * (WIDTH - LEFT - RIGHT)
    line = (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#c0392b" '
        f'stroke-width="1.5" stroke-dasharray="4 3"/>'
        f'<text x="{min(x + 5, WIDTH - 120):.1f}" y="{TOP + 11}" fill="#c0392b">'
        f"threshold {threshold:.3g}</text>"
    )
    axes = _axes(
        "score (log)" if along is np.log1p else "score",
        "events (log)",
        x_labels=(f"{low:.4g}", f"{high:.4g}"),
        y_top=f"{int(counts.max()):,}",
    )
    return svg("".join(bars) + line + axes)


def _bars(
    edges: NDArray[np.float64], heights: NDArray[np.float64], colours: list[str]
) -> Iterator[str]:
    """Bars between relative edges, of relative heights."""
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    for start, stop, height, colour in zip(edges[:-1], edges[1:], heights, colours, strict=True):
        width = max((stop - start) * inner_width - 0.6, 0.4)
        tall = height * inner_height
        yield (
            f'<rect x="{LEFT + start * inner_width:.1f}" y="{HEIGHT - BOTTOM - tall:.1f}" '
            f'width="{width:.1f}" height="{tall:.1f}" fill="{colour}"/>'
        )


def _axes(x_name: str, y_name: str, *, x_labels: tuple[str, str], y_top: str) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    return (
        f'<line x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="{INK}"/>'
        f'<text x="{LEFT}" y="{bottom + 14}">{x_labels[0]}</text>'
        f'<text x="{right}" y="{bottom + 14}" text-anchor="end">{x_labels[1]}</text>'
        f'<text x="{(LEFT + right) / 2}" y="{bottom + 28}" text-anchor="middle">{x_name}</text>'
        f'<text x="{LEFT - 6}" y="{TOP + 9}" text-anchor="end">{y_top}</text>'
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">0</text>'
        f'<text transform="translate(12 {(TOP + bottom) / 2}) rotate(-90)" '
        f'text-anchor="middle">{y_name}</text>'
    )


def svg(content: str, *, height: int = HEIGHT) -> str:
    """A picture of this page's width from its elements."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="inherit" font-size="11" fill="{INK}">{content}</svg>'
    )


HEAD = TOP + 26
_MOST_SHOWN = 0.2
_LOST, _WEAK, _KEPT = "#c0392b", "#d69a00", "#8a93a0"


def curve_svg(curve: Sequence[WindowLoss], *, chosen: TileChoice | None) -> str:
    """What is lost through each window: hits, weak hits, and blanks that are kept.

    Three bars a window, in per cent; one beyond the scale has its number above it. The window
    in use is written in bold.
    """
    if not curve:
        return svg("")
    shares = [(one.mean_loss, one.weak_loss or 0.0, 1.0 - one.least_specificity) for one in curve]
    top = min(max(0.02, *(share for three in shares for share in three)), _MOST_SHOWN)
    step = (WIDTH - LEFT - RIGHT) / len(curve)
    parts = [_legend(), _frame(f"{top:.0%}", at=HEAD)]
    for number, (one, three) in enumerate(zip(curve, shares, strict=True)):
        left = LEFT + number * step
        for k, (share, colour) in enumerate(zip(three, (_LOST, _WEAK, _KEPT), strict=True)):
            tall = max(min(share / top, 1.0) * (HEIGHT - HEAD - BOTTOM), 0.8)
            if share > top:
                parts.append(
                    f'<text x="{left + step * (0.265 + 0.23 * k):.1f}" y="{HEAD - 3}" '
                    f'text-anchor="middle">{share:.0%}</text>'
                )
            parts.append(
                f'<rect x="{left + step * (0.16 + 0.23 * k):.1f}" width="{step * 0.21:.1f}" '
                f'y="{HEIGHT - BOTTOM - tall:.1f}" height="{tall:.1f}" fill="{colour}">'
                f"<title>{share:.2%}</title></rect>"
            )
        weight = ' font-weight="700"' if one.tiles == chosen else ""
        for line, word in enumerate(one.tiles.name.split(", ")):
            parts.append(
                f'<text x="{left + step / 2:.1f}" y="{HEIGHT - BOTTOM + 14 + 12 * line}" '
                f'text-anchor="middle"{weight}>{word}</text>'
            )
    return svg("".join(parts))


def reliability_svg(bins: Sequence[ReliabilityBin]) -> str:
    """Calibrated probabilities against observed shares, with 95 % intervals; ideal is the diagonal.

    A point's area grows with its number of events.
    """
    most = max((b.n_events for b in bins), default=1)
    parts = [
        _frame("100%"),
        f'<line x1="{_x(0):.1f}" y1="{_y(0):.1f}" x2="{_x(1):.1f}" y2="{_y(1):.1f}" '
        f'stroke="{_KEPT}" stroke-dasharray="4 3"/>',
        f'<text x="{LEFT}" y="{HEIGHT - BOTTOM + 14}">0%</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - BOTTOM + 14}" text-anchor="end">100%</text>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - BOTTOM + 28}" '
        'text-anchor="middle">probability</text>',
    ]
    for b in bins:
        low, high = b.interval95
        x = _x(b.mean_probability)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_y(low):.1f}" y2="{_y(high):.1f}" '
            f'stroke="#2d6cb5"/><circle cx="{x:.1f}" cy="{_y(b.observed):.1f}" '
            f'r="{3 + 5 * (b.n_events / most) ** 0.5:.1f}" fill="#2d6cb5" fill-opacity="0.75">'
            f"<title>{b.n_hits} of {b.n_events} events</title></circle>"
        )
    return svg("".join(parts))


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _frame(top: str, *, at: float = TOP) -> str:
    bottom = HEIGHT - BOTTOM
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}" stroke="{INK}"/>'
        f'<text x="{LEFT - 6}" y="{at + 9}" text-anchor="end">{top}</text>'
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">0</text>'
    )


def _legend() -> str:
    words = ((_LOST, "hits lost"), (_WEAK, "weak hits lost"), (_KEPT, "blanks kept, at worst"))
    parts, x = [], LEFT + 10
    for colour, word in words:
        parts.append(
            f'<rect x="{x}" y="{TOP}" width="10" height="10" fill="{colour}"/>'
            f'<text x="{x + 14}" y="{TOP + 9}">{word}</text>'
        )
        x += 30 + 7 * len(word)
    return "".join(parts)
