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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfxreduce.cluster import open_pool
    from sfxreduce.decide import Decision, Decisions, Reason
    from sfxreduce.describe import describe_run
    from sfxreduce.errors import SfxReduceError
    from sfxreduce.geometry import Detector, Panel, Window
    from sfxreduce.ingest import store_run
    from sfxreduce.io.open import open_run
    from sfxreduce.peaks import PeakFinder
    from sfxreduce.pipeline import Outputs, plan_filter, run_filter
    from sfxreduce.report import Report
    from sfxreduce.run import Run
    from sfxreduce.score import Scorer
    from sfxreduce.scorers.cnn import CnnScorer, cuda_available
    from sfxreduce.scorers.peaks import PeakScorer
    from sfxreduce.scorers.weights import default_model
    from sfxreduce.simulate.run import simulated_run
    from sfxreduce.verify import verify_reduced

__all__ = [
    "CnnScorer",
    "Decision",
    "Decisions",
    "Detector",
    "Outputs",
    "Panel",
    "PeakFinder",
    "PeakScorer",
    "Reason",
    "Report",
    "Run",
    "Scorer",
    "SfxReduceError",
    "Window",
    "cuda_available",
    "default_model",
    "describe_run",
    "open_pool",
    "open_run",
    "plan_filter",
    "run_filter",
    "simulated_run",
    "store_run",
    "verify_reduced",
]

_HOMES = {
    "cluster": ("open_pool",),
    "decide": ("Decision", "Decisions", "Reason"),
    "describe": ("describe_run",),
    "errors": ("SfxReduceError",),
    "geometry": ("Detector", "Panel", "Window"),
    "ingest": ("store_run",),
    "io.open": ("open_run",),
    "peaks": ("PeakFinder",),
    "pipeline": ("Outputs", "plan_filter", "run_filter"),
    "report": ("Report",),
    "run": ("Run",),
    "score": ("Scorer",),
    "scorers.cnn": ("CnnScorer", "cuda_available"),
    "scorers.peaks": ("PeakScorer",),
    "scorers.weights": ("default_model",),
    "simulate.run": ("simulated_run",),
    "verify": ("verify_reduced",),
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for."""
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"sfxreduce.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'sfxreduce' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
