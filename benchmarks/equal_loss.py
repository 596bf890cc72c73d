"""What methods cost, and which blanks they reject, when they lose the same share of the hits.

Whole frames of 1750 x 1750, as photons and as ADU, rendered by `photon_by_photon`, which shares
nothing with the simulator that the network has learned from. Of each kind there are three runs:
ordinary crystals, few peaks of one pixel, and hot pixels with powder rings and jets. A hit has 10
or more true peaks, a blank no crystal. Every method gets the hot-pixel mask of the run.

On one half of the events each method is given the threshold, and each peak finder its setting
too, that rejects the most blanks and loses at most 1 % of the hits. The other half judges.
The product at its defaults is a row of its own: it knows the truth of neither half.

    python benchmarks/equal_loss.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import floor, nan
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from against_peers import AT_ONCE, BLANK_SHARE, warm_up
from material import KINDS, LEAST_PEAKS, FilterScoring
from numpy.typing import NDArray
from peers_runner import FASTEST_PEER, MAIN_PEER, NO_ANSWER, Peers, PeerSettings
from photon_by_photon import Artefacts, Camera, Crystals, RunPlan, write_run
from rows import Turns

import sfxreduce
from sfxreduce.run.columns import event_columns
from sfxreduce.run.run import Run, SelectedFrames
from sfxreduce.scorers.calibration.probability import ReliabilityBin

__all__ = ["measure", "table"]

MOST_LOST = 0.01
"""Share of the hits that a method may lose on the half its threshold is chosen on."""

SETTINGS = ((6.0, 3.0), (8.0, 3.0), (8.0, 5.0))
"""Signal to noise of a peak and of its pixels, and photons of a pixel: on dark frames a limit in
photons is what these methods are used with."""

SNRS = (5.0, 6.0, 8.0)
"""Signal to noise of our own peak finder, which knows that photons are counted."""

CLASSES = ("blanks", "hits")
NETWORK = "default model, one threshold"
PRODUCT = "sfxreduce filter, defaults"
OWN_FINDER = "sfxreduce peak finder"

_CAMERAS = {
    KINDS[0]: Camera(side=1750, gain=1.0, readout=0.0, dtype="uint16", full_scale=65534.0),
    KINDS[1]: Camera(side=1750),
}
_REGIMES = {
    "ordinary": {"crystals": Crystals(weak=0.0)},
    # As in `wall.py`, with more of them: a hit has 10 peaks or more.
    "few one-pixel peaks": {
        "crystals": Crystals(spots=(12, 18), sigma_px=0.2, photons=90.0, even=0.7, weak=0.0)
    },
    "hot pixels, rings, jets": {
        "crystals": Crystals(weak=0.0),
        "artefacts": Artefacts(hot_pixels=300, rings=0.3, jets=0.2),
    },
}
_READ = "read"

Setting: TypeAlias = tuple[str, float, float]
"""A peak finder, signal to noise, and photons of a pixel."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Half:
    """Events of one run that choose, or that judge.

    Parameters
    ----------
    is_hit : ndarray of bool
        Shape (event,).
    """

    run: Run
    regime: str
    is_hit: NDArray[np.bool_]


@dataclass(slots=True, kw_only=True, eq=False)
class Scored:
    """What a method made of the events of all regimes of a half; higher is more like a hit.

    Parameters
    ----------
    score : list of ndarray
        One array a run, shape (event,).
    turns : mapping of str to Turns
        Cost of an event, by class.
    tiles : list of int
        Read of each blank; empty for a method that reads frames.
    """

    score: list[NDArray[np.floating]]
    turns: Mapping[str, Turns]
    tiles: list[int]

    @classmethod
    def nothing(cls) -> Scored:
        """Before the first event."""
        return cls(score=[], turns={name: Turns() for name in CLASSES}, tiles=[])


def measure(folder: Path, *, n_each: int = 600, jobs: int = 2) -> dict[str, Any]:
    """Choose and judge thresholds.

    Parameters
    ----------
    folder : Path
        For runs; 4 GB.
    n_each : int
        Hits, and blanks, of each kind; one half chooses, the other judges.
    jobs : int
        Kinds that are worked on at once.
    """
    with ProcessPoolExecutor(jobs) as pool:
        of_kinds = list(pool.map(partial(_of_kind, folder, n_each), KINDS))
    return {
        "most_lost": MOST_LOST,
        "regimes": list(_REGIMES),
        "rows": [row for rows, _ in of_kinds for row in rows],
        "crashes": {kind: crashes for kind, (_, crashes) in zip(KINDS, of_kinds, strict=True)},
    }


