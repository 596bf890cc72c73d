"""The network as a scorer: pixels of a window in, hit probabilities out."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import ModelError
from sfxreduce.geometry import Detector, Window
from sfxreduce.scorers.normalise import normalise
from sfxreduce.scorers.weights import Model, read_model

if TYPE_CHECKING:
    from sfxreduce.scorers.network import HitNetwork

__all__ = ["CnnScorer", "cuda_available"]

_LEAST_GOOD_SHARE = 0.5


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

    Raises
    ------
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", Path(self.model).resolve())
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
        return f"network {config.architecture}, window {config.window}, recipe {recipe}"

    @property
    def needs_gpu(self) -> bool:
        """Whether it can only run on a worker with a GPU."""
        return self.device != "cpu"

    @property
    def threshold(self) -> float:
        """Smallest hit probability of a hit, as stored with the model."""
        return self._read().config.threshold

    @property
    def model_sha256(self) -> str:
        """SHA-256 of the weights in hexadecimal."""
        return self._read().sha256

    def window(self, detector: Detector) -> Window:
        """Pixels the model looks at: the tile in the middle of the assembled picture.

        Parameters
        ----------
        detector : Detector
        """
        return Window.centre(detector, tile_shape=self._read().config.tile_shape)

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
        model = self._read()
        good = _good(self.window(detector), detector)
        if pixels.ndim != 4 or pixels.shape[1:] != good.shape:
            raise ModelError(
                f"{self.model}: expected pixels of shape {('event', *good.shape)}, found "
                f"{pixels.shape}; read them with the window of this model"
            )
        if good.mean() < _LEAST_GOOD_SHARE:
            return np.full(len(pixels), np.nan, np.float32)
        from sfxreduce.scorers import inference  # loads torch, which takes seconds

        network = _network(self.model, _stamp(self.model), self.device)
        how = model.config.normalisation
        seen = normalise(pixels, good, adu_per_photon=detector.adu_per_photon, how=how)
        return inference.hit_probability(network, seen, device=self.device)

    def _read(self) -> Model:
        """Read the model, once per process as long as its file stays the same."""
        return _model(self.model, _stamp(self.model))


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
def _network(folder: Path | str, stamp: Any, device: str) -> HitNetwork:
    """Build a model's network once per process and device."""
    from sfxreduce.scorers import inference  # loads torch, which takes seconds

    return inference.load_network(_model(folder, stamp), device=device)


@lru_cache(maxsize=4)
def _good(window: Window, detector: Detector) -> NDArray[np.bool_]:
    """Pixels of a window that can be trusted, worked out once per detector."""
    return window.good(detector)
