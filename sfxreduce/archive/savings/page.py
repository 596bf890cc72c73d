"""The page of a report of savings: one HTML file that needs no network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from sfxreduce.archive.savings.costs import Range
from sfxreduce.archive.savings.figures import (
    COLOURS_OF_PARTS,
    FREED,
    NAMES_OF_PARTS,
    bars_svg,
    flow_svg,
)
from sfxreduce.archive.savings.sums import Group, Savings
from sfxreduce.archive.savings.values import Part
from sfxreduce.report.report import human_bytes, rounded

__all__ = ["render_savings"]

MOST_LISTED = 500
"""Runs that have a row of their own in the table; all of them are in the JSON."""


def render_savings(savings: Savings) -> str:
    """Page of a report of savings.

    Returns
    -------
    str
        HTML with its pictures in it.
    """
    environment = Environment(
        loader=PackageLoader("sfxreduce.archive.savings"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"bytes": human_bytes, "exact": _exact, "range": _range}
    environment.filters["rounded"] = rounded
    groups = [savings.alone(run) for run in savings.runs]
    names = _short_names([run.run for run in savings.runs])
    site = savings.site
    return environment.get_template("savings.html").render(
        savings=savings,
        site=site,
        experiments=savings.experiments,
        rows=list(zip(names, groups, savings.runs, strict=True))[:MOST_LISTED],
        left_out=max(len(groups) - MOST_LISTED, 0),
        measured=[
            (name, run, group)
            for name, run, group in zip(names, savings.runs, groups, strict=True)
            if run.alternatives
        ],
        parts=_used(site),
        names_of_parts=NAMES_OF_PARTS,
        colours=COLOURS_OF_PARTS,
        freed_colour=FREED,
        flow=flow_svg(site),
        bars=bars_svg(groups, names),
        currency=savings.rates.currency,
    )


def _used(group: Group) -> list[Part]:
    """Parts that have any bytes, and those that every reader looks for."""
    always = (Part.RAW, Part.HITS, Part.UNDECIDED, Part.AUDIT_SET, Part.SIDECARS)
    return [part for part in Part if part in always or group.parts[part].bytes]


def _short_names(paths: Sequence[str]) -> list[str]:
    """Paths without the folders that all of them share."""
    if len(paths) < 2:
        return [Path(path).name for path in paths]
    shared = os.path.commonpath(paths)
    return [os.path.relpath(path, shared) for path in paths]


def _exact(number: int) -> str:
    """Whole number with its thousands told apart."""
    return f"{number:,}"


def _range(found: Range) -> str:
    """Middle of a range, and its ends, with as many digits as make sense."""
    digits = 0 if max(abs(found.low), abs(found.high)) >= 100 else 2
    low, mid, high = (rounded(v, digits) for v in (found.low, found.mid, found.high))
    return f"{mid} ({low} to {high})"
