"""Make the model that ships with the package, from simulated runs alone.

All experiments of the simulator, whole frames. Each experiment is also left out in turn and judged
by a model that has not seen it: that is what the threshold rests on, and what the card tells.

Usage: python examples/make_default_model.py [--work build/across]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import sfxreduce


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the events")
    parser.add_argument("--work", type=Path, default=Path("build/across"), help="kept between runs")
    parser.add_argument("--out", type=Path, default=sfxreduce.default_model())
    options = parser.parse_args()
    with sfxreduce.open_pool() as pool:
        found = sfxreduce.cross_validate(options.work, scale=options.scale, pool=pool)
    sfxreduce.write_model(options.out, found.shipped, overwrite=True)
    print(found.shipped.card)


if __name__ == "__main__":
    main()
