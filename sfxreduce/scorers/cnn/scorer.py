"""The network as a scorer: pixels of a window in, hit probabilities out."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import ModelError, UsageError
from sfxreduce.run.detector import LEAST_USABLE, Detector
from sfxreduce.run.window import CENTRE, FULL, TileChoice, Window
from sfxreduce.scorers.calibration.record import Calibration, Curves, FirstLook, Reference
from sfxreduce.scorers.cnn.folder import read_model
from sfxreduce.scorers.cnn.model import Model
from sfxreduce.scorers.cnn.on_cpu import (
    NetworkOnCpu,
    TileEvidence,
    event_scores,
    first_scores,
    network_on_cpu,
    tiles_of_picture,
)
from sfxreduce.scorers.protocol import EventScores, not_counted

if TYPE_CHECKING:
    from sfxreduce.scorers.cnn.patches.gpu import PatchesOnDevice
    from sfxreduce.scorers.cnn.poster.gpu import PosterOnDevice

__all__ = ["CnnScorer", "cuda_available"]

_CHOICES = {"centre": CENTRE, "full": FULL}

_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))
"""Through one of which torch reaches a card: NVIDIA's, that of Windows below Linux, or AMD's."""


@dataclass(frozen=True, slots=True)
class CnnScorer:
    """Hit probability of events by a trained network.

    Small when pickled: a worker reads the model from its folder, once per process.

    Parameters
    ----------
    model : Path or str
        Model folder; kept as an absolute path.
    device : str
        "cpu", "cuda" or "cuda:N".
    looks_at : str
        "auto" for the window stored with the model, "centre" for the tile in the middle or "full"
        for all tiles; the model's threshold was chosen for its own.

    Raises
    ------
    UsageError
        If there is no such window.
    ModelError
        If the folder holds no model this version can use.

    Examples
    --------
    >>> from sfxreduce.scorers.cnn.folder import default_model
    >>> CnnScorer(default_model()).name
    'cnn'
    """

    model: Path | str
    device: str = field(default="cpu", kw_only=True)
    looks_at: str = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", Path(self.model).resolve())
        if self.looks_at not in ("auto", *_CHOICES):
            raise UsageError(
                f"--window {self.looks_at}: expected auto, {' or '.join(_CHOICES)}; leave it out "
                "for the window of the model"
            )
        self._read()

    @property
    def name(self) -> str:
        """Name of the method in outputs and reports."""
        return "cnn"

    @property
    def settings(self) -> str:
        """How the model looks at an event, in words."""
        config = self._read().config
        recipe = config.provenance.recipe.get("name", "unknown")
        return f"network {config.architecture}, window {self._choice.name}, recipe {recipe}"

    @property
    def calibration(self) -> Calibration:
        """What is stored with the model; of scores only what holds for the model's own window."""
        return _calibration(self.model, _stamp(self.model), self._choice, 0)

    def calibrated_for(self, detector: Detector) -> Calibration:
        """Return the same for pictures of a detector: a small one has its own calibration."""
        n_tiles = tiles_of_picture(detector)
        return _calibration(self.model, _stamp(self.model), self._choice, n_tiles)

    def window(self, detector: Detector) -> Window:
        """Pixels the model looks at, in tiles of the assembled picture."""
        return _window(detector, self._choice, self._read().config.tile_shape)

    def __call__(self, pixels: NDArray[np.generic], detector: Detector) -> NDArray[np.float32]:
        """Score events.

        Parameters
        ----------
        pixels : ndarray
            Shape (event, tile, y, x), in ADU: the pixels of `window` in the source's dtype.
        detector : Detector
            Mask and gain of the run.

        Returns
        -------
        ndarray of float32
            Shape (event,), between 0 and 1. NaN if fewer than half of the window's pixels can be
            trusted: what was not seen must not be rejected.

        Raises
        ------
        ModelError
            If the pixels are not of the model's window.
        ClusterError
            If the device is not there.
        """
        return self.classify(pixels, detector).score

    def classify(self, pixels: NDArray[np.generic], detector: Detector) -> EventScores:
        """Score events, and tell their class and what is unlike the calibrated ones.

        See `__call__`.

        Returns
        -------
        EventScores
            The class is unknown where the model cannot tell; `Reason.OUT_OF_DISTRIBUTION` is told
            only for the window that the model was calibrated on.
        """
        good = self.window(detector).good(detector)
        if pixels.ndim != 4 or pixels.shape[1:] != good.shape:
            raise ModelError(
                f"{self.model}: expected pixels of shape {('event', *good.shape)}, found "
                f"{pixels.shape}; read them with the window of this model"
            )
        window = self.window(detector)
        if self.device != "cpu":
            return self.stream(
                lambda events, there: np.copyto(
                    there, pixels[events.start : events.stop], casting="same_kind"
                ),
                n_events=len(pixels),
                dtype=pixels.dtype,
                detector=detector,
            )
        if not _enough(window, detector):
            return _unseen(len(pixels))
        network = _on_cpu(self.model, _stamp(self.model), self._is_own)
        evidence = network.look(pixels, good, adu_per_photon=detector.adu_per_photon)
        return event_scores(
            network,
            evidence,
            window,
            n_tiles=tiles_of_picture(detector),
            first=self._first_look(detector),
        )

    def stream(
        self,
        read: Callable[[range, NDArray[np.generic]], None],
        *,
        n_events: int,
        dtype: np.dtype[np.generic],
        detector: Detector,
    ) -> EventScores:
        """Score events on the device while threads read those that come next.

        Parameters
        ----------
        read : callable
            Writes the pixels of consecutive events, given as a range from 0 on, into an array of
            the shape that `__call__` wants; what the array holds before means nothing. It is
            called on several threads at once.
        dtype : dtype
            Of a pixel.

        Returns
        -------
        tuple of ndarray
            See `classify`.

        Raises
        ------
        ModelError
            If the pixels are not of the model's window.
        ClusterError
            If the device is not there.
        """
        from sfxreduce.scorers.cnn.poster.gpu import Feed  # loads torch, which takes seconds

        window = self.window(detector)
        feed = Feed(
            read=read,
            n_events=n_events,
            dtype=dtype,
            good=window.good(detector),
            adu_per_photon=detector.adu_per_photon,
            window=window,
            picture_tiles=tiles_of_picture(detector),
            first_look=self._first_look(detector),
        )
        found = _on_device(self.model, _stamp(self.model), self.device, self._is_own).score(feed)
        if not _enough(window, detector):
            return _unseen(n_events)
        peaks, width_px = not_counted(n_events)
        return EventScores(
            score=found.score,
            kind=found.kind,
            reason=found.reason,
            peaks=peaks if found.peaks is None else found.peaks,
            width_px=width_px if found.width_px is None else found.width_px,
            first=found.first,
        )

    def first_window(self, detector: Detector) -> Window | None:
        """Tiles nearest to the middle, where most peaks are; None if all are looked at together."""
        look = self._first_look(detector)
        # What a device saves by seeing fewer tiles it would lose by waiting for the answer.
        if look is None or self.device != "cpu":
            return None
        first = _first_of(self.window(detector), look.tiles)
        return first if _enough(first, detector) else None

    def look_first(self, parts: Iterable[NDArray[np.generic]], detector: Detector) -> EventScores:
        """Judge events by their first tiles; see `sfxreduce.scorers.protocol.LooksFirst`.

        Raises
        ------
        ModelError
            If all tiles have to be looked at together; see `first_window`.
        """
        first, look = self.first_window(detector), self._first_look(detector)
        if first is None or look is None:
            raise ModelError(f"model {self.model}: expected a first look, found none to go by")
        network = _on_cpu(self.model, _stamp(self.model), self._is_own)
        good, gain = first.good(detector), detector.adu_per_photon
        seen = [network.look(pixels, good, adu_per_photon=gain) for pixels in parts]
        if not seen:
            return _unseen(0)
        return first_scores(
            network,
            TileEvidence.joined(seen),
            first,
            n_tiles=tiles_of_picture(detector),
            first=look,
        )

    def _first_look(self, detector: Detector) -> FirstLook | None:
        """How the first tiles of a picture are judged; None for one with fewer than its window."""
        known = self.calibrated_for(detector).first_look
        return known if len(self.window(detector).origins) == self._choice.most else None

    @property
    def _is_own(self) -> bool:
        """Whether it looks through the window that the model was calibrated on."""
        return self._choice == self._read().config.window

    @property
    def _choice(self) -> TileChoice:
        return _CHOICES.get(self.looks_at, self._read().config.window)

    def _read(self) -> Model:
        """Read the model, once per process as long as its file stays the same."""
        return _model(self.model, _stamp(self.model))


