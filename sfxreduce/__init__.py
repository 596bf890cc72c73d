"""Keep the hits of serial femtosecond crystallography runs, and account for what is dropped.

Names are loaded when they are first used: importing this package imports neither torch nor
distributed.

Examples
--------
>>> import sfxreduce
>>> detector = sfxreduce.Detector.centred("camera", (1750, 1750))
>>> sfxreduce.Window.centre(detector).shape
(1, 350, 350)
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfxreduce.audit.sample import mean_of_run
    from sfxreduce.cluster import open_pool
    from sfxreduce.decisions.decide import Decision, Decisions
    from sfxreduce.decisions.threshold import Promise
    from sfxreduce.errors import SfxReduceError
    from sfxreduce.io.label_table import write_labels
    from sfxreduce.io.open import open_run
    from sfxreduce.pipeline.describe import describe_unfinished, info_run
    from sfxreduce.pipeline.filter import filter_run, plan_filter
    from sfxreduce.pipeline.ingest import ingest_run
    from sfxreduce.pipeline.ledger import ledger_run
    from sfxreduce.pipeline.redecide import redecide_run
    from sfxreduce.pipeline.stages.outputs import Outputs
    from sfxreduce.pipeline.stages.reduced import read_reduced
    from sfxreduce.pipeline.stages.settings import FilterSettings
    from sfxreduce.pipeline.verify.output import source_of, verify_run
    from sfxreduce.report.report import Report
    from sfxreduce.run.detector import Detector, Panel
    from sfxreduce.run.reasons import Reason
    from sfxreduce.run.run import Run
    from sfxreduce.run.window import Window
    from sfxreduce.scorers.cnn.folder import (
        check_model_path,
        default_model,
        read_model,
        write_model,
    )
    from sfxreduce.scorers.cnn.scorer import CnnScorer, cuda_available
    from sfxreduce.scorers.peaks.finder import PeakFinder
    from sfxreduce.scorers.peaks.scorer import PeakScorer
    from sfxreduce.scorers.protocol import Scorer
    from sfxreduce.simulate.run import simulate_run
    from sfxreduce.train.evaluate import evaluate as evaluate_scorer
    from sfxreduce.train.label_files import FileLabelling, StreamLabelling
    from sfxreduce.train.labelling import PeakLabelling, TruthLabelling
    from sfxreduce.train.patches.adapt import adapt as adapt_model
    from sfxreduce.train.patches.crossval_job import cross_validate
    from sfxreduce.train.poster.train import train as train_model
    from sfxreduce.train.recipe import RECIPES

__all__ = [
    "RECIPES",
    "CnnScorer",
    "Decision",
    "Decisions",
    "Detector",
    "FileLabelling",
    "FilterSettings",
    "Outputs",
    "Panel",
    "PeakFinder",
    "PeakLabelling",
    "PeakScorer",
    "Promise",
    "Reason",
    "Report",
    "Run",
    "Scorer",
    "SfxReduceError",
    "StreamLabelling",
    "TruthLabelling",
    "Window",
    "adapt_model",
    "check_model_path",
    "cross_validate",
    "cuda_available",
    "default_model",
    "describe_unfinished",
    "evaluate_scorer",
    "filter_run",
    "info_run",
    "ingest_run",
    "ledger_run",
    "mean_of_run",
    "open_pool",
    "open_run",
    "plan_filter",
    "read_model",
    "read_reduced",
    "redecide_run",
    "simulate_run",
    "source_of",
    "train_model",
    "verify_run",
    "write_labels",
    "write_model",
]

_HOMES = {
    "CnnScorer": ("scorers.cnn.scorer", "CnnScorer"),
    "Decision": ("decisions.decide", "Decision"),
    "Decisions": ("decisions.decide", "Decisions"),
    "Detector": ("run.detector", "Detector"),
    "FilterSettings": ("pipeline.stages.settings", "FilterSettings"),
    "FileLabelling": ("train.label_files", "FileLabelling"),
    "Outputs": ("pipeline.stages.outputs", "Outputs"),
    "Panel": ("run.detector", "Panel"),
    "PeakFinder": ("scorers.peaks.finder", "PeakFinder"),
    "PeakLabelling": ("train.labelling", "PeakLabelling"),
    "PeakScorer": ("scorers.peaks.scorer", "PeakScorer"),
    "Promise": ("decisions.threshold", "Promise"),
    "RECIPES": ("train.recipe", "RECIPES"),
    "Reason": ("run.reasons", "Reason"),
    "Report": ("report.report", "Report"),
    "Run": ("run.run", "Run"),
    "Scorer": ("scorers.protocol", "Scorer"),
    "SfxReduceError": ("errors", "SfxReduceError"),
    "StreamLabelling": ("train.label_files", "StreamLabelling"),
    "TruthLabelling": ("train.labelling", "TruthLabelling"),
    "Window": ("run.window", "Window"),
    "adapt_model": ("train.patches.adapt", "adapt"),
    "check_model_path": ("scorers.cnn.folder", "check_model_path"),
    "cross_validate": ("train.patches.crossval_job", "cross_validate"),
    "cuda_available": ("scorers.cnn.scorer", "cuda_available"),
    "default_model": ("scorers.cnn.folder", "default_model"),
    "info_run": ("pipeline.describe", "info_run"),
    "describe_unfinished": ("pipeline.describe", "describe_unfinished"),
    "ledger_run": ("pipeline.ledger", "ledger_run"),
    "evaluate_scorer": ("train.evaluate", "evaluate"),
    "open_pool": ("cluster", "open_pool"),
    "mean_of_run": ("audit.sample", "mean_of_run"),
    "open_run": ("io.open", "open_run"),
    "plan_filter": ("pipeline.filter", "plan_filter"),
    "read_model": ("scorers.cnn.folder", "read_model"),
    "read_reduced": ("pipeline.stages.reduced", "read_reduced"),
    "filter_run": ("pipeline.filter", "filter_run"),
    "redecide_run": ("pipeline.redecide", "redecide_run"),
    "simulate_run": ("simulate.run", "simulate_run"),
    "source_of": ("pipeline.verify.output", "source_of"),
    "ingest_run": ("pipeline.ingest", "ingest_run"),
    "train_model": ("train.poster.train", "train"),
    "verify_run": ("pipeline.verify.output", "verify_run"),
    "write_labels": ("io.label_table", "write_labels"),
    "write_model": ("scorers.cnn.folder", "write_model"),
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for."""
    if name == "__version__":
        return version("sfxreduce")
    if name not in _HOMES:
        raise AttributeError(f"module 'sfxreduce' has no attribute '{name}'")
    home, original = _HOMES[name]
    value: object = getattr(import_module(f"sfxreduce.{home}"), original)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
