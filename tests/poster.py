"""The poster's network as a scorer runs it on a CPU, with random weights or any other."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.model import Model, ModelConfig
from sfxreduce.scorers.cnn.on_cpu import PosterOnCpu
from sfxreduce.scorers.cnn.poster.cpu import FusedNetwork
from sfxreduce.scorers.cnn.poster.normalise import Normalisation


def score_pixels(
    network: FusedNetwork,
    pixels: NDArray[np.generic],
    good: NDArray[np.bool_],
    *,
    adu_per_photon: float = math.nan,
    how: Normalisation,
) -> NDArray[np.float32]:
    """Scores of detector pixels, shape (event, tile, 350, 350)."""
    model = Model(config=ModelConfig(normalisation=how), weights={})
    scorer = PosterOnCpu(model=model, network=network)
    window = Window.centre(Detector.centred("camera", (350, 350)))
    evidence = scorer.look(pixels, good, adu_per_photon=adu_per_photon)
    return scorer.score(evidence, window, n_tiles=len(window.origins))