def cuda_available() -> bool:
    """Whether this process can use a CUDA device."""
    if not any(driver.exists() for driver in _DRIVERS) or importlib.util.find_spec("torch") is None:
        return False
    import torch  # takes seconds, which few machines are asked for

    return torch.cuda.is_available()


def _stamp(folder: Path | str) -> Any:
    """Tell one state of a model's configuration from another."""
    try:
        # Asked many times a batch: a path object takes longer than the answer.
        status = os.stat(os.path.join(folder, "config.json"))  # noqa: PTH116, PTH118
    except OSError:
        return None  # reading the model says what is wrong
    return status.st_mtime_ns, status.st_ino


@lru_cache(maxsize=4)
def _model(folder: Path | str, stamp: Any) -> Model:  # noqa: ARG001 - the stamp is part of the key
    """Read a model once per process."""
    return read_model(folder)


@lru_cache(maxsize=8)
def _calibration(folder: Path | str, stamp: Any, choice: TileChoice, n_tiles: int) -> Calibration:
    """Calibration of a model that reads this window of pictures, once per process.

    Through a window that the model was not calibrated on, the threshold is zero, so that every
    event is kept: fewer tiles show fewer peaks, and hits would be lost by the dozen.
    """
    whole = _model(folder, stamp)
    model = whole.of_size(n_tiles) if n_tiles else whole
    config = model.config
    limited = config.architecture == "patches" and n_tiles > 0
    scored = min(choice.most or n_tiles, n_tiles)
    basis = Calibration(
        threshold=config.threshold,
        hit=config.hit,
        model_sha256=whole.sha256,
        reference=Reference(envelope=model.reference.envelope),
        curves=Curves(window=choice, loss=config.curve, shows=config.shows),
        needs_conditions=config.architecture == "patches",
        covers=config.covers,
        fits_window=choice == config.window,
        highest=config.pooling.highest(scored, n_tiles=n_tiles) if limited else None,
        first_look=config.first_look if choice == config.window else None,
    )
    if not model.hit_scores.size:
        return basis
    if choice != config.window:
        return replace(basis, threshold=0.0)
    return replace(
        basis,
        hit_scores=model.hit_scores,
        hit_groups=model.hit_groups,
        reference=model.reference,
        level=config.level,
        curves=replace(basis.curves, probability=model.probability, reliability=config.reliability),
    )


