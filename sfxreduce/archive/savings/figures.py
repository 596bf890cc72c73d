"""Pictures of what was saved: a bar for each run, and where the bytes went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from sfxreduce.archive.savings.sums import Group
from sfxreduce.archive.savings.values import ADDED, Part, Weight
from sfxreduce.decisions.decide import Decision
from sfxreduce.report.figures import COLOURS, INK
from sfxreduce.report.report import human_bytes

__all__ = ["COLOURS_OF_PARTS", "FREED", "NAMES_OF_PARTS", "bars_svg", "flow_svg"]

COLOURS_OF_PARTS: Mapping[Part, str] = {
    Part.RAW: "#9fb3c8",
    Part.HITS: COLOURS[Decision.HIT],
    Part.UNDECIDED: COLOURS[Decision.UNDECIDED],
    Part.AUDIT_SET: "#7d5ba6",
    Part.SIDECARS: "#5f6b7a",
    Part.EXTRA_COPIES: "#c8643c",
    Part.ARCHIVE_COPIES: "#2d6cb5",
    Part.UNASSIGNED: "#d3a6b8",
}
NAMES_OF_PARTS: Mapping[Part, str] = {
    Part.RAW: "raw",
    Part.HITS: "hits, kept",
    Part.UNDECIDED: "undecided, kept",
    Part.AUDIT_SET: "audit set",
    Part.SIDECARS: "sidecars",
    Part.EXTRA_COPIES: "extra copies",
    Part.ARCHIVE_COPIES: "copies in the archive",
    Part.UNASSIGNED: "not told apart",
}
FREED = "#dff0e6"

WIDTH = 1000
NAME_WIDTH, NUMBER_WIDTH = 190, 110
ROW, BAR = 24, 15
MOST_ROWS = 40

FLOW_HEIGHT = 260
BLOCK = 16
LEAST = 2.0
LABEL, GAP = 27.0, 5.0
LEFT_X, RIGHT_X = 210, WIDTH - 250


class _Band(NamedTuple):
    """Bytes on their way from the left to the right."""

    name: str
    n_bytes: int
    colour: str
    goes_to: str
    told: str


def bars_svg(groups: Sequence[Group], names: Sequence[str]) -> str:
    """One stacked bar for each run: what lies there, and in outline what was released.

    The largest runs by themselves, the others as one bar to a scale of its own.

    Parameters
    ----------
    groups : sequence of Group
        One run each.
    names : sequence of str
        Of the runs, as they are shown.
    """
    order = sorted(range(len(groups)), key=lambda n: -_length(groups[n]))
    longest = _length(groups[order[0]]) if order else 0
    rows = [(names[n], [groups[n]], longest) for n in order[:MOST_ROWS]]
    if rest := [groups[n] for n in order[MOST_ROWS:]]:
        # To the scale of single runs it would leave no room for them.
        rows.append((f"{len(rest):,} others, own scale", rest, sum(map(_length, rest))))
    room = WIDTH - NAME_WIDTH - NUMBER_WIDTH
    drawn = [
        _row(name, found, y=number * ROW, scale=room / max(whole, 1))
        for number, (name, found, whole) in enumerate(rows)
    ]
    return _svg("".join(drawn), height=max(len(rows), 1) * ROW)


def _length(group: Group) -> int:
    return group.total.bytes + group.freed.realised


def _row(name: str, groups: Sequence[Group], *, y: float, scale: float) -> str:
    """Name, bar and number of one row."""
    middle = y + ROW / 2 + 4
    parts = [
        f'<text x="{NAME_WIDTH - 10}" y="{middle}" text-anchor="end">'
        f"{escape(_shortened(name, 27))}<title>{escape(name)}</title></text>"
    ]
    x = float(NAME_WIDTH)
    for part in Part:
        n_bytes = sum(group.parts.get(part, Weight()).bytes for group in groups)
        if n_bytes:
            title = f"{NAMES_OF_PARTS[part]}: {n_bytes:,} bytes"
            width = n_bytes * scale
            parts.append(_box(x, y + (ROW - BAR) / 2, width, BAR, COLOURS_OF_PARTS[part], title))
            x += width
    released = sum(group.freed.realised for group in groups)
    if released:
        parts.append(
            _box(
                x + 0.5,
                y + (ROW - BAR) / 2 + 0.5,
                max(released * scale - 1, 1),
                BAR - 1,
                FREED,
                f"released: {released:,} bytes",
                extra=f'stroke="{COLOURS[Decision.HIT]}" stroke-dasharray="3 2"',
            )
        )
    total = sum(group.total.bytes for group in groups)
    parts.append(f'<text x="{WIDTH}" y="{middle}" text-anchor="end">{human_bytes(total)}</text>')
    return "".join(parts)


def flow_svg(group: Group) -> str:
    """Where the bytes came from and where they are: recorded and written, disk and tape.

    Bands are as thick as they have bytes; what is too thin to be seen has a line of its own.
    """
    bands = [band for band in _bands(group) if band.n_bytes > 0]
    if not bands:
        return _svg('<text x="0" y="20">no bytes</text>', height=40)
    ends = [name for name in _ENDS if any(band.goes_to == name for band in bands)]
    scale = FLOW_HEIGHT / sum(band.n_bytes for band in bands)
    thick = [max(band.n_bytes * scale, LEAST) for band in bands]
    starts, low = _stacked(thick, least=LABEL)
    totals = [
        sum(t for t, band in zip(thick, bands, strict=True) if band.goes_to == end) for end in ends
    ]
    tops, lower = _stacked(totals, least=2 * LABEL)
    # The shorter column stands in the middle of the longer one.
    down = max((low - lower) / 2, 0)
    tops = [top + down for top in tops]
    drawn, used = [], dict(zip(ends, tops, strict=True))
    for band, start, t in zip(bands, starts, thick, strict=True):
        drawn += [_ribbon(start, used[band.goes_to], t, band), _left(start, t, band)]
        used[band.goes_to] += t
    drawn += [
        _right(end, top, total, sum(b.n_bytes for b in bands if b.goes_to == end))
        for end, top, total in zip(ends, tops, totals, strict=True)
    ]
    return _svg("".join(drawn), height=max(low, lower))


def _bands(group: Group) -> list[_Band]:
    """What goes where, from top to bottom."""
    freed, parts = group.freed, group.parts
    stays = max(parts[Part.RAW].bytes - freed.potential, 0)
    may_go = parts[Part.RAW].bytes - stays
    names, colours, tape = NAMES_OF_PARTS, COLOURS_OF_PARTS, Part.ARCHIVE_COPIES
    added = [
        _Band(names[part], parts[part].bytes, colours[part], "disk", "written beside it")
        for part in (*ADDED, Part.UNASSIGNED)
    ]
    return [
        _Band("raw, released", freed.realised, "#8fcfae", "released", "recorded"),
        _Band("raw, a ticket may free it", may_go, "#6f8aa5", "disk", "recorded"),
        _Band("raw, stays", stays, colours[Part.RAW], "disk", "recorded"),
        *added,
        _Band(names[tape], freed.tape, colours[tape], "tape", "copied"),
    ]


def _stacked(heights: Sequence[float], *, least: float) -> tuple[list[float], float]:
    """Tops of blocks one below the other, each with room for its words; and the end of the last."""
    found, y = [], 4.0
    for height in heights:
        room = max(height, least)
        found.append(y + (room - height) / 2)
        y += room + GAP
    return found, y


def _ribbon(left: float, right: float, thick: float, band: _Band) -> str:
    """A band that swings from one height to another."""
    x0, x1 = LEFT_X + BLOCK, RIGHT_X
    middle = (x0 + x1) / 2
    return (
        f'<path d="M{x0} {left:.1f} C{middle} {left:.1f} {middle} {right:.1f} {x1} {right:.1f} '
        f"V{right + thick:.1f} C{middle} {right + thick:.1f} {middle} {left + thick:.1f} {x0} "
        f'{left + thick:.1f} Z" fill="{band.colour}" fill-opacity="0.45">'
        f"<title>{band.name}: {band.n_bytes:,} bytes</title></path>"
    )


def _left(top: float, thick: float, band: _Band) -> str:
    middle = top + thick / 2
    return _box(LEFT_X, top, BLOCK, thick, band.colour, band.told) + (
        f'<text x="{LEFT_X - 10}" y="{middle - 1:.1f}" text-anchor="end" font-weight="650">'
        f'{band.name}</text><text x="{LEFT_X - 10}" y="{middle + 13:.1f}" text-anchor="end" '
        f'fill="#566573">{human_bytes(band.n_bytes)}, {band.told}</text>'
    )


_ENDS = {
    "released": ("gone from the disk", COLOURS[Decision.HIT]),
    "disk": ("on the disk", "#33414f"),
    "tape": ("in the archive", COLOURS_OF_PARTS[Part.ARCHIVE_COPIES]),
}


def _right(end: str, top: float, thick: float, n_bytes: int) -> str:
    name, colour = _ENDS[end]
    middle = top + thick / 2
    return _box(RIGHT_X, top, BLOCK, thick, colour, name) + (
        f'<text x="{RIGHT_X + BLOCK + 12}" y="{middle - 2:.1f}" font-size="19" '
        f'font-weight="650">{human_bytes(n_bytes)}</text>'
        f'<text x="{RIGHT_X + BLOCK + 12}" y="{middle + 15:.1f}">{name}</text>'
    )


def _box(
    x: float, y: float, width: float, height: float, colour: str, title: str, *, extra: str = ""
) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" '
        f'fill="{colour}" {extra}><title>{escape(title)}</title></rect>'
    )


def _shortened(name: str, most: int) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _svg(content: str, *, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'font-family="inherit" font-size="12.5" fill="{INK}">{content}</svg>'
    )
