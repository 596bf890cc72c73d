"""Hits lost by the network and by the conventional peak finder, on experiments neither has seen.

Simulated events of every experiment, chosen by their truth before a pixel is drawn: hits with 2 to
4, with 5 to 9 and with 10 or more true peaks, and blanks, as many of each. The network is that of
`sfxreduce crossval` which has not seen the experiment. The peak finder is given the same hot-pixel
mask, and one of a grid of settings:

- fixed: one setting and number of peaks, the ones that lose the fewest hits of all experiments;
- tuned: those that lose the fewest of each experiment, chosen on the events they are judged by.

Every threshold, the network's included, lets through at most 2 % of the blanks it was chosen on:
of all experiments together, but for the tuned peak finder.

    python benchmarks/hit_loss.py --out docs/results/hit_loss

What is scored stays in --work: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sfxreduce
from sfxreduce.quality.conditions import Conditioned, conditions_of_run
from sfxreduce.scorers.cnn.folder import read_model
from sfxreduce.scorers.peaks.finder import PeakFinder
from sfxreduce.simulate import EXPERIMENTS
from sfxreduce.simulate.run import SimulatedFrames, simulate_truth

SEED, HIT_RATE = 7001, 0.75
SPECIFICITY = 0.98
CLASSES = {"blank": (0, 0), "2-4": (2, 4), "5-9": (5, 9), "10+": (10, 10**6)}
HITS = tuple(CLASSES)[1:]
SETTINGS = tuple(
    PeakFinder(min_snr=min_snr, min_pixels=min_pixels)
    for min_snr in (5.0, 6.0, 8.0)
    for min_pixels in (1, 2)
)
_TRUTH_AT_ONCE = 100
_MOST_EVENTS = 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Events of one experiment, by class.

    Parameters
    ----------
    score : mapping of str to ndarray
        Of the network, shape (event,), less the level of the run.
    count : mapping of str to ndarray
        Peaks, shape (event, setting).
    pixels_read, pixels : int
        That the network looks at, and on the frame.
    """

    score: Mapping[str, NDArray[np.float32]]
    count: Mapping[str, NDArray[np.int32]]
    pixels_read: int
    pixels: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results/hit_loss"))
    parser.add_argument("--work", type=Path, default=Path("build/hit_loss"))
    parser.add_argument("--across", type=Path, default=Path("build/across"), help="of crossval")
    parser.add_argument("--events", type=int, default=300, help="of each class and experiment")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    models = options.across / "without"
    if not all((models / name).is_dir() for name in EXPERIMENTS):
        with sfxreduce.open_pool(n_workers=options.processes) as pool:
            sfxreduce.crossval_models(options.across, pool=pool)
    with ProcessPoolExecutor(options.processes) as pool:
        of_truth = partial(chosen, n=options.events, work=options.work)
        events = dict(zip(EXPERIMENTS, pool.map(of_truth, EXPERIMENTS), strict=True))
        jobs = [(name, kind, events[name][kind]) for name in EXPERIMENTS for kind in CLASSES]
        for number, _ in enumerate(pool.map(partial(score, models, options.work), jobs), 1):
            print(f"{number} of {len(jobs)}", flush=True)
    scored = {name: collected(name, models, options.work) for name in EXPERIMENTS}
    found = compared(scored)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(found, scored))
    print(table(found, scored))


def chosen(name: str, *, n: int, work: Path) -> dict[str, list[int]]:
    """The first events of each class, by their truth alone."""
    path = work / f"{name}-{n}.json"
    if path.exists():
        kept: dict[str, list[int]] = json.loads(path.read_text())
        return kept
    source = frames(name)
    found: dict[str, list[int]] = {kind: [] for kind in CLASSES}
    for start in range(0, _MOST_EVENTS, _TRUTH_AT_ONCE):
        if all(len(events) >= n for events in found.values()):
            break
        block = range(start, start + _TRUTH_AT_ONCE)
        truth = simulate_truth(source, block)
        crystal, peaks = truth.n_crystals.values > 0, truth.n_peaks.values
        for kind, (least, most) in CLASSES.items():
            fits = (crystal == (kind != "blank")) & (peaks >= least) & (peaks <= most)
            found[kind] += [block[i] for i in np.flatnonzero(fits)]
    found = {kind: events[:n] for kind, events in found.items()}
    path.write_text(json.dumps(found))
    return found


def score(models: Path, work: Path, job: tuple[str, str, list[int]]) -> None:
    """Score the events of one class by the network and by every setting of the peak finder."""
    name, kind, events = job
    path = work / f"{name}-{kind}-{len(events)}.npz"
    if path.exists():
        return
    source = seen(name)
    detector, good = source.detector, source.detector.good()
    scorer = sfxreduce.CnnScorer(models / name)
    window = scorer.window(detector)
    radius = detector.radius()
    scores = np.empty(len(events), np.float32)
    counts = np.empty((len(events), len(SETTINGS)), np.int32)
    for row, event in enumerate(events):
        frame = source.read([event]).pixels
        scores[row] = scorer(window.take(frame[0], detector)[np.newaxis], detector)[0]
        counts[row] = [
            finder.count(frame, good, radius, adu_per_photon=detector.adu_per_photon)[0]
            for finder in SETTINGS
        ]
    partial_path = path.with_suffix(".partial")
    with partial_path.open("wb") as file:
        np.savez(file, score=scores, count=counts)
    partial_path.replace(path)


