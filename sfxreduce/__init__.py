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
    from sfxreduce.audit_sample import mean_of_run
    from sfxreduce.calibrate import Promise
    from sfxreduce.cluster import open_pool
    from sfxreduce.decide import Decision, Decisions, Reason
    from sfxreduce.describe import describe_run
    from sfxreduce.errors import SfxReduceError
    from sfxreduce.geometry import Detector, Panel, Window
    from sfxreduce.ingest import store_run
    from sfxreduce.io.labels import write_labels
    from sfxreduce.io.ledger_files import export_ledger
    from sfxreduce.io.open import open_run
    from sfxreduce.io.unfinished_facts import describe_unfinished
    from sfxreduce.outputs import Outputs
    from sfxreduce.peaks import PeakFinder
    from sfxreduce.pipeline import plan_filter, run_filter
    from sfxreduce.redecide import plan_redecide, run_redecide
    from sfxreduce.reduced import read_reduced
    from sfxreduce.report import Report
    from sfxreduce.run import Run
    from sfxreduce.scorer import Scorer
    from sfxreduce.scorers.cnn import CnnScorer, cuda_available
    from sfxreduce.scorers.peaks import PeakScorer
    from sfxreduce.scorers.weights import check_model_path, default_model, read_model, write_model
    from sfxreduce.simulate.run import simulated_run
    from sfxreduce.train.adapt import adapt as adapt_model
    from sfxreduce.train.crossval import cross_validate
    from sfxreduce.train.evaluate import evaluate as evaluate_scorer
    from sfxreduce.train.label_files import FileLabelling, StreamLabelling
    from sfxreduce.train.labelling import PeakLabelling, TruthLabelling
    from sfxreduce.train.loop import train as train_model
    from sfxreduce.train.recipe import RECIPES
    from sfxreduce.verify import source_of, verify_reduced

__all__ = [
    "RECIPES",
    "CnnScorer",
    "Decision",
    "Decisions",
    "Detector",
    "FileLabelling",
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
    "describe_run",
    "describe_unfinished",
    "evaluate_scorer",
    "export_ledger",
    "mean_of_run",
    "open_pool",
    "open_run",
    "plan_filter",
    "plan_redecide",
    "read_model",
    "read_reduced",
    "run_filter",
    "run_redecide",
    "simulated_run",
    "source_of",
    "store_run",
    "train_model",
    "verify_reduced",
    "write_labels",
    "write_model",
]

_HOMES = {
    "CnnScorer": ("scorers.cnn", "CnnScorer"),
    "Decision": ("decide", "Decision"),
    "Decisions": ("decide", "Decisions"),
    "Detector": ("geometry", "Detector"),
    "FileLabelling": ("train.label_files", "FileLabelling"),
    "Outputs": ("outputs", "Outputs"),
    "Panel": ("geometry", "Panel"),
    "PeakFinder": ("peaks", "PeakFinder"),
    "PeakLabelling": ("train.labelling", "PeakLabelling"),
    "PeakScorer": ("scorers.peaks", "PeakScorer"),
    "Promise": ("calibrate", "Promise"),
    "RECIPES": ("train.recipe", "RECIPES"),
    "Reason": ("decide", "Reason"),
    "Report": ("report", "Report"),
    "Run": ("run", "Run"),
    "Scorer": ("scorer", "Scorer"),
    "SfxReduceError": ("errors", "SfxReduceError"),
    "StreamLabelling": ("train.label_files", "StreamLabelling"),
    "TruthLabelling": ("train.labelling", "TruthLabelling"),
    "Window": ("geometry", "Window"),
    "adapt_model": ("train.adapt", "adapt"),
    "check_model_path": ("scorers.weights", "check_model_path"),
    "cross_validate": ("train.crossval", "cross_validate"),
    "cuda_available": ("scorers.cnn", "cuda_available"),
    "default_model": ("scorers.weights", "default_model"),
    "describe_run": ("describe", "describe_run"),
    "describe_unfinished": ("io.unfinished_facts", "describe_unfinished"),
    "export_ledger": ("io.ledger_files", "export_ledger"),
    "evaluate_scorer": ("train.evaluate", "evaluate"),
    "open_pool": ("cluster", "open_pool"),
    "mean_of_run": ("audit_sample", "mean_of_run"),
    "open_run": ("io.open", "open_run"),
    "plan_filter": ("pipeline", "plan_filter"),
    "plan_redecide": ("redecide", "plan_redecide"),
    "read_model": ("scorers.weights", "read_model"),
    "read_reduced": ("reduced", "read_reduced"),
    "run_filter": ("pipeline", "run_filter"),
    "run_redecide": ("redecide", "run_redecide"),
    "simulated_run": ("simulate.run", "simulated_run"),
    "source_of": ("verify", "source_of"),
    "store_run": ("ingest", "store_run"),
    "train_model": ("train.loop", "train"),
    "verify_reduced": ("verify", "verify_reduced"),
    "write_labels": ("io.labels", "write_labels"),
    "write_model": ("scorers.weights", "write_model"),
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
