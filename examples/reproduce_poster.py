"""Repeat the poster's experiment at its own size, on simulated runs.

The poster trained on 10,874 events of three runs and tested on 5,732 events of three other runs
of one LCLS experiment with a large unit cell; here photosystem I stands in for it. Everything
else is the poster's: the central 350 x 350 pixels, labels by quartiles of the peak counts, the
network and the recipe. The normalisation is ours: every pixel in units of its surroundings' noise.

Usage: python examples/reproduce_poster.py [--scale 0.1] [--out docs/results/poster.txt]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import Progress
from sfxreduce.run.labels import Label, Labels
from sfxreduce.run.run import Run
from sfxreduce.scorers.cnn.folder import write_model
from sfxreduce.scorers.cnn.scorer import CnnScorer
from sfxreduce.simulate.run import simulate_run
from sfxreduce.train.evaluate import AXES, Evaluation, Figures, evaluate_model
from sfxreduce.train.labelling import QuartileLabelling
from sfxreduce.train.poster.train import train
from sfxreduce.train.recipe import MODERN, POSTER, Recipe

EXPERIMENT = "photosystem-i-8kev"
TRAINING_EVENTS = {101: 3625, 102: 3625, 103: 3624}
TEST_EVENTS = {201: 1911, 202: 1911, 203: 1910}
HIT_RATE = 0.5

# What the poster prints, as shares of its test events. It calls 0.99145 sensitivity and 0.90057
# specificity; those are column ratios of this very table, that is precision and NPV.
PRINTED = {"tp": 0.44522, "fn": 0.05478, "fp": 0.00384, "tn": 0.49616}
CELLS = tuple(PRINTED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the poster's events")
    parser.add_argument("--out", type=Path, help="also write the printed text to this file")
    options = parser.parse_args()
    training = simulate(TRAINING_EVENTS, options.scale)
    test = simulate(TEST_EVENTS, options.scale)
    rule = LabelOnce()
    results = {r.name: repeat(r, training, test, rule) for r in (POSTER, MODERN)}
    text = page(results, training, test, rule)
    print(text)
    print(f"CPU time: {time.process_time() / 60:.1f} minutes")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


def simulate(sizes: dict[int, int], scale: float) -> list[Run]:
    """Runs of the stand-in, one per seed; frames are rendered when they are read."""
    return [
        simulate_run(
            EXPERIMENT,
            n_events=round(scale * n_events),
            hit_rate=HIT_RATE,
            seed=seed,
            frame_shape=(350, 350),
        )
        for seed, n_events in sizes.items()
    ]


class LabelOnce:
    """Quartile labels, worked out once per run for both recipes."""

    def __init__(self) -> None:
        self._rule = QuartileLabelling()
        self._known: dict[str, Labels] = {}

    @property
    def sentence(self) -> str:
        """The rule in one sentence."""
        return self._rule.sentence

    def __call__(self, run: Run, *, pool: Pool, progress: Progress) -> Labels:
        """Label a run that was not labelled before, else remember."""
        if run.name not in self._known:
            self._known[run.name] = self._rule(run, pool=pool, progress=progress)
        return self._known[run.name]

    def counts(self, runs: Sequence[Run]) -> str:
        """Numbers of events, hits, misses and events left open."""
        hits, misses, left_open = (
            sum(self._known[run.name].count(label) for run in runs)
            for label in (Label.HIT, Label.MISS, Label.MAYBE)
        )
        n_events = hits + misses + left_open
        return f"{n_events} events: {hits} hits, {misses} misses, {left_open} left open"


def repeat(
    recipe: Recipe, training: Sequence[Run], test: Sequence[Run], rule: LabelOnce
) -> Evaluation:
    """Train by a recipe, then judge on the other runs."""
    model = train(training, recipe=recipe, seed=0, window="centre", labelling=rule)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", model)
        return evaluate_model(CnnScorer(Path(folder) / "model"), test, labelling=rule)


def page(
    results: dict[str, Evaluation], training: Sequence[Run], test: Sequence[Run], rule: LabelOnce
) -> str:
    """Everything that was found, as text."""
    columns: dict[str, Mapping[str, float | None]] = {"poster, printed": printed()}
    columns |= {f"ours, {name}": shares(result.labelled) for name, result in results.items()}
    lines = [
        f"{EXPERIMENT} (simulated), hit rate {HIT_RATE}, frames of 350 x 350 pixels",
        f"training: {len(training)} runs, {rule.counts(training)}",
        f"test:     {len(test)} other runs, {rule.counts(test)}",
        "",
        f"Labelled test events; {AXES}.",
        "tp: hits kept, fn: hits rejected, fp: misses kept, tn: misses rejected, as shares.",
        "The poster prints precision as sensitivity and NPV as specificity.",
        "",
        *table(columns),
    ]
    for name, result in results.items():
        lines += ["", *counts(name, result)]
    return "\n".join(lines)


def printed() -> dict[str, float]:
    """The poster's table and the ratios that follow from it."""
    tp, fn, fp, tn = (PRINTED[cell] for cell in CELLS)
    return PRINTED | {
        "recall": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "precision": tp / (tp + fp),
        "npv": tn / (tn + fn),
        "accuracy": tp + tn,
        "hit_loss": fn / (tp + fn),
    }


def shares(figures: Figures) -> dict[str, float | None]:
    """Our figures in the poster's form: cells as shares of the labelled events."""
    found = figures.to_json()
    n_events = sum(found[cell] for cell in CELLS)
    return found | {cell: found[cell] / n_events for cell in CELLS}


def table(columns: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """One line per figure, one column per source."""
    names = (*CELLS, "recall", "specificity", "precision", "npv", "accuracy", "hit_loss", "roc_auc")
    lines = [f"{'':<12}" + "".join(f"{title:>18}" for title in columns)]
    for name in names:
        values = [column.get(name) for column in columns.values()]
        cells = ("-" if value is None else f"{value:.5f}" for value in values)
        lines.append(f"{name:<12}" + "".join(f"{cell:>18}" for cell in cells))
    return lines


def counts(name: str, result: Evaluation) -> list[str]:
    """Counts of one recipe: on labelled events, on all events, and by kind."""
    lines = [f"Ours, {name} recipe, threshold {result.threshold:.4f}"]
    lines += [f"labelled events ({result.n_unlabelled} of {result.n_events} are left open):"]
    lines += result.labelled.counts.table().splitlines()
    if result.all_events is not None:
        of_all = result.all_events.counts
        lines += ["all events, a true hit has at least one crystal:", *of_all.table().splitlines()]
        lines += [
            f"recall on all events {of_all.recall:.5f}, hit loss {of_all.hit_loss:.5f}, at most "
            f"{of_all.hit_loss_upper95:.5f} with 95 % confidence"
        ]
    kept = (f"{kind} {n} of {n + lost}" for kind, (n, lost) in result.by_kind.items())
    return [*lines, "kept by true kind: " + ", ".join(kept)]


if __name__ == "__main__":
    main()