@lru_cache(maxsize=4)
def _on_cpu(folder: Path | str, stamp: Any, own: bool) -> NetworkOnCpu:
    """Build a model's network once per process."""
    return network_on_cpu(_judging(folder, stamp, own))


@lru_cache(maxsize=4)
def _on_device(
    folder: Path | str, stamp: Any, device: str, own: bool
) -> PosterOnDevice | PatchesOnDevice:
    """Build what scores on a device once per process."""
    from sfxreduce.scorers.cnn import on_torch as inference
    from sfxreduce.scorers.cnn.poster import gpu

    settings = gpu.DeviceSettings(device=device)
    return inference.device_scorer(_judging(folder, stamp, own), settings)


def _judging(folder: Path | str, stamp: Any, own: bool) -> Model:
    """The model; what is usual was measured through its own window only."""
    model = _model(folder, stamp)
    return model if own else model.without_usual()


@lru_cache(maxsize=8)
def _first_of(window: Window, n_tiles: int) -> Window:
    """First tiles of a window."""
    return window.part(slice(n_tiles))


def _unseen(n_events: int) -> EventScores:
    """No score and no class: what was not seen must not be rejected."""
    return EventScores(
        np.full(n_events, np.nan, np.float32),
        np.zeros(n_events, np.uint8),
        np.zeros(n_events, np.uint32),
        *not_counted(n_events),
    )


@lru_cache(maxsize=4)
def _window(detector: Detector, choice: TileChoice, tile_shape: tuple[int, int]) -> Window:
    """Window of a choice, worked out once per detector."""
    return choice.window(detector, tile_shape=tile_shape)


@lru_cache(maxsize=4)
def _enough(window: Window, detector: Detector) -> bool:
    """Whether half of the window's pixels can be trusted; of several tiles, of those that exist."""
    exists = window.gather(detector) >= 0
    base = exists.size if len(window.origins) == 1 else np.count_nonzero(exists)
    return bool(window.good(detector).sum() >= LEAST_USABLE * base)