def frames(name: str) -> SimulatedFrames:
    """Run of an experiment that is as long as need be."""
    return SimulatedFrames(experiment=name, n_events=_MOST_EVENTS, hit_rate=HIT_RATE, seed=SEED)


def seen(name: str) -> Conditioned:
    """The run with the hot pixels that its first frames show."""
    start = sfxreduce.simulate_run(name, n_events=24, hit_rate=HIT_RATE, seed=SEED)
    return Conditioned(source=frames(name), found=conditions_of_run(start))


def collected(name: str, models: Path, work: Path) -> Scored:
    """Everything scored of an experiment, its level taken off the network's scores."""
    raw, count = {}, {}
    for kind in CLASSES:
        (path,) = work.glob(f"{name}-{kind}-*.npz")
        with np.load(path) as arrays:
            raw[kind], count[kind] = arrays["score"], arrays["count"]
    rule = read_model(models / name).config.level
    move = rule.move(np.concatenate(list(raw.values())))
    detector = frames(name).detector
    window = sfxreduce.CnnScorer(models / name).window(detector)
    return Scored(
        score={kind: rule.reduced(scores, move) for kind, scores in raw.items()},
        count=count,
        pixels_read=int(np.count_nonzero(window.gather(detector) >= 0)),
        pixels=detector.mask.size,
    )


def compared(scored: Mapping[str, Scored]) -> dict[str, Any]:
    """Losses of the network, of the fixed peak finder and of the tuned one."""
    blanks = np.concatenate([one.score["blank"] for one in scored.values()])
    limit = least_threshold(blanks)
    fixed, fixed_limit = best_setting(list(scored.values()))
    rows = []
    for name, one in scored.items():
        tuned, tuned_limit = best_setting([one])
        judged = {
            "network": {kind: one.score[kind] < limit for kind in CLASSES},
            "fixed": {kind: one.count[kind][:, fixed] < fixed_limit for kind in CLASSES},
            "tuned": {kind: one.count[kind][:, tuned] < tuned_limit for kind in CLASSES},
        }
        for method, low in judged.items():
            rows.append(
                {
                    "experiment": name,
                    "method": method,
                    "specificity": float(low["blank"].mean()),
                    "events": {kind: int(low[kind].size) for kind in HITS},
                    "lost": {kind: int(low[kind].sum()) for kind in HITS},
                    "setting": {
                        "network": f"{limit:.4g}",
                        "fixed": in_words(fixed, fixed_limit),
                        "tuned": in_words(tuned, tuned_limit),
                    }[method],
                }
            )
    return {"specificity": SPECIFICITY, "rows": rows}


def least_threshold(blanks: NDArray[np.generic]) -> float:
    """Lowest threshold that rejects enough of the blanks."""
    at = np.sort(blanks)[int(np.ceil(SPECIFICITY * blanks.size)) - 1]
    return float(np.nextafter(at, np.inf))


def best_setting(scored: list[Scored]) -> tuple[int, int]:
    """Number of the setting, and fewest peaks of a hit, that lose the fewest hits."""
    lost = {}
    for setting in range(len(SETTINGS)):
        blanks = np.concatenate([one.count["blank"][:, setting] for one in scored])
        limit = int(least_threshold(blanks)) + 1
        hits = np.concatenate([one.count[kind][:, setting] for one in scored for kind in HITS])
        lost[setting, limit] = int(np.count_nonzero(hits < limit))
    return min(lost, key=lambda chosen: lost[chosen])


def in_words(setting: int, limit: int) -> str:
    """Name a setting of the peak finder."""
    finder = SETTINGS[setting]
    return f"signal to noise {finder.min_snr:g}, {finder.min_pixels} px, {limit} peaks"


def table(found: Mapping[str, Any], scored: Mapping[str, Scored]) -> str:
    """Both tables in Markdown."""
    lines = [
        f"Hits lost in per cent, of {found['rows'][0]['events']['10+']} of each class and "
        "experiment, by number of true peaks.",
        "",
        "| experiment | method | 2-4 | 5-9 | 10+ | specificity | setting |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        shares = " | ".join(f"{100 * row['lost'][k] / row['events'][k]:.1f}" for k in HITS)
        lines.append(
            f"| {row['experiment']} | {row['method']} | {shares} | {row['specificity']:.3f} | "
            f"{row['setting']} |"
        )
    lines += ["", *totals(found), "", *pixels(scored)]
    return "\n".join(lines) + "\n"


def totals(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the table over all experiments."""
    yield "| all experiments | 2-4 | 5-9 | 10+ | all hits | specificity |"
    yield "|---|---|---|---|---|---|"
    for method in ("network", "fixed", "tuned"):
        rows = [row for row in found["rows"] if row["method"] == method]
        lost = {kind: sum(row["lost"][kind] for row in rows) for kind in HITS}
        events = {kind: sum(row["events"][kind] for row in rows) for kind in HITS}
        shares = " | ".join(f"{lost[k]} of {events[k]}" for k in HITS)
        mean = np.mean([row["specificity"] for row in rows])
        total = f"{sum(lost.values())} of {sum(events.values())}"
        yield f"| {method} | {shares} | {total} | {mean:.3f} |"


def pixels(scored: Mapping[str, Scored]) -> Iterator[str]:
    """Lines of the table of pixels."""
    yield "| experiment | pixels the network reads | the peak finder reads | share |"
    yield "|---|---|---|---|"
    for name, one in scored.items():
        share = one.pixels_read / one.pixels
        yield f"| {name} | {one.pixels_read:,} | {one.pixels:,} | {share:.0%} |"


if __name__ == "__main__":
    main()
