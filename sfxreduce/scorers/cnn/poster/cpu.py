"""The poster's network on a CPU, several times faster than a general runtime, without torch.

The numbers are those of `sfxreduce.scorers.cnn.poster.network` up to rounding. What is saved is
memory traffic: no map of a convolution is ever written, and integer pixels become floating point on
the way. An event's score is the same to the last bit whatever is scored beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import ModelError
from sfxreduce.scorers.cnn._vector_writer import Packed
from sfxreduce.scorers.cnn.poster import _cpu

__all__ = ["FusedNetwork"]

_FIRST = (_cpu.CHANNELS, 1, _cpu.KERNEL, _cpu.KERNEL)
_SECOND = (_cpu.CHANNELS, _cpu.CHANNELS, _cpu.KERNEL, _cpu.KERNEL)
_LAYERS = {
    "trunk.0": _FIRST,
    "trunk.3": _SECOND,
    "trunk.7": (_cpu.FEATURES, _cpu.FEATURES),
    "trunk.9": (16, _cpu.FEATURES),
    "trunk.11": (2, 16),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FusedNetwork:
    """The poster's network, its weights in the order in which the kernels read them.

    Examples
    --------
    >>> shapes = {
    ...     "trunk.0": (4, 1, 7, 7), "trunk.3": (4, 4, 7, 7), "trunk.7": (576, 576),
    ...     "trunk.9": (16, 576), "trunk.11": (2, 16),
    ... }
    >>> weights = {f"{name}.weight": np.zeros(s, np.float32) for name, s in shapes.items()}
    >>> weights |= {f"{name}.bias": np.zeros(s[0], np.float32) for name, s in shapes.items()}
    >>> network = FusedNetwork.of(weights)
    >>> tiles, good = np.zeros((3, 1, 350, 350), np.float32), np.ones((1, 350, 350), bool)
    >>> network.outputs(tiles, good).tolist()
    [[[0.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]]
    """

    packed: Packed = field(repr=False)

    @classmethod
    def of(cls, weights: Mapping[str, NDArray[np.float32]]) -> FusedNetwork:
        """Pack the weights of a model.

        Parameters
        ----------
        weights : mapping of str to ndarray
            The parameters of `HitNetwork` by their names; other arrays do not matter.

        Raises
        ------
        ModelError
            If a parameter is missing or of another shape.
        """
        wanted = {f"{name}.weight": shape for name, shape in _LAYERS.items()}
        wanted |= {f"{name}.bias": shape[:1] for name, shape in _LAYERS.items()}
        found = {name: weights[name].shape for name in wanted if name in weights}
        odd = sorted(name for name in wanted if wanted[name] != found.get(name))
        if odd:
            raise ModelError(
                f"model: expected the weights of architecture 'poster', found {odd} missing or of "
                "another shape; train the model again"
            )
        packed = []
        for name, shape in _LAYERS.items():
            weight, bias = (
                np.asarray(weights[f"{name}.{of}"], np.float32) for of in ("weight", "bias")
            )
            packed.append(_by_tap(weight) if len(shape) == 4 else _by_group(weight))
            packed.append(bias if len(shape) == 4 else _filled_up(bias))
        return cls(packed=Packed(*packed))

    def outputs(
        self,
        pixels: NDArray[np.generic],
        good: NDArray[np.bool_],
        *,
        scale: float = 1.0,
        offset: float = 0.0,
    ) -> NDArray[np.float32]:
        """Compute what the network says about every tile that sees ``scale * pixel + offset``.

        Parameters
        ----------
        pixels : ndarray
            Shape (event, tile, 350, 350), of any integer or floating dtype.
        good : ndarray of bool
            Shape (tile, 350, 350). The network sees zero where it is false, and where a pixel is
            no finite number.

        Returns
        -------
        ndarray of float32
            Shape (event, tile, 2): miss and hit, as logarithms up to a common constant.

        Raises
        ------
        ModelError
            If the pixels are not tiles of 350 x 350, or the mask is not that of one event.
        """
        wanted = (_cpu.SIDE, _cpu.SIDE)
        if pixels.ndim != 4 or pixels.shape[2:] != wanted or pixels.shape[1:] != good.shape:
            raise ModelError(
                f"model: expected pixels of shape ('event', 'tile', {_cpu.SIDE}, {_cpu.SIDE}) "
                f"and a mask of one event, found {pixels.shape} and {good.shape}; read them with "
                "the window of this model"
            )
        # Files hold both byte orders, the kernels read the machine's own.
        tiles = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
        out = np.empty((*pixels.shape[:2], 2), np.float32)
        _cpu.outputs_of_tiles(
            tiles.reshape(pixels.shape[0] * pixels.shape[1], _cpu.SIDE**2),
            np.ascontiguousarray(good, np.bool_).reshape(len(good), _cpu.SIDE**2),
            np.float32(scale),
            np.float32(offset),
            self.packed,
            out.reshape(-1, 2),
        )
        return out


def _by_tap(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights of a convolution, (map out, map in, y, x), as (map in, x, y, map out)."""
    return np.ascontiguousarray(weight.transpose(1, 3, 2, 0)).ravel()


def _by_group(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights of a layer, (output, input), as (group of outputs, input, output of the group)."""
    groups = _filled_up(weight).reshape(-1, _cpu.OUTPUTS_AT_ONCE, weight.shape[1])
    return np.ascontiguousarray(groups.transpose(0, 2, 1)).ravel()


def _filled_up(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Append outputs that are always zero until the last group is full."""
    n = -len(values) % _cpu.OUTPUTS_AT_ONCE
    return np.concatenate([values, np.zeros((n, *values.shape[1:]), np.float32)])
