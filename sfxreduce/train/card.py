"""The model card: what a model is for, how well it does, where it fails."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sfxreduce.run.window import CENTRE
from sfxreduce.scorers.calibration.windows import windows_table
from sfxreduce.scorers.cnn.model import ModelConfig
from sfxreduce.train.evaluate import AXES, Evaluation, Figures

__all__ = ["model_card"]

_LIMITS_OF_PATCHES = (
    "It has learned from simulated crystals, jets and detectors alone, and its threshold rests on "
    "simulated hits. The promise holds for hits like these: audit a run of your own.",
    "Streaks, ice and salt are mostly kept.",
    "An event with fewer than 10 peaks is no hit by the definition the threshold was chosen with, "
    "and may be rejected.",
    "With fewer than 20 frames the run's hot pixels are not known, and may pass for peaks.",
)
_CENTRE_ONLY = (
    "It sees the central 350 x 350 pixels only. An event whose centre shows no Bragg peak looks "
    "like a miss to it; for small unit cells or near detectors that can be most of the hits.",
)
_LIMITS = (
    "Its threshold is carried over from the runs below. Other backgrounds or crystals shift the "
    "scores: check the hit loss on labelled events of your own with `sfxreduce evaluate`.",
    "Accuracy on labelled events leaves out the middle of the peak counts, where the weak hits "
    "are.",
)


def model_card(
    config: ModelConfig,
    *,
    title: str = "Hit finder for serial crystallography",
    evaluations: Mapping[str, Evaluation] | None = None,
    measured: str = "",
) -> str:
    """Model card in Markdown.

    Parameters
    ----------
    evaluations : mapping of str to Evaluation, optional
        By the name of the runs they were made on, none of which the model has learned from.
    measured : str
        Tables in Markdown, where they are made already.
    """
    made = config.provenance
    n_y, n_x = config.tile_shape
    runs = "\n".join(
        f"| {r.experiment} | {r.name} | {r.role} | {r.events} | {r.hits} | {r.misses} | "
        f"{r.unlabelled} |"
        for r in made.runs
    )
    settings = ", ".join(f"{name} {value}" for name, value in made.recipe.items())
    whole = config.architecture == "patches"
    covered = _covered(config.covers)
    centre = _CENTRE_ONLY if config.window == CENTRE else ()
    limits = "\n".join(f"- {x}" for x in (*centre, *(_LIMITS_OF_PATCHES if whole else _LIMITS)))
    seen = config.candidates if whole else config.normalisation
    follows = " in a quiet run, and from more on where its blanks score more" if whole else ""
    table = f"\n## Which tiles it looks at\n\n{windows_table(config.curve, config.window)}\n"
    windows = table if config.curve else ""
    versions = ", ".join(f"{name} {number}" for name, number in sorted(made.versions.items()))
    return f"""# {title}

Gives every event the probability that its frame shows Bragg diffraction.
Network: {config.architecture}, window {config.window.name}, tiles of {n_y} x {n_x} pixels.
An event is a hit from {config.threshold:.6g} on{follows}.

## How well it does

{measured or _results(evaluations or {})}
{windows}

{covered}## Where it fails

{limits}

## How it was made

- Labels: {made.labels}.
- Threshold: {made.threshold}.
- Recipe: {settings}; seed {made.seed}.
- Pixels: {seen}.
- Versions: {versions}.

| experiment | run | role | events | hits | misses | left open |
|---|---|---|---|---|---|---|
{runs}
"""


def _covered(ranges: Sequence[str]) -> str:
    """What the promise is about, as a section of its own; nothing if that is not known."""
    listed = "".join(f"- {what}\n" for what in ranges)
    return f"## What the promise covers\n\n{listed}\n" if listed else ""


def _results(evaluations: Mapping[str, Evaluation]) -> str:
    """Tables of the figures, or what to do to get some."""
    if not evaluations:
        return "Not measured yet: run `sfxreduce evaluate` on runs it has not learned from."
    rows = []
    for name, evaluation in evaluations.items():
        rows.append(_row(f"{name}, labelled", evaluation.labelled))
        if evaluation.all_events is not None:
            rows.append(_row(f"{name}, all", evaluation.all_events))
    head = (
        f"In the counts {AXES}: tp are hits kept, fn hits\n"
        "rejected, fp misses kept, tn misses rejected. The bound on the hit loss is one-sided, "
        "95 %.\nLabelled events are those that the rule named below calls hits or misses; of all "
        "events, those\nwith at least one crystal are hits, whether they show a peak or not.\n\n"
        "| events | tp | fn | fp | tn | recall | specificity | hit loss below | ROC AUC |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(rows)


def _row(name: str, figures: Figures) -> str:
    """One line of the table."""
    c = figures.counts
    ratios = (c.recall, c.specificity, c.hit_loss_upper95, figures.roc_auc)
    cells = ("-" if math.isnan(ratio) else f"{ratio:.3f}" for ratio in ratios)
    return f"| {name} | {c.tp} | {c.fn} | {c.fp} | {c.tn} | " + " | ".join(cells) + " |"
