"""What is usual, fitted anew for a model that is there already; its network is not touched."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import Progress, silent, tracked
from sfxreduce.run.window import TileChoice
from sfxreduce.scorers.cnn.model import Model
from sfxreduce.scorers.cnn.patches.outliers import event_traits
from sfxreduce.simulate.experiments import EXPERIMENTS
from sfxreduce.simulate.run import simulate_run
from sfxreduce.train.patches.outliers import UNLIKE_HEAD, fit_usual, table_of_unlike, with_usual
from sfxreduce.train.patches.simulated import judged_of

__all__ = ["refit_usual"]

_NEXT_SECTION = "\n## Which tiles it looks at"


def refit_usual(
    model: Model, *, scale: float = 1.0, pool: Pool, progress: Progress = silent
) -> Model:
    """Give a model what `sfxreduce.crossval_models` would give it; its card tells the new figures.

    Parameters
    ----------
    model : Model
        That has learned from experiments of the simulator.
    scale : float
        Share of the usual number of events.
    pool : Pool
        Where the experiments are simulated.

    Raises
    ------
    UsageError
        If the model has learned from fewer than two experiments.
    """
    learned = {run.experiment for run in model.config.provenance.runs}
    names = [name for name in EXPERIMENTS if name in learned]
    look = partial(_traits_of, choice=model.config.window, scale=scale)
    work = pool.map("usual", look, names)
    found = dict(tracked(work, stage="usual", total=len(names), progress=progress))
    traits = {name: found[number] for number, name in enumerate(names)}
    fitted = with_usual(model, fit_usual(list(traits.values())))
    return replace(fitted, card=_card(model.card, table_of_unlike(traits)))


def _traits_of(name: str, *, choice: TileChoice, scale: float) -> NDArray[np.float64]:
    """Traits of the judged events of an experiment, as its material has them."""
    detector = simulate_run(name, n_events=1).detector
    judged = judged_of(name, scale=scale).within(choice.columns(detector))
    found = judged.found.take(judged.found.sharp)
    return event_traits(found, choice.window(detector), n_events=judged.n_events)


def _card(card: str, table: str) -> str:
    """Put a table where `cross_validate.Across.tables` has it, in place of an older one."""
    before, mark, after = card.partition(_NEXT_SECTION)
    kept = before.partition(UNLIKE_HEAD)[0].rstrip("\n")
    return f"{kept}\n\n{table}\n{mark}{after}"
