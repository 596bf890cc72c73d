"""Hit loss against tiles scored, and the smallest window that keeps the hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sfxreduce.run.window import TileChoice

__all__ = ["WindowLoss", "smallest_window", "windows_table"]

MEAN_LOSS, WORST_LOSS, LEAST_SPECIFICITY = 0.01, 0.03, 0.95
"""What a window must keep. Few tiles show few peaks: the threshold that keeps the hits then lets
more blanks through. Chosen; decision 8 says what followed."""

MORE_WEAK_LOSS = 0.02
"""So many more of the weak hits may a smaller window lose than the largest one (decision 8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLoss:
    """What is lost through one window, with a threshold chosen for it.

    Parameters
    ----------
    mean_loss, worst_loss : float
        Share of the hits lost: on average over the runs or experiments judged, and of the worst.
    weak_loss : float or None
        Share of hits lost that are weaker than the threshold promises for, with a threshold that
        lets as many blanks pass through every window; None if not counted.
    least_specificity : float
        Share of the blanks rejected, of the run or experiment that fares worst.
    """

    tiles: TileChoice
    mean_loss: float
    worst_loss: float
    weak_loss: float | None = None
    least_specificity: float

    @property
    def keeps_promise(self) -> bool:
        """Whether it loses few hits and rejects the blanks, of every run or experiment."""
        return (
            self.mean_loss <= MEAN_LOSS
            and self.worst_loss <= WORST_LOSS
            and self.least_specificity >= LEAST_SPECIFICITY
        )

    def to_json(self) -> dict[str, Any]:
        """Every number by its name."""
        return asdict(self) | {"tiles": self.tiles.name, "keeps_promise": self.keeps_promise}


def smallest_window(curve: Sequence[WindowLoss]) -> TileChoice:
    """Fewest tiles that keep the promise, and hardly more weak hits lost than with the most tiles.

    Parameters
    ----------
    curve : sequence of WindowLoss
        The fewest tiles first. If none keeps the promise, the last it is.

    Examples
    --------
    >>> from sfxreduce.run.window import CENTRE, FULL
    >>> one = WindowLoss(tiles=CENTRE, mean_loss=0.0, worst_loss=0.0, least_specificity=0.4)
    >>> full = WindowLoss(tiles=FULL, mean_loss=0.0, worst_loss=0.0, least_specificity=0.99)
    >>> smallest_window([one, full]).name
    'full'
    """
    usual = curve[-1].weak_loss or 0.0
    for one in curve:
        if one.keeps_promise and (one.weak_loss or 0.0) <= usual + MORE_WEAK_LOSS:
            return one.tiles
    return curve[-1].tiles


def windows_table(curve: Sequence[WindowLoss], chosen: TileChoice) -> str:
    """Table in Markdown: what fewer tiles would lose."""
    rows = [
        f"| {one.tiles.name} | {one.mean_loss:.1%} | {one.worst_loss:.1%} | "
        f"{'-' if one.weak_loss is None else f'{one.weak_loss:.1%}'} | "
        f"{one.least_specificity:.3f} | {'yes' if one.tiles == chosen else ''} |"
        for one in curve
    ]
    head = (
        "With fewer tiles, each with a threshold chosen for it. Nearest to the middle come first,\n"
        'or every other tile of the picture if "spread". Wanted: on average at most '
        f"{MEAN_LOSS:.0%} of the\nhits lost, of no experiment more than {WORST_LOSS:.0%}, "
        f"{LEAST_SPECIFICITY:.0%} of the blanks rejected, and at most {100 * MORE_WEAK_LOSS:.0f}\n"
        "points more weak hits (5 to 9 peaks) lost than with all tiles, where 2% of the blanks are "
        "kept.\n\n"
        "| window | hits lost | of the worst | weak hits lost | least specificity | chosen |\n"
        "|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(rows)
