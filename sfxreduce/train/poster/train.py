"""Training: labelled runs in, a model out; the same seed gives the same model on one machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.errors import LabelError, UsageError
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Run
from sfxreduce.run.window import CENTRE, FULL, TileChoice
from sfxreduce.scorers.calibration.windows import WindowLoss, smallest_window
from sfxreduce.scorers.cnn.model import Model, ModelConfig, Provenance, TrainingRun
from sfxreduce.scorers.cnn.on_torch import hit_probability
from sfxreduce.scorers.cnn.poster.network import HitNetwork
from sfxreduce.scorers.cnn.poster.normalise import Normalisation
from sfxreduce.train.card import model_card
from sfxreduce.train.labelling import Labelling, PeakLabelling
from sfxreduce.train.poster.augment import vary
from sfxreduce.train.poster.dataset import EventSet, gather, read_labelled, split_events
from sfxreduce.train.recipe import MODERN, Recipe
from sfxreduce.train.windows import low_quantile, window_curve

__all__ = ["train"]

# 16,384 tiles in half precision take 4 GB.
_MOST_TILES = 16_384
# Tiles of an event that are learned from at a time: all 25 of a frame would take 8 times as long.
_TILES_SHOWN = 3
_HELD_OUT_SHARE = 5
# Gradients are summed over parts of a batch: eight tiles fit the cache of a core, a hundred do not.
_PART = 10
_PACKAGES = ("numpy", "sfxreduce", "torch")


def train(
    runs: Sequence[Run],
    *,
    recipe: Recipe = MODERN,
    seed: int = 0,
    window: str = "auto",
    labelling: Labelling | None = None,
    pool: Pool | None = None,
    progress: Progress = silent,
) -> Model:
    """Train a network on labelled runs.

    If the recipe stops early, its last runs are held out for that, or every fifth labelled event
    of a single one.

    Parameters
    ----------
    runs : sequence of Run
        In the order in which they are learned from.
    seed : int
        Of the network's first weights, the order of events and their variations.
    window : {"auto", "centre", "full"}
        Tiles it learns from and looks at: the one in the middle, or all. "auto" learns from all and
        then takes the fewest that keep the held-out hits; without held-out events, the middle one.
    labelling : Labelling, optional
        The peak finder's rule if not given: `sfxreduce.train.labelling.PeakLabelling`.
    pool : Pool, optional
        Where peaks are counted; in this process if not given. Training itself takes one core.

    Raises
    ------
    LabelError
        If there are no runs, or one whose events cannot be told into hits and misses.
    UsageError
        If there is no such window.
    """
    tiles = _tiles_to_read(window, recipe)
    if not runs:
        raise LabelError("train: expected at least one run, found none; pass --in RUN")
    rule = PeakLabelling() if labelling is None else labelling
    labels = [rule(run, pool=pool or SerialPool(), progress=progress) for run in runs]
    read = partial(
        read_labelled,
        normalisation=Normalisation(),
        most_tiles=_MOST_TILES if recipe.run_after_run else max(_MOST_TILES // len(runs), 1),
        tiles=tiles,
        seed=seed,
        progress=progress,
    )
    readers = [partial(read, run, label) for run, label in zip(runs, labels, strict=True)]
    learner = _Learner(recipe, seed, progress, tiles=tiles)
    n_held = min(recipe.held_out_runs, len(runs) - 1) if recipe.patience else 0
    held = _learn(learner, readers, recipe, n_held=n_held)
    if held:  # the recipes hold out one run, or part of a single one
        learner.settle(held, runs[-1].detector, choose=window == "auto")
    roles = ["training"] * (len(runs) - n_held) + ["stopping"] * n_held
    records = map(TrainingRun.of, runs, (own.label for own in labels), roles)
    return learner.model(tuple(records), labels=rule.sentence)


class _Learner:
    """A network on its way through a recipe."""

    def __init__(self, recipe: Recipe, seed: int, progress: Progress, *, tiles: TileChoice) -> None:
        self._recipe = recipe
        self._seed = seed
        self._progress = progress
        self._rng = np.random.default_rng(seed)
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._network = HitNetwork()
        self._optimiser = _optimiser(self._network, recipe)
        self._threshold = 0.5
        self._window = tiles
        self._curve: tuple[WindowLoss, ...] = ()

    def learn(self, sets: Sequence[EventSet], held: Sequence[EventSet] = ()) -> None:
        """All epochs on some sets; back to the best one if there are held-out events."""
        best, best_loss, waited = None, np.inf, 0
        for epoch in range(self._recipe.epochs):
            self._epoch(sets)
            self._progress("train", epoch + 1, self._recipe.epochs)
            if not held:
                continue
            loss = self._loss(held)
            waited = 0 if loss < best_loss else waited + 1
            if loss < best_loss:
                best, best_loss = copy.deepcopy(self._network.state_dict()), loss
            if waited == self._recipe.patience:
                break
        if best is not None:
            self._network.load_state_dict(best)

    def settle(self, held: Sequence[EventSet], detector: Detector, *, choose: bool) -> None:
        """Take the fewest tiles that do, if there is a choice, and a threshold for them."""
        of_tiles = np.concatenate([self._of_tiles(events) for events in held])
        is_hit = np.concatenate([events.is_hit for events in held])
        if choose and of_tiles.shape[1] > 1:
            self._curve = window_curve(of_tiles, is_hit, detector)
            self._window = smallest_window(self._curve)
        elif choose:
            self._window = CENTRE
        columns = self._window.columns(detector) if of_tiles.shape[1] > 1 else [0]
        if self._recipe.hit_loss:
            hits = of_tiles[is_hit][:, columns].max(axis=1)
            self._threshold = float(min(0.5, low_quantile(hits, self._recipe.hit_loss)))

    def _of_tiles(self, events: EventSet) -> NDArray[np.float32]:
        """Hit probability of every tile alone, shape (event, tile)."""
        self._network.eval()
        alone = events.seen.reshape(-1, 1, *events.seen.shape[2:])
        return hit_probability(self._network, alone).reshape(events.seen.shape[:2])

    def model(self, runs: tuple[TrainingRun, ...], *, labels: str) -> Model:
        """Return what was learned."""
        recipe = self._recipe
        provenance = Provenance(
            recipe=asdict(recipe),
            seed=self._seed,
            labels=labels,
            threshold=(
                f"at most one half, and so low that no more than {recipe.hit_loss:.1%} of the "
                "held-out hits score less"
                if recipe.hit_loss
                else "one half"
            ),
            runs=runs,
            versions={package: version(package) for package in _PACKAGES},
        )
        config = ModelConfig(
            threshold=self._threshold,
            window=self._window,
            curve=self._curve,
            provenance=provenance,
        )
        weights = {name: value.numpy() for name, value in self._network.state_dict().items()}
        return Model(config=config, weights=weights, card=model_card(config))

    def _epoch(self, sets: Sequence[EventSet]) -> None:
        """Show every event once, in random order."""
        self._network.train()
        rows = [(s, row) for s, events in enumerate(sets) for row in range(len(events))]
        order = self._rng.permutation(len(rows))
        weights = _class_weights(sets, balance=self._recipe.balance)
        for start in range(0, len(rows), self._recipe.batch):
            batch = [rows[i] for i in order[start : start + self._recipe.batch]]
            self._optimiser.zero_grad()
            for part in (batch[i : i + _PART] for i in range(0, len(batch), _PART)):
                seen = gather(sets, part, most_tiles=_TILES_SHOWN, rng=self._rng)
                if self._recipe.augment:
                    seen = vary(seen, normalisation=Normalisation(), rng=self._rng)
                is_hit = np.array([sets[s].is_hit[row] for s, row in part])
                outputs = self._network(torch.from_numpy(seen))
                loss = cross_entropy(
                    outputs, torch.from_numpy(is_hit.astype(np.int64)), weights, reduction="sum"
                )
                (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()

    def _loss(self, held: Sequence[EventSet]) -> float:
        """Mean binary cross-entropy, hits and misses weighing the same if the recipe says so."""
        self._network.eval()
        scores = [hit_probability(self._network, events.seen) for events in held]
        score = np.concatenate(scores).astype(np.float64)
        is_hit = np.concatenate([events.is_hit for events in held])
        weights = _class_weights(held, balance=self._recipe.balance).numpy()
        surprise = -np.log(np.maximum(np.where(is_hit, score, 1 - score), 1e-12))
        return float(np.mean(weights[is_hit.astype(np.int64)] * surprise))


def _tiles_to_read(window: str, recipe: Recipe) -> TileChoice:
    """Tiles that have to be learned from for a window."""
    choices = {"centre": CENTRE, "full": FULL, "auto": FULL if recipe.patience else CENTRE}
    if window not in choices:
        raise UsageError(f"--window {window}: expected auto, centre or full")
    return choices[window]


def _learn(
    learner: _Learner, readers: Sequence[Callable[[], EventSet]], recipe: Recipe, *, n_held: int
) -> list[EventSet]:
    """Learn from all runs but those held out; return the events that told when to stop.

    Raises
    ------
    LabelError
        If there is no hit among the held-out events; before anything is learned.
    """
    n_learned = len(readers) - n_held
    if recipe.run_after_run:
        for read in readers[:n_learned]:  # one run in memory at a time
            learner.learn([read()])
        return []
    sets = [read() for read in readers]
    rest, held = sets[:n_learned], sets[n_learned:]
    if recipe.patience and not n_held:
        rest, held = ([part] for part in split_events(sets[0], every=_HELD_OUT_SHARE))
    if held and not any(events.n_hits for events in held):
        n_held_events = sum(map(len, held))
        raise LabelError(
            f"train: expected hits among the {n_held_events} events held out to choose the "
            "threshold by, found none; add runs, or a longer one"
        )
    learner.learn(rest, held)
    return held


def _optimiser(network: HitNetwork, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser."""
    parameters, rate, decay = network.parameters(), recipe.learning_rate, recipe.weight_decay
    if recipe.optimiser == "sgd":
        momentum = recipe.momentum
        return torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)


def _class_weights(sets: Sequence[EventSet], *, balance: bool) -> torch.Tensor:
    """Weight of a miss and of a hit; their mean over the events is one."""
    n_hits = sum(events.n_hits for events in sets)
    n_misses = sum(len(events) for events in sets) - n_hits
    if not balance or not n_hits or not n_misses:
        return torch.ones(2)
    n_events = n_hits + n_misses
    return torch.tensor([n_events / (2 * n_misses), n_events / (2 * n_hits)], dtype=torch.float32)
