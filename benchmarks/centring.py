"""Try to tell the centring of a lattice from one frame, without indexing it.

Every experiment is simulated twice: with a primitive and with a body-centred cell, all else equal.
A perfect observer lists the peaks of each crystal; a linear guess is made from how many there are,
how far apart in reciprocal space, and how strong. The cell is not known to it, as it is not when a
run begins. It learns from all experiments but one and is judged on that one.

    python benchmarks/centring.py
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sfxreduce.simulate import EXPERIMENTS
from sfxreduce.simulate.render import visible_peaks
from sfxreduce.simulate.shot import shoot
from sfxreduce.simulate.stage import Stage, stage
from sfxreduce.train.patches.classes import fit_head

CENTRINGS = ("P", "I")
FEWEST_PEAKS = 20
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=150, help="of each experiment and centring")
    options = parser.parse_args()
    seen = {name: described(name, options.events) for name in EXPERIMENTS}
    print(f"{'experiment left out':<26}{'frames':>8}{'told right':>12}")
    shares = []
    for name in EXPERIMENTS:
        others = [seen[other] for other in EXPERIMENTS if other != name]
        features, classes = (np.concatenate(parts) for parts in zip(*others, strict=True))
        head = fit_head(features, classes)
        own, truth = seen[name]
        told = 1 + np.argmax((own @ head.weight + head.bias)[:, : len(CENTRINGS)], axis=1)
        share = np.mean([np.mean(told[truth == c] == c) for c in (1, 2)])
        shares.append(share)
        print(f"{name:<26}{truth.size:>8}{share:>12.1%}")
    print(f"{'mean':<26}{'':>8}{np.mean(shares):>12.1%}    guessing: 50.0%")


def described(name: str, n_events: int) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Features of the events of both centrings, and the centring of each: 1 or 2."""
    features, classes = [], []
    for number, centring in enumerate(CENTRINGS, start=1):
        setup = with_centring(stage(name, None), centring)
        for event in range(n_events):
            shot = shoot(setup.experiment, hit_rate=1.0, seed=31, event=event)
            spots, snr = visible_peaks(shot, setup)
            strong = snr >= 5
            if np.count_nonzero(strong) < FEWEST_PEAKS:
                continue
            features.append(features_of(spots.x[strong], spots.y[strong], snr[strong]))
            classes.append(number)
    return np.array(features), np.array(classes, np.uint8)


def with_centring(setup: Stage, centring: str) -> Stage:
    """The same experiment on crystals of another centring."""
    form = replace(setup.experiment.form, centring=centring)
    experiment = replace(setup.experiment, form=form)
    return replace(setup, experiment=experiment, structure=form.structure())


def features_of(
    x: NDArray[np.floating], y: NDArray[np.floating], snr: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Number, distances to neighbours in units of what is expected at random, and strengths."""
    apart = np.hypot(x[:, np.newaxis] - x, y[:, np.newaxis] - y)
    np.fill_diagonal(apart, np.inf)
    nearest = np.sort(apart, axis=1)[:, :2]
    spread = np.sqrt(np.var(x) + np.var(y)) / np.sqrt(x.size)
    distances = np.log(np.maximum(np.quantile(nearest, QUANTILES, axis=0).ravel(), 0.5) / spread)
    strengths = np.quantile(np.log(snr), QUANTILES)
    return np.concatenate([[np.log(x.size)], distances, strengths])


if __name__ == "__main__":
    main()