def _of_kind(folder: Path, n_each: int, kind: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Every method's row of a kind of frames, and how often peak finders ended their process."""
    halves = [_halves(folder, kind, regime, n_each) for regime in _REGIMES]
    choosing, judging = zip(*halves, strict=True)
    with Peers() as peers:
        finders = [name for name in (MAIN_PEER, FASTEST_PEER) if name in peers.versions]
        settings = [(name, *one) for name in finders for one in SETTINGS]
        settings += [(OWN_FINDER, snr, 0.0) for snr in SNRS]
        chosen_on = _scored(choosing, peers, settings)
        is_hit = np.concatenate([half.is_hit for half in choosing])
        limits = {key: _limit(scored, is_hit) for key, scored in chosen_on.items()}
        best = {name: _best(name, limits) for name in (*finders, OWN_FINDER)}
        judged = _scored(judging, peers, list(best.values()))
    network, limit = judged[NETWORK], limits[NETWORK][0]
    low = [score < limit for score in network.score]
    own = {"costs": _costs(network, NETWORK), "tiles": network.tiles}
    rows = [
        _row(kind, NETWORK, f"score {limit:.3g}", judging, low, **own),
        _row(kind, PRODUCT, "nothing is chosen", judging, _rejected(judging), **own),
    ]
    for name, key in best.items():
        version = peers.versions.get(name, "")
        limit = limits[key][0]
        setting = f"signal to noise {key[1]:g}, {key[2]:g} photons, {limit:g} peaks"
        low = [score < limit for score in judged[key].score]
        label = f"{name} {version}".strip()
        costs = _costs(judged[key], key, judged[NETWORK])
        rows.append(_row(kind, label, setting, judging, low, costs=costs))
    return rows, dict(peers.crashes)


def _halves(folder: Path, kind: str, regime: str, n_each: int) -> tuple[Half, Half]:
    """Render a run, and store the events that choose and those that judge as runs of their own."""
    n = n_each // (2 * len(_REGIMES))  # of a class and half
    name = f"{kind}-{regime}".replace(" ", "-").replace(",", "")
    plan = RunPlan(
        name=name, camera=_CAMERAS[kind], hit_rate=0.5, n_events=5 * n, seed=7, **_REGIMES[regime]
    )
    source = folder / f"{name}.cxi"
    truth = write_run(plan, source)
    run = sfxreduce.open_run(source)
    blanks = np.flatnonzero(~truth.has_crystal)
    hits = np.flatnonzero(truth.has_crystal & (truth.n_peaks >= LEAST_PEAKS))
    if min(blanks.size, hits.size) < 2 * n:
        raise SystemExit(
            f"{name}: expected {2 * n} blanks and hits, found {blanks.size} and {hits.size}"
        )
    halves = []
    for number, half in enumerate(("choose", "judge")):
        own = slice(number * n, (number + 1) * n)
        # Some blanks, some hits, and so on: each turn is of one class.
        events = [
            event
            for start in range(0, n, AT_ONCE)
            for kind_of_event in (blanks[own], hits[own])
            for event in kind_of_event[start : start + AT_ONCE].tolist()
        ]
        path = folder / f"{name}-{half}.zarr"
        frames = SelectedFrames(source=run.source, events=tuple(events))
        own_run = Run(source=frames, columns=event_columns(2 * n), experiment=run.experiment)
        with sfxreduce.open_pool(serial=True) as pool:
            sfxreduce.ingest_run(own_run, out=path, pool=pool, overwrite=True)
        is_hit = np.isin(events, hits)
        halves.append(Half(run=sfxreduce.open_run(path), regime=regime, is_hit=is_hit))
    source.unlink()
    return halves[0], halves[1]


def _scored(halves: Sequence[Half], peers: Peers, settings: Sequence[Setting]) -> dict[Any, Scored]:
    """Score all events by the network and by peak finders, method by method in turns."""
    scored: dict[Any, Scored] = {key: Scored.nothing() for key in (NETWORK, *settings)}
    for half in halves:
        scoring = FilterScoring.of(half.run, sfxreduce.CnnScorer(sfxreduce.default_model()))
        scoring(range(1))
        parts: dict[Any, list[NDArray[np.floating]]] = {key: [] for key in scored}
        for events in _turns(half.is_hit):
            name, n = CLASSES[int(half.is_hit[events.start])], len(events)
            own = scored[NETWORK]
            warm_up(scoring, range(len(half.is_hit)), events)
            rows = own.turns[name].time(NETWORK, partial(scoring, events), n_events=n)
            parts[NETWORK].append(rows["score"])
            own.tiles += [] if name == "hits" else rows["tiles"].tolist()
            frames = own.turns[name].time(_READ, partial(_read, scoring, events), n_events=n)
            peers.load(frames, scoring.source.detector.good())
            for key in settings:
                counts = _counted(key, frames, scoring, peers, scored[key].turns[name])
                parts[key].append(counts)
        for key, pieces in parts.items():
            scored[key].score.append(np.concatenate(pieces))
    return scored


def _turns(is_hit: NDArray[np.bool_]) -> Iterator[range]:
    """Consecutive events of one class."""
    starts = [0, *(np.flatnonzero(np.diff(is_hit)) + 1).tolist(), is_hit.size]
    yield from (range(a, b) for a, b in pairwise(starts))


def _read(scoring: FilterScoring, events: range) -> NDArray[np.generic]:
    """Read frames one by one."""
    return np.concatenate([scoring.source.read([event]).pixels for event in events])


def _counted(
    key: Setting,
    frames: NDArray[np.generic],
    scoring: FilterScoring,
    peers: Peers,
    turns: Turns,
) -> NDArray[np.floating]:
    """Peaks of frames by a peak finder at a setting; a frame without an answer is kept."""
    name, snr, photons = key
    detector = scoring.source.detector
    if name != OWN_FINDER:
        min_adc = photons * detector.adu_per_photon
        turn = peers.search(name, PeerSettings(min_snr=snr, min_adc=min_adc))
        turns.add(str(key), turn.cpu_ms, n_events=len(frames))
        return np.where(turn.n_peaks == NO_ANSWER, np.inf, turn.n_peaks)
    finder, radius, good = sfxreduce.PeakFinder(min_snr=snr), detector.radius(), detector.good()
    return np.asarray(
        turns.time(
            str(key),
            lambda: finder.count(frames, good, radius, adu_per_photon=detector.adu_per_photon),
            n_events=len(frames),
        ),
        np.float64,
    )


def _limit(scored: Scored, is_hit: NDArray[np.bool_]) -> tuple[float, float]:
    """Highest threshold that loses few enough hits, and the share of blanks it rejects."""
    score = np.concatenate(scored.score).astype(np.float64)
    # An event below the threshold is lost; one without a score never is.
    hits = np.sort(np.nan_to_num(score[is_hit], nan=np.inf))
    limit = float(hits[floor(MOST_LOST * hits.size + 1e-9)])
    return limit, float(np.mean(score[~is_hit] < limit))


def _best(name: str, limits: Mapping[Any, tuple[float, float]]) -> Setting:
    """Setting of a peak finder that rejects the most blanks."""
    own = [key for key in limits if key[0] == name]
    best: Setting = max(own, key=lambda key: limits[key][1])
    return best


def _rejected(halves: Sequence[Half]) -> list[NDArray[np.bool_]]:
    """Events of each run that ``sfxreduce filter`` rejects at its defaults; no audit keeps any."""
    settings = sfxreduce.FilterSettings(
        scorer=sfxreduce.CnnScorer(sfxreduce.default_model()), audit_share=0.0
    )
    with sfxreduce.open_pool(serial=True) as pool:
        plans = [sfxreduce.plan_filter(half.run, settings, pool=pool) for half in halves]
    return [plan.decisions.decision == sfxreduce.Decision.REJECT for plan in plans]


def _row(
    kind: str,
    method: str,
    setting: str,
    halves: Sequence[Half],
    low: Sequence[NDArray[np.bool_]],
    *,
    costs: Mapping[str, float],
    tiles: Sequence[int] = (),
) -> dict[str, Any]:
    """Losses, specificity and cost of a method on the half that judges.

    Parameters
    ----------
    low : sequence of ndarray of bool
        Rejected events of each run, shape (event,).
    costs : mapping of str to float
        See `_costs`.
    tiles : sequence of int
        Read of each blank.
    """
    is_hit, rejected = np.concatenate([half.is_hit for half in halves]), np.concatenate(low)
    of_runs = {
        half.regime: {
            "hits": int(half.is_hit.sum()),
            "lost": int(own[half.is_hit].sum()),
            "blanks": int((~half.is_hit).sum()),
            "rejected": int(own[~half.is_hit].sum()),
        }
        for half, own in zip(halves, low, strict=True)
    }
    return {
        "kind": kind,
        "method": method,
        "setting": setting,
        "loss": _share(rejected[is_hit]),
        "specificity": _share(rejected[~is_hit]),
        "of_runs": of_runs,
        "cpu_ms": costs,
        "tiles_of_a_blank": float(np.mean(tiles)) if tiles else None,
    }


def _costs(own: Scored, key: Any, reading: Scored | None = None) -> dict[str, float]:
    """Median CPU milliseconds of an event, by class.

    Parameters
    ----------
    key : object
        Of the method.
    reading : Scored, optional
        Where what a method's frames cost to read is known, if it does not read itself.
    """
    return {
        name: turns.median(str(key))
        + (0.0 if reading is None else reading.turns[name].median(_READ))
        for name, turns in own.turns.items()
    }


def _share(of: NDArray[np.bool_]) -> dict[str, Any]:
    """A share with its two-sided 95 % interval after Clopper and Pearson."""
    counted = ReliabilityBin(
        low=0.0, high=1.0, n_events=of.size, n_hits=int(of.sum()), mean_probability=nan
    )
    return {
        "n": counted.n_hits,
        "of": counted.n_events,
        "share": counted.observed,
        "interval95": counted.interval95,
    }


def mixed_ms(row: Mapping[str, Any]) -> float:
    """Cost of an event of a run of mostly blanks."""
    blank, hit = (float(row["cpu_ms"][name]) for name in CLASSES)
    return BLANK_SHARE * blank + (1 - BLANK_SHARE) * hit


def beaten_by(row: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """Methods that cost less and lose less."""
    return [
        str(other["method"])
        for other in others
        if mixed_ms(other) < mixed_ms(row) and other["loss"]["share"] < row["loss"]["share"]
    ]


def table(figures: Mapping[str, Any]) -> list[str]:
    """The table in Markdown."""
    lines = [
        "| frames | method | chosen | hits lost | 95 % | blanks rejected | 95 % | "
        "of each run, % | CPU-ms: blank | hit | run |",
        "|---|---|---|--:|---|--:|---|---|--:|--:|--:|",
    ]
    for row in figures["rows"]:
        loss, specificity = row["loss"], row["specificity"]
        of_runs = " / ".join(
            f"{100 * one['rejected'] / one['blanks']:.0f}" for one in row["of_runs"].values()
        )
        cells = [
            row["kind"],
            row["method"],
            row["setting"],
            f"{loss['n']} of {loss['of']}",
            _interval(loss),
            f"{specificity['n']} of {specificity['of']}",
            _interval(specificity),
            of_runs,
            f"{row['cpu_ms']['blanks']:.3g}",
            f"{row['cpu_ms']['hits']:.3g}",
            f"{mixed_ms(row):.3g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Runs: {' / '.join(figures['regimes'])}. Reading is in every cost."]
    for kind, crashes in figures["crashes"].items():
        lines += [
            f"{name} ended its process (segmentation fault) in {n} searches of a frame of {kind}; "
            "such a frame counts as kept."
            for name, n in crashes.items()
        ]
    for row in figures["rows"]:
        own = [other for other in figures["rows"] if other["kind"] == row["kind"]]
        if row["method"] in (NETWORK, PRODUCT):
            better = beaten_by(row, own)
            verdict = f"**{', '.join(better)}**" if better else "no method"
            lines.append(
                f"{row['method']}, {row['kind']}: {verdict} with lower cost at lower loss."
            )
    return lines


def _interval(share: Mapping[str, Any]) -> str:
    low, high = share["interval95"]
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="for runs; a temporary folder else")
    parser.add_argument("--events", type=int, default=600, help="hits, and blanks, of each kind")
    parser.add_argument("--jobs", type=int, default=2, help="kinds of frames at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        figures = measure(folder, n_each=options.events, jobs=options.jobs)
        print("\n".join(table(figures)))


if __name__ == "__main__":
    main()
