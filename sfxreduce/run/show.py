"""One event as a picture and as a table, for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sfxreduce.run.detector import Detector

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_frame", "html_table"]

DARKEST, BRIGHTEST = 2.0, 99.8
"""Percentiles of the trusted pixels that the darkest and the brightest shade stand for: Bragg peaks
are a few pixels in a thousand, and would be lost on a scale to the brightest of them."""


def draw_frame(frame: NDArray[np.generic], detector: Detector, *, title: str) -> Figure:
    """Draw the assembled picture of a frame.

    Parameters
    ----------
    frame : ndarray
        Shape (frame axes), in ADU.

    Returns
    -------
    Figure
        Of its own: pyplot does not know it, and nothing has to be closed.
    """
    from matplotlib.figure import Figure  # a quarter of a second that only pictures cost

    index = detector.assembly()
    trusted = (index >= 0) & detector.good().reshape(-1)[index]
    values = np.where(trusted, frame.reshape(-1)[index].astype(np.float32), np.float32(np.nan))
    lit = values[np.isfinite(values)]
    low, high = np.percentile(lit, [DARKEST, BRIGHTEST]) if lit.size else (0.0, 1.0)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("0.88")
    shown = axes.imshow(values, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
    axes.set(xlabel="column (pixel)", ylabel="row (pixel)")
    axes.set_title(title, parse_math=False)
    figure.colorbar(shown, label="ADU", shrink=0.8, extend="both")
    return figure


def html_table(title: str, facts: Mapping[str, object], *, note: str = "") -> str:
    """Small table of names and values, as a notebook shows a result; all text is escaped.

    Parameters
    ----------
    note : str
        What stands below it; nothing if empty.

    Examples
    --------
    >>> html_table("<run>", {"events": 3})
    '<table><caption>&lt;run&gt;</caption><tr><th>events</th><td>3</td></tr></table>'
    """
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<table><caption>{escape(title)}</caption>{rows}</table>{below}"
