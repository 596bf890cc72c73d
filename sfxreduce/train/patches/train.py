"""Training of the patch network: every candidate is an example, the truth says what it is."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.scorers.cnn.patches.network import PatchNetwork
from sfxreduce.train.patches.candidates import PatchSet

__all__ = ["ADAPT", "PATCHES", "PatchRecipe", "train_patches"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRecipe:
    """How the patch network is trained.

    Parameters
    ----------
    learning_rate : float
        The highest of a cycle up and down.
    least_snr : float
        A candidate is a Bragg peak if a true one of this signal to noise lies there; those with
        a fainter one are left out.
    most_peaks, most_others : int
        Of each set, a random sample of so many is learned from.
    """

    name: str = "patches"
    learning_rate: float = 4e-3
    batch: int = 512
    epochs: int = 4
    least_snr: float = 3.5
    most_peaks: int = 15_000
    most_others: int = 60_000


PATCHES = PatchRecipe()
"""The recipe of the shipped model."""

ADAPT = PatchRecipe(name="adapt", learning_rate=3e-4, epochs=2)
"""The recipe that goes on from a model with events of one run."""


def train_patches(
    sets: Sequence[PatchSet],
    *,
    recipe: PatchRecipe = PATCHES,
    seed: int = 0,
    start: PatchNetwork | None = None,
    progress: Progress = silent,
) -> PatchNetwork:
    """Train a patch network; the same seed gives the same network on one machine.

    Parameters
    ----------
    start : PatchNetwork, optional
        Network to go on from; it is not changed.
    """
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    patch, noise, is_peak = _examples(sets, recipe, rng)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PatchNetwork() if start is None else deepcopy(start).requires_grad_()
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate)
    steps = recipe.epochs * -(-len(is_peak) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=steps
    )
    for epoch in range(recipe.epochs):
        order = torch.from_numpy(rng.permutation(len(is_peak)))
        for first in range(0, len(order), recipe.batch):
            rows = order[first : first + recipe.batch]
            seen = _turned(patch[rows].float(), int(rng.integers(8)))
            loss = binary_cross_entropy_with_logits(network(seen, noise[rows]), is_peak[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        progress("train", epoch + 1, recipe.epochs)
    return network.eval().requires_grad_(requires_grad=False)


def _examples(
    sets: Sequence[PatchSet], recipe: PatchRecipe, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches, noise and truth of a sample of every set."""
    patch: list[NDArray[np.float16]] = []
    noise: list[NDArray[np.float32]] = []
    is_peak: list[NDArray[np.float32]] = []
    for one in sets:
        # What was found on squares of pixels looks the same; its truth is less sure.
        sharp, snr = one.found.sharp, one.snr
        peaks = rng.permutation(np.flatnonzero(sharp & (snr >= recipe.least_snr)))
        others = rng.permutation(np.flatnonzero(sharp & (snr == 0)))
        peaks, others = peaks[: recipe.most_peaks], others[: recipe.most_others]
        for rows, truth in ((peaks, 1.0), (others, 0.0)):
            patch.append(one.found.patch[rows])
            noise.append(one.found.noise_photons[rows])
            is_peak.append(np.full(rows.size, truth, np.float32))
    return (
        torch.from_numpy(np.concatenate(patch)),
        torch.from_numpy(np.concatenate(noise)),
        torch.from_numpy(np.concatenate(is_peak)),
    )


def _turned(patch: torch.Tensor, way: int) -> torch.Tensor:
    """One of the eight ways to turn and mirror a square."""
    turned = torch.rot90(patch, way % 4, (1, 2))
    return turned.flip(1) if way >= 4 else turned
