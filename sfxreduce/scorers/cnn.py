"""The network as a scorer: pixels of a window in, hit probabilities out."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.drift import Reference
from sfxreduce.errors import ModelError, UsageError
from sfxreduce.geometry import Detector, Window
from sfxreduce.level import LevelRule
from sfxreduce.measured import Measured
from sfxreduce.scorers.classes import class_of, event_features
from sfxreduce.scorers.fused import FusedNetwork, fused_probability_of_tiles
from sfxreduce.scorers.normalise import normalise
from sfxreduce.scorers.weights import Model, read_model
from sfxreduce.window_choice import CENTRE, FULL, TileChoice

if TYPE_CHECKING:
    from sfxreduce.scorers.network import HitNetwork
    from sfxreduce.scorers.patches import PatchNetwork

__all__ = ["CnnScorer", "cuda_available"]

_LEAST_GOOD_SHARE = 0.5
_CHOICES = {"centre": CENTRE, "full": FULL}
_TILES_AT_ONCE = 64


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
    >>> from sfxreduce.scorers.weights import default_model
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
    def adapts(self) -> bool:
        """Whether the run's gain and hot pixels matter to it."""
        return self._read().config.architecture == "patches"

    @property
    def needs_gpu(self) -> bool:
        """Whether it can only run on a worker with a GPU."""
        return self.device != "cpu"

    @property
    def threshold(self) -> float:
        """Smallest hit probability of a hit, as stored with the model.

        Zero, so that everything is kept, for a window that the calibrated threshold was not chosen
        for: fewer tiles show fewer peaks, and hits would be lost by the dozen.
        """
        model = self._read()
        foreign = model.hit_scores.size > 0 and not self.hit_scores.size
        return 0.0 if foreign else model.config.threshold

    @property
    def model_sha256(self) -> str:
        """SHA-256 of the weights in hexadecimal."""
        return self._read().sha256

    @property
    def hit_scores(self) -> NDArray[np.float32]:
        """Scores of the hits the threshold rests on; none where they were of another window."""
        model = self._read()
        same = self._choice == model.config.window
        return model.hit_scores if same else model.hit_scores[:0]

    @property
    def hit_groups(self) -> NDArray[np.int32]:
        """Experiment of each of these hits, shape (hit,)."""
        return self._read().hit_groups[: self.hit_scores.size]

    @property
    def measured(self) -> Measured:
        """Curves stored with the model; those of scores only for the model's own window."""
        model = self._read()
        own = self.hit_scores.size > 0
        return Measured(
            window=self._choice,
            curve=model.config.curve,
            calibration=model.probability if own else None,
            reliability=model.config.reliability if own else (),
            shows=model.config.shows,
        )

    @property
    def level(self) -> LevelRule:
        """How the threshold follows a run; not at all for a window it was not calibrated on."""
        return self._read().config.level if self.hit_scores.size else LevelRule()

    @property
    def hit(self) -> str:
        """What those hits are, in words."""
        return self._read().config.hit

    @property
    def reference(self) -> Reference:
        """What the model was calibrated on; no scores where they were of another window."""
        found = self._read().reference
        return found if self.hit_scores.size else Reference(envelope=found.envelope)

    def window(self, detector: Detector) -> Window:
        """Pixels the model looks at, in tiles of the assembled picture.

        Parameters
        ----------
        detector : Detector
        """
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
        return self.classify(pixels, detector)[0]

    def classify(
        self, pixels: NDArray[np.generic], detector: Detector
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Score events and tell their class; see `__call__`.

        Returns
        -------
        tuple of ndarray
            Scores, and `EventClass` of each event: unknown where the model cannot tell.
        """
        model = self._read()
        good = _good(self.window(detector), detector)
        if pixels.ndim != 4 or pixels.shape[1:] != good.shape:
            raise ModelError(
                f"{self.model}: expected pixels of shape {('event', *good.shape)}, found "
                f"{pixels.shape}; read them with the window of this model"
            )
        unknown = np.zeros(len(pixels), np.uint8)
        if not _enough(self.window(detector), detector):
            return np.full(len(pixels), np.nan, np.float32), unknown
        network = _network(self.model, _stamp(self.model), self.device)
        gain = detector.adu_per_photon
        if model.config.architecture == "patches":
            return _by_patches(network, model, pixels, self.window(detector), detector, self.device)
        return _by_tiles(network, model, pixels, good, gain, self.device), unknown

    @property
    def _choice(self) -> TileChoice:
        return _CHOICES.get(self.looks_at, self._read().config.window)

    def _read(self) -> Model:
        """Read the model, once per process as long as its file stays the same."""
        return _model(self.model, _stamp(self.model))


def _by_tiles(
    network: Any,
    model: Model,
    pixels: NDArray[np.generic],
    good: NDArray[np.bool_],
    gain: float,
    device: str,
) -> NDArray[np.float32]:
    """Hit probability by the poster's network."""
    probability = np.empty(len(pixels), np.float32)
    step = max(1, _TILES_AT_ONCE // len(good))  # normalised events are large
    for start in range(0, len(pixels), step):
        part = slice(start, start + step)
        seen = normalise(pixels[part], good, adu_per_photon=gain, how=model.config.normalisation)
        if isinstance(network, FusedNetwork):
            probability[part] = fused_probability_of_tiles(network, seen)
        else:
            from sfxreduce.scorers import inference  # loads torch, which takes seconds

            probability[part] = inference.hit_probability(network, seen, device=device)
    return probability


def _by_patches(
    network: Any,
    model: Model,
    pixels: NDArray[np.generic],
    window: Window,
    detector: Detector,
    device: str,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Hit probability and class by the patch network."""
    from sfxreduce.scorers import patches  # loads torch, which takes seconds

    n_events, good = len(pixels), _good(window, detector)
    found = model.config.candidates(pixels, good, adu_per_photon=detector.adu_per_photon)
    logits = patches.patch_logits(network, found, device=device)
    pooling = model.config.pooling
    evidence = pooling.evidence(logits, found.tile, n_events=n_events, n_tiles=len(good))
    head = model.class_head
    if head is None:
        return pooling.probability(evidence), np.zeros(n_events, np.uint8)
    features = event_features(logits, found, window, n_events=n_events)
    return pooling.probability(evidence), class_of(features, *head)


def cuda_available() -> bool:
    """Whether this process can use a CUDA device."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch  # takes seconds, and only scoring needs it

    return torch.cuda.is_available()


def _stamp(folder: Path | str) -> Any:
    """Tell one state of a model's configuration from another."""
    try:
        status = (Path(folder) / "config.json").stat()
    except OSError:
        return None  # reading the model says what is wrong
    return status.st_mtime_ns, status.st_ino


@lru_cache(maxsize=4)
def _model(folder: Path | str, stamp: Any) -> Model:  # noqa: ARG001 - the stamp is part of the key
    """Read a model once per process."""
    return read_model(folder)


@lru_cache(maxsize=4)
def _network(
    folder: Path | str, stamp: Any, device: str
) -> HitNetwork | PatchNetwork | FusedNetwork:
    """Build a model's network once per process and device; on a CPU fused where it can be."""
    model = _model(folder, stamp)
    if device == "cpu" and model.config.architecture == "poster":
        return FusedNetwork.of(model.weights)
    from sfxreduce.scorers import inference  # loads torch, which takes seconds

    return inference.load_network(model, device=device)


@lru_cache(maxsize=4)
def _good(window: Window, detector: Detector) -> NDArray[np.bool_]:
    """Pixels of a window that can be trusted, worked out once per detector."""
    return window.good(detector)


@lru_cache(maxsize=4)
def _window(detector: Detector, choice: TileChoice, tile_shape: tuple[int, int]) -> Window:
    """Window of a choice, worked out once per detector."""
    return choice.window(detector, tile_shape=tile_shape)


@lru_cache(maxsize=4)
def _enough(window: Window, detector: Detector) -> bool:
    """Whether half of the window's pixels can be trusted; of several tiles, of those that exist."""
    exists = window.gather(detector) >= 0
    base = exists.size if len(window.origins) == 1 else np.count_nonzero(exists)
    return bool(_good(window, detector).sum() >= _LEAST_GOOD_SHARE * base)
