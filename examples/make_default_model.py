"""Make the model that ships with the package, from simulated runs alone.

Five experiments with cameras of one panel, the central 350 x 350 pixels of each; labels from the
simulator's truth. Runs that are not learned from choose the best epoch and the threshold, and
further ones, two experiments never seen among them, are measured for the model card.

Usage: python examples/make_default_model.py [--scale 0.05] [--out sfxreduce/models/default]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from sfxreduce.run import Run
from sfxreduce.scorers.cnn import CnnScorer
from sfxreduce.scorers.weights import Model, default_model, write_model
from sfxreduce.simulate.run import simulated_run
from sfxreduce.train.card import model_card
from sfxreduce.train.evaluate import Evaluation, evaluate
from sfxreduce.train.labelling import TruthLabelling
from sfxreduce.train.loop import train
from sfxreduce.train.recipe import MODERN

LEARNED = (
    "photosystem-i-8kev",
    "lysozyme-8kev",
    "polyhedrin-6kev",
    "thaumatin-eiger",
    "receptor-lcp",
)
NEVER_SEEN = ("photosystem-ii-jungfrau", "pyp-cspad")
SEED = 20
RECIPE = replace(MODERN, name="modern, five experiments", held_out_runs=len(LEARNED))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the events")
    parser.add_argument("--out", type=Path, default=default_model())
    options = parser.parse_args()
    training = [centre_run(name, 1200, seed=SEED, scale=options.scale) for name in LEARNED]
    held_out = [centre_run(name, 400, seed=SEED + 1, scale=options.scale) for name in LEARNED]
    rule = TruthLabelling()
    model = train(training + held_out, recipe=RECIPE, seed=SEED, labelling=rule, progress=show)
    evaluations = measure(model, options.scale)
    card = model_card(
        model.config, title="Shipped hit finder: centre tile", evaluations=evaluations
    )
    write_model(options.out, replace(model, card=card), overwrite=True)
    print(card)
    print(f"CPU time: {time.process_time() / 60:.1f} minutes")


def centre_run(name: str, n_events: int, *, seed: int, scale: float) -> Run:
    """Simulated run of the central 350 x 350 pixels of an experiment's camera."""
    return simulated_run(
        name,
        n_events=round(scale * n_events),
        hit_rate=0.5,
        seed=seed,
        frame_shape=(350, 350),
    )


def measure(model: Model, scale: float) -> dict[str, Evaluation]:
    """Figures on runs of other seeds, and on experiments the model has never seen."""
    tests = {f"{n}, centre": centre_run(n, 400, seed=SEED + 2, scale=scale) for n in LEARNED}
    tests |= {
        f"{name}, whole camera, never seen": simulated_run(
            name, n_events=round(scale * 150), hit_rate=0.5, seed=SEED + 2
        )
        for name in NEVER_SEEN
    }
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", model)
        scorer = CnnScorer(Path(folder) / "model")
        return {
            name: evaluate(scorer, [run], labelling=TruthLabelling()) for name, run in tests.items()
        }


def show(stage: str, done: int, total: int) -> None:
    """Say how far the training is."""
    if stage == "train":
        print(f"epoch {done} of at most {total}, {time.process_time() / 60:.1f} CPU-minutes")


if __name__ == "__main__":
    main()
