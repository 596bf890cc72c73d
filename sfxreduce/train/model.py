"""A model from labelled runs, or from another model and one run that nobody labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.errors import UsageError
from sfxreduce.run.run import Run
from sfxreduce.scorers.cnn.folder import check_model_path, default_model, read_model, write_model
from sfxreduce.scorers.cnn.model import Model
from sfxreduce.train.labelling import Labelling
from sfxreduce.train.patches.adapt import adapt
from sfxreduce.train.poster.train import train
from sfxreduce.train.recipe import MODERN, RECIPES

__all__ = ["TrainedModel", "train_model"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedModel:
    """A new model, and how it came about.

    Parameters
    ----------
    details : mapping
        Recipe, window and numbers of labelled events; or how it did before and after it learned
        from a run.
    """

    model: Model
    details: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Everything but the numbers of the network."""
        return {
            "model_sha256": self.model.sha256,
            "threshold": self.model.config.threshold,
            **self.details,
        }


def train_model(
    runs: Sequence[Run],
    *,
    start: Path | str | None = None,
    sample: int | None = None,
    recipe: str | None = None,
    window: str = "auto",
    seed: int = 0,
    labelling: Labelling | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    pool: Pool = IN_PROCESS,
    progress: Progress = silent,
) -> TrainedModel:
    """Train a network on labelled runs, or let a model go on learning from one run.

    Parameters
    ----------
    start : Path or str, optional
        Folder of the model that goes on learning, or "default" for the shipped one. It takes one
        run, which the peak finder labels.
    sample : int, optional
        Events of that run to score; see `sfxreduce.train.patches.adapt.adapt`.
    recipe : str, optional
        "modern" or "poster"; "modern" if not given.
    window : {"auto", "centre", "full"}
        Tiles it learns from; see `sfxreduce.train.poster.train.train`.
    labelling : Labelling, optional
        The peak finder's rule if not given: `sfxreduce.train.labelling.PeakLabelling`.
    out : Path, optional
        Model folder to write.

    Raises
    ------
    UsageError
        If options contradict each other.
    LabelError
        If the events of a run cannot be told into hits and misses.
    OutputExists
        If something lies at `out` and is not to be overwritten, or is no model; before training.
    """
    if out is not None:
        check_model_path(out, overwrite=overwrite)
    if start is None:
        if sample is not None:
            raise UsageError("--sample: goes with --from only; labelled runs are read whole")
        trained = _trained(runs, recipe or MODERN.name, window, seed, labelling, pool, progress)
    else:
        if len(runs) != 1 or recipe is not None or labelling is not None:
            raise UsageError(
                "--from: expected one run, which the peak finder labels, found "
                f"{len(runs)} and other labels or a recipe; leave --recipe, --labels, "
                "--miss-at-most and --min-peaks"
            )
        folder = default_model() if start == "default" else Path(start)
        trained = _adapted(runs[0], folder, sample, window, seed, pool, progress)
    if out is not None:
        write_model(out, trained.model, overwrite=overwrite)
    return trained


def _trained(
    runs: Sequence[Run],
    recipe: str,
    window: str,
    seed: int,
    labelling: Labelling | None,
    pool: Pool,
    progress: Progress,
) -> TrainedModel:
    """Model from labelled runs."""
    if len({Path(run.path).resolve() for run in runs}) < len(runs):
        raise UsageError("--in: a run is given twice; the last run is held out and must be its own")
    if recipe not in RECIPES:
        raise UsageError(f"recipe: expected one of {', '.join(RECIPES)}, found '{recipe}'")
    model = train(
        runs,
        recipe=RECIPES[recipe],
        seed=seed,
        window=window,
        labelling=labelling,
        pool=pool,
        progress=progress,
    )
    records = model.config.provenance.runs
    details = {
        "recipe": recipe,
        "window": model.config.window.name,
        "windows": [loss.to_json() for loss in model.config.curve],
        "events": sum(record.events for record in records),
        "labelled_hits": sum(record.hits for record in records),
        "labelled_misses": sum(record.misses for record in records),
        "unlabelled": sum(record.unlabelled for record in records),
    }
    return TrainedModel(model=model, details=details)


def _adapted(
    run: Run,
    start: Path,
    sample: int | None,
    window: str,
    seed: int,
    pool: Pool,
    progress: Progress,
) -> TrainedModel:
    """Model that went on learning from one run."""
    model = read_model(start)
    if window not in ("auto", model.config.window.name):
        raise UsageError(
            f"--window {window}: expected {model.config.window.name}, the window of {start}; "
            "leave --window out"
        )
    adapted = adapt(run, start=model, sample=sample, seed=seed, pool=pool, progress=progress)
    return TrainedModel(model=adapted.model, details={"from": str(start), **adapted.to_json()})
