"""Pictures of what was measured of a model, for the report page."""

from __future__ import annotations

from collections.abc import Sequence

from sfxreduce.report.figures import BOTTOM, HEIGHT, INK, LEFT, RIGHT, TOP, WIDTH, svg
from sfxreduce.scorers.calibration.probability import ReliabilityBin
from sfxreduce.scorers.calibration.windows import TileChoice, WindowLoss

__all__ = ["curve_svg", "reliability_svg"]

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
