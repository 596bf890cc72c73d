"""Leave-one-experiment-out as one resumable job: material, models and tables in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent, tracked
from sfxreduce.errors import UsageError
from sfxreduce.run.window import TileChoice
from sfxreduce.scorers.cnn.folder import write_model
from sfxreduce.simulate.experiments import EXPERIMENTS, experiment_named
from sfxreduce.train.card import model_card
from sfxreduce.train.patches.cross_validate import Across, learn_across
from sfxreduce.train.patches.simulated import stored_material

__all__ = ["crossval_models"]

_FEWEST = 3


def crossval_models(
    folder: Path,
    *,
    experiments: Sequence[str] = tuple(EXPERIMENTS),
    scale: float = 1.0,
    window: TileChoice | None = None,
    pool: Pool = IN_PROCESS,
    progress: Progress = silent,
) -> Across:
    """Judge experiments of the simulator by models that have not seen them.

    Parameters
    ----------
    folder : Path
        Gets ``material``, which is not made twice; ``without/EXPERIMENT``, the models that have not
        seen one; and ``model``, which has learned from all.
    experiments : sequence of str
        At least three of `sfxreduce.simulate.EXPERIMENTS`; all of them if not given.
    scale : float
        Share of the usual number of events.
    window : TileChoice, optional
        That the models look through; the smallest that keeps the promise if not given.
    pool : Pool
        Where the experiments are simulated.

    Raises
    ------
    UsageError
        If there are fewer than three experiments, or one is not known.
    OutputError
        If the folder cannot be written.
    """
    wanted = {experiment_named(name).name for name in experiments}
    names = [name for name in EXPERIMENTS if name in wanted]
    if len(names) < _FEWEST:
        raise UsageError(
            f"crossval: expected at least {_FEWEST} experiments to leave one out of, found "
            f"{len(names)}; name more of {sorted(EXPERIMENTS)}, or none for all"
        )
    make = partial(_made, scale=scale, folder=folder / "material")
    work = pool.map("material", make, names)
    for _ in tracked(work, stage="simulate", total=len(names), progress=progress):
        pass
    material = [stored_material(name, scale=scale, folder=folder / "material") for name in names]
    found = learn_across(material, window=window, progress=progress)
    for name, model in found.models.items():
        card = model_card(model.config, title=f"Hit finder that has not seen {name}")
        write_model(folder / "without" / name, replace(model, card=card), overwrite=True)
    config = found.shipped.config
    card = model_card(config, title="Shipped hit finder", measured=found.tables)
    found = replace(found, shipped=replace(found.shipped, card=card))
    write_model(folder / "model", found.shipped, overwrite=True)
    return found


def _made(name: str, *, scale: float, folder: Path) -> str:
    """Make the material of an experiment where it is missing; it stays in the folder."""
    stored_material(name, scale=scale, folder=folder)
    return name
