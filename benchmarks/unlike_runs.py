"""Hits lost and blanks kept on runs that are unlike the simulated ones, and what was promised.

Every run of `wall.WALL` is rendered by `photon_by_photon`, written into a CXI file of up to 5 GB
and filtered twice at the defaults: as `sfxreduce filter` does it, and with `--scorer peaks`. The
table also has the network alone, which rejects every event below the promised threshold. Hits are
counted by their true peaks; a blank is an event without a crystal.

    python benchmarks/unlike_runs.py --out docs/results/unlike_runs
    python benchmarks/unlike_runs.py --small
    python benchmarks/unlike_runs.py --only "9 tiles" "rings"
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray
from photon_by_photon import Truth, write_run
from scipy.stats import binom
from wall import WALL, WallRun

import sfxreduce
from sfxreduce.decisions.threshold import share_upper
from sfxreduce.pipeline.stages.plan import FilterPlan

__all__ = ["CLASSES", "METHODS", "Judged", "judge", "most_lost", "page"]

CLASSES = {"2-4": (2, 4), "5-9": (5, 9), "10+": (10, 10**6)}
"""Hits by their true peaks, fewest and most."""

METHODS = ("default", "network", "peaks")
"""The product, every event below the promised threshold, and the peak finder at its defaults."""

LEAST_SURE = 0.01
"""Chance that a promise which is kept shows more hits lost than `most_lost` allows."""

FEWEST_FOR_TWO = 100
"""Hits from which more than one may be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What became of a run.

    Parameters
    ----------
    hits : mapping of str to int
        Hits of each of `CLASSES`.
    lost : mapping of str to (mapping of str to int)
        Rejected hits, by method and class.
    blanks_rejected : mapping of str to int
        By method.
    lost_alone : int
        Hits of 10 and more peaks that the default rejects and the peak finder keeps.
    promised : bool
    reasons : tuple of str
        Why nothing is promised.
    """

    name: str
    tiles: int
    events: int
    inside: bool
    least_rejected: float | None
    max_loss: float
    hits: Mapping[str, int]
    lost: Mapping[str, Mapping[str, int]]
    blanks: int
    blanks_rejected: Mapping[str, int]
    rejected: int
    lost_alone: int
    promised: bool
    reasons: tuple[str, ...] = field(default=())

    @property
    def loss_upper(self) -> float | None:
        """Exact one-sided 95 % bound on the share of hits lost; None without a hit."""
        hits = self.hits["10+"]
        return share_upper(self.lost["default"]["10+"], hits, confidence=0.95) if hits else None

    def specificity(self, method: str) -> float:
        """Share of the blanks that a method rejects."""
        return self.blanks_rejected[method] / max(self.blanks, 1)

    def to_json(self) -> dict[str, Any]:
        """Everything by its name."""
        return asdict(self) | {"loss_upper": self.loss_upper}


def most_lost(hits: int, max_loss: float) -> int:
    """Most hits that a run may lose under a promise.

    The largest k with P(Binomial(hits, max_loss) >= k) of at least `LEAST_SURE`; no more than one
    of fewer than `FEWEST_FOR_TWO` hits.
    """
    k = np.arange(hits + 1)
    most = int(k[binom.sf(k - 1, hits, max_loss) >= LEAST_SURE].max())
    return min(most, 1) if hits < FEWEST_FOR_TWO else most


def judge(run: WallRun, folder: Path) -> Judged:
    """Render a run into a folder, filter it by every method, and delete it."""
    path = folder / f"{run.name.replace('%', 'per cent')}.cxi"
    truth = write_run(run.plan, path)
    try:
        plans = {
            "default": _plan(path, sfxreduce.CnnScorer(sfxreduce.default_model())),
            "peaks": _plan(path, sfxreduce.PeakScorer()),
        }
    finally:
        path.unlink()
    return _counted(run, truth, plans)


def _plan(path: Path, scorer: sfxreduce.Scorer) -> FilterPlan:
    """What `sfxreduce filter` would do with a run."""
    settings = sfxreduce.FilterSettings(scorer=scorer)
    with sfxreduce.open_pool(serial=True) as pool:
        return sfxreduce.plan_filter(sfxreduce.open_run(path), settings, pool=pool)


def _counted(run: WallRun, truth: Truth, plans: Mapping[str, FilterPlan]) -> Judged:
    """Count hits and blanks that each method rejects."""
    default, claims = plans["default"], plans["default"].method.claims
    claim = default.method.claim
    low = {
        name: plan.decisions.decision == sfxreduce.Decision.REJECT for name, plan in plans.items()
    }
    # A score that is not a number is below no threshold.
    low["network"] = default.decisions.score < (-np.inf if claim is None else claim.value)
    blank = ~truth.has_crystal
    of = {name: _between(truth, *limits) for name, limits in CLASSES.items()}
    promised, reasons = _promise(claims)
    return Judged(
        name=run.name,
        tiles=run.n_tiles,
        events=truth.n_peaks.size,
        inside=run.inside,
        least_rejected=run.least_rejected,
        max_loss=claims["max_loss"],
        hits={name: _count(hits) for name, hits in of.items()},
        lost={m: {name: _count(hits & low[m]) for name, hits in of.items()} for m in METHODS},
        blanks=_count(blank),
        blanks_rejected={method: _count(blank & low[method]) for method in METHODS},
        rejected=_count(low["default"]),
        lost_alone=_count(of["10+"] & low["default"] & ~low["peaks"]),
        promised=promised,
        reasons=reasons,
    )


def _promise(claims: Mapping[str, Any]) -> tuple[bool, tuple[str, ...]]:
    """Whether something is promised, and why not."""
    assurance = claims["assurance"]
    return assurance["state"] == "promised", tuple(assurance["reasons"])


def _between(truth: Truth, least: int, most: int) -> NDArray[np.bool_]:
    """Events with a crystal that shows so many peaks."""
    return truth.has_crystal & (truth.n_peaks >= least) & (truth.n_peaks <= most)


def _count(events: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(events))


def page(figures: Mapping[str, Any]) -> str:
    """Make the table from the machine and the rows of `Judged.to_json`."""
    facts, rows = figures["machine"], figures["runs"]
    lines = [
        "<!-- made by benchmarks/unlike_runs.py; do not edit -->",
        f"{len(rows)} runs, {sum(row['inside'] for row in rows)} of them inside (marked *), on "
        f"{facts['cpu']}, "
        + ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        + ". Lost: default / network alone / peak finder. Blanks rejected: the same, in per cent.",
        "",
        "| run | tiles | 10+ | lost | at most | 5-9 | lost | 2-4 | lost | blanks | rejected "
        "| of all | promised |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
        *(_line(row) for row in rows),
        "",
        *_totals(rows),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    """One row of the table."""
    cells = [f"{row['name']}{'*' if row['inside'] else ''}", str(row["tiles"])]
    for kind in reversed(CLASSES):
        cells += [str(row["hits"][kind]), " / ".join(str(row["lost"][m][kind]) for m in METHODS)]
        if kind == "10+":
            upper = row["loss_upper"]
            cells.append("-" if upper is None else f"{100 * upper:.1f} %")
    blanks = max(row["blanks"], 1)
    cells += [str(row["blanks"])]
    cells += [" / ".join(f"{100 * row['blanks_rejected'][m] / blanks:.0f}" for m in METHODS)]
    cells += [f"{100 * row['rejected'] / row['events']:.0f} %"]
    cells += ["yes" if row["promised"] else "no: " + "; ".join(row["reasons"])]
    return "| " + " | ".join(cells) + " |"


def _totals(rows: list[Mapping[str, Any]]) -> Iterable[str]:
    """Sums over the promised runs, those inside, and all."""
    promised = [row for row in rows if row["promised"]]
    groups = {
        "all runs": rows,
        "promised": promised,
        "inside": [row for row in rows if row["inside"]],
        "inside and promised": [row for row in promised if row["inside"]],
    }
    yield "| | runs | hits of 10+ | lost | at most |"
    yield "|---|--:|--:|--:|--:|"
    for name, chosen in groups.items():
        hits = sum(row["hits"]["10+"] for row in chosen)
        lost = sum(row["lost"]["default"]["10+"] for row in chosen)
        upper = f"{100 * share_upper(lost, hits, confidence=0.95):.2f} %" if hits else "-"
        yield f"| {name} | {len(chosen)} | {hits} | {lost} | {upper} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="runs by name")
    parser.add_argument("--small", action="store_true", help="the runs that are tested always")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    options = parser.parse_args()
    chosen = [run for run in WALL if run.small or not options.small]
    if options.only:
        unknown = sorted(set(options.only) - {run.name for run in chosen})
        if unknown:
            raise SystemExit(f"no run {unknown}; known are {sorted(run.name for run in chosen)}")
        chosen = [run for run in chosen if run.name in options.only]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(options.jobs) as pool:
        # The largest first, so that no process is left alone with one at the end.
        order = sorted(chosen, key=lambda run: -run.n_tiles)
        for task in as_completed([pool.submit(judge, run, Path(folder)) for run in order]):
            row = task.result().to_json()
            rows[row["name"]] = row
            print(_line(row), flush=True)
            figures = {
                "machine": machine(),
                "runs": [rows[run.name] for run in chosen if run.name in rows],
            }
            if options.out:
                write(figures, options.out)
    print(page(figures))


def write(figures: Mapping[str, Any], out: Path) -> None:
    """Write figures and table; after every run, for a wall takes an hour."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    out.with_suffix(".md").write_text(page(figures))


if __name__ == "__main__":
    main()
