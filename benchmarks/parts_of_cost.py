"""What reading and scoring an event costs, part by part, of the tiles that are read of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from material import FilterScoring
from numpy.typing import NDArray

from sfxreduce.io.chunks.shards import pixel_hash
from sfxreduce.quality.events import inspect_pixels
from sfxreduce.quality.panels import inspect_parts, parts_of
from sfxreduce.run.run import Samples, read_into
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.folder import read_model
from sfxreduce.scorers.cnn.model import Model
from sfxreduce.scorers.cnn.on_cpu import PatchesOnCpu, network_on_cpu
from sfxreduce.scorers.cnn.patches.candidates import Candidates

__all__ = ["PARTS", "candidates_of", "parts_of_cost"]

Result = TypeVar("Result")

PARTS = ("decode", "samples", "candidates", "inspection", "network")
"""Tiles read and unpacked; the others compared with their checksums, and sampled; pixels that stand
out, and what lies around them; missing, saturated and hot parts of the frame, and the pixels' hash;
the network's answers."""


def parts_of_cost(scoring: FilterScoring, events: range) -> dict[str, Any]:
    """Cost of each of `PARTS` on the tiles that the product reads of each event.

    Returns
    -------
    dict
        ``tiles``, the mean number of an event, ``cpu_ms`` of an event by part, ``together`` as the
        product does it, and ``n_events``.
    """
    scoring(events)  # does not count: whoever waited before starts cold
    together, rows = _timed(lambda: scoring(events))
    tiles = rows["tiles"].tolist()
    network = network_on_cpu(_model(scoring.scorer.model))
    assert isinstance(network, PatchesOnCpu)
    window = scoring.scorer.window(scoring.source.detector)
    windows = {n: window.part(slice(n)) for n in set(tiles)}
    for n_tiles, own in windows.items():  # what is worked out once per window
        _spent(events[tiles.index(n_tiles)], own, scoring, network)
    of_each = [_spent(e, windows[n], scoring, network) for e, n in zip(events, tiles, strict=True)]
    # A mean: events of few tiles and of many are both part of a run.
    spent = np.mean(of_each, axis=0)
    return {
        "tiles": float(np.mean(tiles)),
        "cpu_ms": {name: 1e3 * float(s) for name, s in zip(PARTS, spent, strict=True)},
        "together": 1e3 * together / len(events),
        "n_events": len(events),
    }


def _spent(
    event: int, window: Window, scoring: FilterScoring, network: PatchesOnCpu
) -> list[float]:
    """CPU seconds of each of `PARTS`, of the tiles of a window."""
    source, pixels = scoring.source, np.zeros((1, *window.shape), scoring.source.dtype)
    decode, _ = _timed(lambda: read_into(source, [event], window, pixels))
    samples, whole = 0.0, scoring.scorer.window(source.detector)
    if len(window.origins) < len(whole.origins) and isinstance(source, Samples):
        # The first tiles are read with the samples of the others.
        together, _ = _timed(lambda: list(source.read_first([event], window, whole, pixels)))
        samples = together - decode
    search, candidates = _timed(lambda: candidates_of(pixels, window, scoring))
    inspection, _ = _timed(lambda: _inspect(pixels, window, scoring))
    answers, _ = _timed(lambda: network.network.logits(candidates))
    return [decode, samples, search, inspection, answers]


def _timed(action: Callable[[], Result]) -> tuple[float, Result]:
    started = time.process_time()
    result = action()
    return time.process_time() - started, result


def candidates_of(
    pixels: NDArray[np.generic], window: Window, scoring: FilterScoring
) -> Candidates:
    """Candidates of tiles, shape (event, tile, y, x), by the rules of the model."""
    detector = scoring.source.detector
    finder = _model(scoring.scorer.model).config.candidates
    return finder(pixels, window.good(detector), adu_per_photon=detector.adu_per_photon)


@lru_cache
def _model(folder: Path | str) -> Model:
    return read_model(folder)


def _inspect(pixels: NDArray[np.generic], window: Window, scoring: FilterScoring) -> None:
    """What is asked of pixels beside their score."""
    detector = scoring.source.detector
    pixel_hash(pixels[0])
    inspect_pixels(pixels, window.good(detector), saturation_adu=detector.saturation_adu)
    inspect_parts(
        pixels,
        parts_of(detector, window),
        saturation_adu=detector.saturation_adu,
        adu_per_photon=detector.adu_per_photon,
    )
