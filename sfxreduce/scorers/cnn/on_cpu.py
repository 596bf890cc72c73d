"""The networks on a processor, without torch: pixels of tiles in, scores and classes out.

What is seen on a tile adds to the event's evidence or leaves it as it is: both networks' scores
only rise with every further tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.model import Model
from sfxreduce.scorers.cnn.patches.candidates import Candidates
from sfxreduce.scorers.cnn.patches.cpu import FusedPatchNetwork
from sfxreduce.scorers.cnn.patches.outliers import Usual, doubts_of
from sfxreduce.scorers.cnn.patches.pooling import (
    class_of,
    count_peaks,
    event_features,
    joined,
    within_reach,
)
from sfxreduce.scorers.cnn.poster.cpu import FusedNetwork
from sfxreduce.scorers.cnn.poster.normalise import normalise
from sfxreduce.scorers.protocol import EventScores, not_counted

__all__ = [
    "NetworkOnCpu",
    "OpenEventOnCpu",
    "PatchesOnCpu",
    "PosterOnCpu",
    "event_scores",
    "network_on_cpu",
    "tiles_of_picture",
]

_TILES_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileEvidence:
    """What was seen on some tiles of some events.

    Parameters
    ----------
    shape : tuple of int
        (event, tile).
    of_tiles : ndarray of float64, optional
        The poster's answer for each tile, in this shape.
    logits : ndarray of float32, optional
        Of each candidate to be a Bragg peak, shape (candidate,).
    """

    shape: tuple[int, int]
    of_tiles: NDArray[np.float64] | None = None
    found: Candidates | None = None
    logits: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PosterOnCpu:
    """The poster's network: the tile that speaks loudest for a hit speaks for the event."""

    model: Model
    network: FusedNetwork

    def look(
        self, pixels: NDArray[np.generic], good: NDArray[np.bool_], *, adu_per_photon: float
    ) -> TileEvidence:
        """Look at tiles, shape (event, tile, y, x) in ADU.

        A few at a time: normalised they should not leave the cache.
        """
        margins = np.empty(pixels.shape[:2], np.float64)
        everywhere = np.ones(good.shape, np.bool_)
        step = max(1, _TILES_AT_ONCE // len(good))
        for start in range(0, len(pixels), step):
            part = slice(start, start + step)
            normalised = normalise(
                pixels[part],
                good,
                adu_per_photon=adu_per_photon,
                how=self.model.config.normalisation,
            )
            outputs = self.network.outputs(normalised, everywhere)
            margins[part] = outputs[..., 1].astype(np.float64) - outputs[..., 0]
        return TileEvidence(shape=(len(pixels), len(good)), of_tiles=margins)

    def scores(
        self,
        evidence: TileEvidence,
        window: Window,  # noqa: ARG002 - where its tiles lie does not matter
        *,
        n_tiles: int,  # noqa: ARG002 - nor how many there are
        unseen: Sequence[tuple[int, int]] = (),  # noqa: ARG002 - nor which are still to come
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Scores of events; it tells no classes."""
        loudest = _margins(evidence).max(axis=1)
        score: NDArray[np.float32] = np.exp(-np.logaddexp(0.0, -loudest)).astype(np.float32)
        return score, np.zeros(len(score), np.uint8)

    def doubts(
        self,
        evidence: TileEvidence,
        window: Window,  # noqa: ARG002 - see `scores`
    ) -> NDArray[np.uint32]:
        """Nothing: it does not look at what stands out."""
        return np.zeros(evidence.shape[0], np.uint32)


def _margins(evidence: TileEvidence) -> NDArray[np.float64]:
    """Answers of the poster's network, shape (event, tile)."""
    # What was not looked at has no answer.
    return np.full(evidence.shape, np.nan) if evidence.of_tiles is None else evidence.of_tiles


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchesOnCpu:
    """The patch network: expected peaks of all tiles, added up."""

    model: Model
    network: FusedPatchNetwork
    usual: Usual | None = None

    def look(
        self, pixels: NDArray[np.generic], good: NDArray[np.bool_], *, adu_per_photon: float
    ) -> TileEvidence:
        """Find the candidates of tiles, shape (event, tile, y, x) in ADU, and ask about each."""
        found = self.model.config.candidates(pixels, good, adu_per_photon=adu_per_photon)
        logits = self.network.logits(found)
        return TileEvidence(shape=(len(pixels), len(good)), found=found, logits=logits)

    def scores(
        self,
        evidence: TileEvidence,
        window: Window,
        *,
        n_tiles: int,
        unseen: Sequence[tuple[int, int]] = (),
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Scores of events seen through a window, and their classes if the model has a head.

        Parameters
        ----------
        n_tiles : int
            Of the picture, of which the window may be a part.
        unseen : sequence of tuple of int
            Origins of tiles that are looked at next.
        """
        pooling, head, n_events = (
            self.model.config.pooling,
            self.model.class_head,
            evidence.shape[0],
        )
        if evidence.found is None or evidence.logits is None:
            return np.full(n_events, np.nan, np.float32), np.zeros(n_events, np.uint8)
        of_tiles = pooling.evidence(
            evidence.logits,
            evidence.found,
            n_events=n_events,
            n_tiles=evidence.shape[1],
            window=window,
            reach_px=within_reach(window, unseen),
        )
        score = pooling.probability(pooling.pooled(of_tiles, n_tiles=n_tiles))
        if head is None:
            return score, np.zeros(n_events, np.uint8)
        features = event_features(evidence.logits, evidence.found, window, n_events=n_events)
        return score, class_of(features, *head)

    def doubts(self, evidence: TileEvidence, window: Window) -> NDArray[np.uint32]:
        """`Reason.OUT_OF_DISTRIBUTION` for events, seen whole, unlike the calibrated ones."""
        if evidence.found is None:
            return np.zeros(evidence.shape[0], np.uint32)
        return doubts_of(self.usual, evidence.found, window, n_events=evidence.shape[0])


NetworkOnCpu: TypeAlias = PosterOnCpu | PatchesOnCpu
"""A network that is ready to score."""


class OpenEventOnCpu:
    """What a network makes of one event, some of its tiles after the other.

    Parameters
    ----------
    steps : sequence of Window
        Parts of a window, in the order in which they are looked at.
    """

    def __init__(self, network: NetworkOnCpu, steps: Sequence[Window], detector: Detector) -> None:
        self._network = network
        self._steps = steps
        self._detector = detector
        self._n_tiles = tiles_of_picture(detector)
        self._seen: list[TileEvidence] = []

    def add(self, pixels: NDArray[np.generic]) -> None:
        """Look at the pixels of the next step, shape (1, tile, y, x) in ADU."""
        good = self._steps[len(self._seen)].good(self._detector)
        gain = self._detector.adu_per_photon
        self._seen.append(self._network.look(pixels, good, adu_per_photon=gain))

    def so_far(self) -> EventScores:
        """Return what is known of the event; no doubts as long as it was not seen whole."""
        steps = self._steps[: len(self._seen)]
        window = Window(
            name="seen",
            tile_shape=steps[0].tile_shape,
            origins=tuple(origin for step in steps for origin in step.origins),
        )
        later = self._steps[len(self._seen) :]
        known = event_scores(
            self._network,
            _joined(self._seen),
            window,
            n_tiles=self._n_tiles,
            unseen=[origin for step in later for origin in step.origins],
        )
        return known._replace(reason=np.zeros_like(known.reason)) if later else known


@lru_cache(maxsize=4)
def tiles_of_picture(detector: Detector) -> int:
    """Number of tiles of the whole assembled picture."""
    return len(Window.tiled(detector).origins)


def event_scores(
    network: NetworkOnCpu,
    evidence: TileEvidence,
    window: Window,
    *,
    n_tiles: int,
    unseen: Sequence[tuple[int, int]] = (),
) -> EventScores:
    """What a network says of events by what was seen on some tiles of a picture.

    Parameters
    ----------
    n_tiles : int
        Of the picture.
    unseen : sequence of tuple of int
        Origins of tiles that are looked at next.
    """
    score, kind = network.scores(evidence, window, n_tiles=n_tiles, unseen=unseen)
    seen = not_counted(len(score))
    if evidence.found is not None:
        n_events, n_seen = evidence.shape
        seen = count_peaks(evidence.found, n_events=n_events, n_tiles=n_seen, window=window)
    return EventScores(score, kind, network.doubts(evidence, window), *seen)


def network_on_cpu(model: Model) -> NetworkOnCpu:
    """Build the network of a model for a processor."""
    if model.config.architecture == "patches":
        network = FusedPatchNetwork.of(model.weights)
        return PatchesOnCpu(model=model, network=network, usual=model.usual)
    return PosterOnCpu(model=model, network=FusedNetwork.of(model.weights))


def _joined(parts: Sequence[TileEvidence]) -> TileEvidence:
    """Tiles of one event that were seen one after the other, as if they were seen at once."""
    if len(parts) == 1:
        return parts[0]
    n_tiles = [part.shape[1] for part in parts]
    shape = parts[0].shape[0], sum(n_tiles)
    found = [part.found for part in parts if part.found is not None]
    logits = [part.logits for part in parts if part.logits is not None]
    if not found:
        of_tiles = np.concatenate([_margins(part) for part in parts], axis=1)
        return TileEvidence(shape=shape, of_tiles=of_tiles)
    starts = np.cumsum([0, *n_tiles[:-1]], dtype=np.int32)
    placed = [(part.tile + start, part) for part, start in zip(found, starts, strict=True)]
    return TileEvidence(shape=shape, found=joined(placed), logits=np.concatenate(logits))
