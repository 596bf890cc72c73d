"""The user's CrystFEL geometry file for the hits: other data, masks, rows; all else as it was."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from sfxreduce.io.geometry.crystfel import CrystfelGeometry, parse_geometry
from sfxreduce.io.geometry.statements import statements

__all__ = ["geometry_for_hits", "with_value"]

REPLACED = r"data|dim\d+|mask|mask_(file|good|bad)|mask\d_\w+|peak_list|peak_list_type"
"""Names of what is said anew: where frames, masks and peaks are in the file of the hits."""

SAME = {
    "photon_energy": ("photon_energy", "wavelength"),
    "wavelength": ("photon_energy", "wavelength"),
    "adu_per_photon": ("adu_per_photon", "adu_per_eV"),
}
"""Names of one thing, where it has several."""


def geometry_for_hits(text: str, *, file: str, said: Sequence[str]) -> str:
    """Geometry of hits whose panels lie one below the other, from that of their run.

    Parameters
    ----------
    text, file : str
        The user's, and its name for messages.
    said : sequence of str
        Statements to begin with, on the file or on all panels. What the text says of the same, and
        of where its data are, becomes a comment.

    Examples
    --------
    >>> text = '''photon_energy = /beam/energy keV
    ... dim0 = %
    ... dim2 = ss
    ... dim3 = fs
    ... res = 5000
    ... a/dim1 = 1
    ... a/min_fs = 0
    ... a/max_fs = 9
    ... a/min_ss = 0
    ... a/max_ss = 4
    ... a/corner_x = 0
    ... a/corner_y = 0
    ... a/fs = x
    ... a/ss = y'''
    >>> said = ["dim0 = %", "photon_energy = 9000 eV"]
    >>> hits = geometry_for_hits(text, file="run.geom", said=said)
    >>> hits.splitlines()[:3], hits.splitlines()[-2:]
    (['dim0 = %', 'photon_energy = 9000 eV', '; of the run: photon_energy = /beam/energy keV'],
     ['a/min_ss = 5', 'a/max_ss = 9'])
    """
    found = parse_geometry(text, file=file)
    dropped: set[str] = set()
    for statement in said:
        name = statement.partition("=")[0].strip()
        dropped |= {name, *SAME.get(name, ())}
    if "saturation_map_file" not in text:
        # Without a file of its own, the map is in that of the run.
        dropped.add("saturation_map")
    kept = _commented(text, file=file, dropped=dropped)
    return "\n".join([*said, kept.rstrip("\n"), *_moved(found)]) + "\n"


def with_value(text: str, name: str, value: str) -> str:
    r"""Say something of the file or of all panels, in place of what a geometry file says of it.

    Examples
    --------
    >>> with_value("clen = 0.1", "clen", "0.2 m")
    'clen = 0.2 m\n; of the run: clen = 0.1'
    """
    dropped = {name, *SAME.get(name, ())}
    return f"{name} = {value}\n" + _commented(text, file=name, dropped=dropped, places="")


def _commented(text: str, *, file: str, dropped: Collection[str], places: str = REPLACED) -> str:
    """Text in which what is said anew is a comment."""
    lines = re.split(r"\r\n|\r|\n", text)
    for statement in statements(text, file=file):
        if statement.key in dropped or re.fullmatch(places, statement.key):
            at = statement.at.line - 1
            lines[at] = f"; of the run: {lines[at].strip()}"
    return "\n".join(lines)


def _moved(found: CrystfelGeometry) -> list[str]:
    """Statements on panels and bad regions whose rows are others once modules are stacked."""
    height = max(panel.ss[1] for panel in found.panels)
    lines, shift = [], {}
    for panel in found.panels:
        shift[panel.name] = panel.modules[0] * height if panel.modules else 0
        first, stop = (row + shift[panel.name] for row in panel.ss)
        if shift[panel.name]:
            lines += [f"{panel.name}/min_ss = {first}", f"{panel.name}/max_ss = {stop - 1}"]
    for region in found.bad:
        if shift.get(region.panel):
            low, high = (int(limit[1]) + shift[region.panel] for limit in (region.low, region.high))
            lines += [f"{region.name}/min_ss = {low}", f"{region.name}/max_ss = {high}"]
    return lines
