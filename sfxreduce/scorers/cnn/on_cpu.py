"""The networks on a processor, without torch: pixels of tiles in, scores and classes out.

A model may judge events by their first tiles, before the others are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Window
from sfxreduce.scorers.calibration.record import FirstLook
from sfxreduce.scorers.cnn.model import Model
from sfxreduce.scorers.cnn.patches.candidates import Candidates
from sfxreduce.scorers.cnn.patches.cpu import FusedPatchNetwork
from sfxreduce.scorers.cnn.patches.outliers import Usual, doubts_of
from sfxreduce.scorers.cnn.patches.pooling import (
    class_of,
    count_peaks,
    event_features,
    joined,
    on_first_tiles,
)
from sfxreduce.scorers.cnn.poster.cpu import FusedNetwork
from sfxreduce.scorers.cnn.poster.normalise import normalise
from sfxreduce.scorers.protocol import EventScores, not_counted

__all__ = [
    "NetworkOnCpu",
    "PatchesOnCpu",
    "PosterOnCpu",
    "TileEvidence",
    "event_scores",
    "first_scores",
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

    @classmethod
    def joined(cls, parts: Sequence[TileEvidence]) -> TileEvidence:
        """Return what was seen of all events, one part after the other; at least one."""
        n_tiles, starts = parts[0].shape[1], np.cumsum([0, *(part.shape[0] for part in parts)])
        shape = int(starts[-1]), n_tiles
        of_tiles = [part.of_tiles for part in parts if part.of_tiles is not None]
        if of_tiles:
            return cls(shape=shape, of_tiles=np.concatenate(of_tiles))
        found = [
            (part.found.tile + start * n_tiles, part.found)
            for part, start in zip(parts, starts.tolist(), strict=False)
            if part.found is not None
        ]
        logits = [part.logits for part in parts if part.logits is not None]
        return cls(shape=shape, found=joined(found), logits=np.concatenate(logits))

    def first(self, n_tiles: int) -> TileEvidence:
        """Return what was seen on the first tiles of each event, of candidates."""
        if self.found is None or self.logits is None:
            return replace(self, shape=(self.shape[0], n_tiles))
        found, own = on_first_tiles(self.found, n_tiles, of=self.shape[1])
        return TileEvidence(shape=(self.shape[0], n_tiles), found=found, logits=self.logits[own])


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

    def score(
        self,
        evidence: TileEvidence,
        window: Window,  # noqa: ARG002 - where its tiles lie does not matter
        *,
        n_tiles: int,  # noqa: ARG002 - nor how many there are
    ) -> NDArray[np.float32]:
        """Scores of events."""
        loudest = _margins(evidence).max(axis=1)
        score: NDArray[np.float32] = np.exp(-np.logaddexp(0.0, -loudest)).astype(np.float32)
        return score

    def kind(
        self,
        evidence: TileEvidence,
        window: Window,  # noqa: ARG002 - see `score`
    ) -> NDArray[np.uint8]:
        """Nothing: it tells no classes."""
        return np.zeros(evidence.shape[0], np.uint8)

    def doubts(
        self,
        evidence: TileEvidence,
        window: Window,  # noqa: ARG002 - see `score`
        *,
        first: bool = False,  # noqa: ARG002 - likewise
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
    usual_first: Usual | None = None

    def look(
        self, pixels: NDArray[np.generic], good: NDArray[np.bool_], *, adu_per_photon: float
    ) -> TileEvidence:
        """Find the candidates of tiles, shape (event, tile, y, x) in ADU, and ask about each."""
        found = self.model.config.candidates(pixels, good, adu_per_photon=adu_per_photon)
        logits = self.network.logits(found)
        return TileEvidence(shape=(len(pixels), len(good)), found=found, logits=logits)

    def score(self, evidence: TileEvidence, window: Window, *, n_tiles: int) -> NDArray[np.float32]:
        """Scores of events seen through a window.

        Parameters
        ----------
        n_tiles : int
            Of the picture, of which the window may be a part.
        """
        pooling, n_events = self.model.config.pooling, evidence.shape[0]
        if evidence.found is None or evidence.logits is None:
            return np.full(n_events, np.nan, np.float32)
        of_tiles = pooling.evidence(
            evidence.logits,
            evidence.found,
            n_events=n_events,
            n_tiles=evidence.shape[1],
            window=window,
        )
        return pooling.probability(pooling.pooled(of_tiles, n_tiles=n_tiles))

    def kind(self, evidence: TileEvidence, window: Window) -> NDArray[np.uint8]:
        """Classes of events seen through a window, if the model has a head."""
        head, n_events = self.model.class_head, evidence.shape[0]
        if head is None or evidence.found is None or evidence.logits is None:
            return np.zeros(n_events, np.uint8)
        features = event_features(evidence.logits, evidence.found, window, n_events=n_events)
        return class_of(features, *head)

    def doubts(
        self, evidence: TileEvidence, window: Window, *, first: bool = False
    ) -> NDArray[np.uint32]:
        """`Reason.OUT_OF_DISTRIBUTION` for events unlike the calibrated ones.

        Parameters
        ----------
        first : bool
            Whether the window is that of the first tiles.
        """
        if evidence.found is None:
            return np.zeros(evidence.shape[0], np.uint32)
        usual = self.usual_first if first else self.usual
        return doubts_of(usual, evidence.found, window, n_events=evidence.shape[0])


NetworkOnCpu: TypeAlias = PosterOnCpu | PatchesOnCpu
"""A network that is ready to score."""


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
    first: FirstLook | None = None,
) -> EventScores:
    """What a network says of events by what was seen on all tiles of its window.

    Parameters
    ----------
    n_tiles : int
        Of the picture.
    first : FirstLook, optional
        How the first of these tiles count for themselves.
    """
    score = network.score(evidence, window, n_tiles=n_tiles)
    reason = network.doubts(evidence, window)
    if first is None:
        return EventScores(score, network.kind(evidence, window), reason, *_peaks(evidence, window))
    # Class and peaks are told by the first tiles, of every event alike.
    part, early = window.part(slice(first.tiles)), evidence.first(first.tiles)
    by_first = network.score(early, part, n_tiles=n_tiles)
    return EventScores(
        first.score(by_first, score),
        network.kind(early, part),
        reason,
        *_peaks(early, part),
        first=by_first,
    )


def first_scores(
    network: NetworkOnCpu,
    evidence: TileEvidence,
    window: Window,
    *,
    n_tiles: int,
    first: FirstLook,
) -> EventScores:
    """What a network says of events by their first tiles alone; see `event_scores`.

    Parameters
    ----------
    window : Window
        The first tiles.
    """
    score, kind = network.score(evidence, window, n_tiles=n_tiles), network.kind(evidence, window)
    reason = network.doubts(evidence, window, first=True)
    return EventScores(first.most(score), kind, reason, *_peaks(evidence, window), first=score)


def _peaks(evidence: TileEvidence, window: Window) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Peaks of events and their width, see `EventScores`."""
    n_events, n_tiles = evidence.shape
    if evidence.found is None:
        return not_counted(n_events)
    return count_peaks(evidence.found, n_events=n_events, n_tiles=n_tiles, window=window)


def network_on_cpu(model: Model) -> NetworkOnCpu:
    """Build the network of a model for a processor."""
    if model.config.architecture == "patches":
        network = FusedPatchNetwork.of(model.weights)
        return PatchesOnCpu(
            model=model, network=network, usual=model.usual, usual_first=model.usual_first
        )
    return PosterOnCpu(model=model, network=FusedNetwork.of(model.weights))
