"""Recipes: how a network is trained, as a value that is stored with the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sfxreduce.errors import UsageError

__all__ = ["MODERN", "POSTER", "RECIPES", "Recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of a training.

    Parameters
    ----------
    momentum : float
        Of stochastic gradient descent; the other optimiser has its own.
    batch : int
        Events per gradient step.
    epochs : int
        Times each labelled event is seen; the most, where training may stop early.
    run_after_run : bool
        All epochs on the first run, then all on the next; otherwise all runs are mixed.
    patience : int
        Stop after so many epochs without a smaller loss on held-out events and return to the best
        epoch. Zero: hold out nothing and never stop early.
    held_out_runs : int
        So many of the last runs only tell when to stop; of a single run every fifth labelled
        event.
    augment : bool
        Show every event turned, mirrored, shifted, noisier, brighter or dimmer, and with dead
        pixels, differently in every epoch.
    balance : bool
        Let hits and misses weigh the same, however many there are of each.
    hit_loss : float
        The threshold is at most one half, and low enough that no more than this share of the
        held-out hits falls below it. Zero: the threshold is one half.

    Raises
    ------
    UsageError
        If the settings contradict each other.
    """

    name: str
    optimiser: Literal["sgd", "adamw"]
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch: int = 100
    epochs: int
    run_after_run: bool = False
    patience: int = 0
    held_out_runs: int = 1
    augment: bool = False
    balance: bool = False
    hit_loss: float = 0.0

    def __post_init__(self) -> None:
        if min(self.batch, self.epochs) < 1:
            raise UsageError(
                f"recipe '{self.name}': expected a batch and epochs of at least 1, found "
                f"{self.batch} and {self.epochs}"
            )
        if self.run_after_run and self.patience:
            raise UsageError(
                f"recipe '{self.name}': the best epoch of one run is not the best of the next; set "
                "patience to 0 or run_after_run to False"
            )
        if self.hit_loss and not self.patience:
            raise UsageError(
                f"recipe '{self.name}': a threshold from held-out hits needs held-out events; "
                "set patience to 1 or more"
            )


POSTER = Recipe(
    name="poster",
    optimiser="sgd",
    learning_rate=0.002,
    epochs=3,
    run_after_run=True,
)
"""The recipe printed on the poster: binary cross-entropy, three epochs per run, run after run."""

MODERN = Recipe(
    name="modern",
    optimiser="adamw",
    learning_rate=0.001,
    weight_decay=0.01,
    batch=50,
    epochs=12,
    patience=3,
    augment=True,
    balance=True,
    hit_loss=0.01,
)
"""Varied pictures, mixed runs, early stopping, and a threshold that loses few held-out hits."""

RECIPES = {recipe.name: recipe for recipe in (POSTER, MODERN)}
"""Recipes by name."""
