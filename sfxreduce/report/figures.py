"""Small pictures for the report page: inline SVG and PNG, no network, no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.run.detector import Detector
from sfxreduce.scorers.peaks.finder import MIN_PEAKS

__all__ = ["Thumbnail", "assembled_png", "histogram_svg", "hit_rate_svg", "share_svg", "svg"]

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
