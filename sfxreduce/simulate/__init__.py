"""Physics-based runs with planted truth."""

from __future__ import annotations

from sfxreduce.simulate.experiments import EXPERIMENTS
from sfxreduce.simulate.run import SimulatedFrames, simulate_run, simulate_truth
from sfxreduce.simulate.settings import Experiment
from sfxreduce.simulate.truth import Kind

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Kind",
    "SimulatedFrames",
    "simulate_run",
    "simulate_truth",
]
