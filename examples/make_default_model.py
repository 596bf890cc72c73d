"""Make the model that ships with the package, from simulated runs alone.

All experiments of the simulator, whole frames. Each experiment is also left out in turn and judged
by a model that has not seen it: that is what the threshold rests on, and what the card tells.
With --only-usual nothing is learned: the model at --out gets anew what is usual, the same numbers
that learning from all would give it, in six minutes of processor time.

Usage: python examples/make_default_model.py [--work build/across] [--only-usual]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import sfxreduce
from sfxreduce.run.window import TileChoice
from sfxreduce.scorers.cnn.folder import read_model, write_model
from sfxreduce.train.patches.refit import refit_usual

WINDOW = TileChoice(most=25)
"""All of a frame of up to 1750 x 1750 pixels. Fewer tiles keep the promise on simulated experiments
as well; spots that lie elsewhere on the detector are no part of those."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the events")
    parser.add_argument("--work", type=Path, default=Path("build/across"), help="kept between runs")
    parser.add_argument("--out", type=Path, default=sfxreduce.default_model())
    parser.add_argument("--only-usual", action="store_true", help="do not train")
    options = parser.parse_args()
    if options.only_usual:
        with sfxreduce.open_pool() as pool:
            model = refit_usual(read_model(options.out), scale=options.scale, pool=pool)
        write_model(options.out, model, overwrite=True)
        return
    with sfxreduce.open_pool() as pool:
        found = sfxreduce.crossval_models(
            options.work, scale=options.scale, window=WINDOW, pool=pool
        )
    write_model(options.out, found.shipped, overwrite=True)
    print(found.shipped.card)


if __name__ == "__main__":
    main()
