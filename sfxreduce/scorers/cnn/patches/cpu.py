"""The patch network on a CPU, several times faster than a general runtime, without torch.

The numbers are those of `sfxreduce.scorers.cnn.patches.network` up to rounding. A candidate's logit
is the same to the last bit whatever is computed beside it, and few candidates cost no more than
they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.errors import ModelError
from sfxreduce.scorers.cnn._vector_writer import LANES, Floats, Packed, VectorWriter
from sfxreduce.scorers.cnn.patches.candidates import PATCH, Candidates

__all__ = [
    "FEATURES",
    "KERNEL",
    "MAPS",
    "NOISE_FLOOR",
    "PATCH_SCALE",
    "SIDE",
    "FusedPatchNetwork",
    "logits_of_patches",
]

NOISE_FLOOR = 1e-3
"""The network sees the noise as at least so many photons: zero has no logarithm. The shipped model
has learned with it."""

MAPS = LANES
"""Maps of the first two convolutions."""

KERNEL = 3
"""Pixels a side of the first two convolutions."""

SIDE = 5
"""Pixels a side of the second convolution's maps, ``PATCH - 2 * (KERNEL - 1)``; the third covers
them whole."""

FEATURES = 16
"""Outputs of the third convolution and of the first fully connected layer (decision 6)."""

# Their sums, 8 vectors, are as many multiply-adds as a core has under way, and share the weights.
_CANDIDATES_AT_ONCE = 4

_MIDDLE = SIDE + KERNEL - 1  # side of the first convolution's maps
_SEEN = SIDE * SIDE * MAPS
_NARROW = FEATURES + 1  # the noise comes last

# A half-precision number is its bits, shifted to where single precision has them, times a power of
# two for the difference between the exponents' zeros. Infinity and NaN come out beyond all others.
_SHIFT, _KEPT, _ZEROS = 13, ~0x70000000, np.float32(2.0**112)
_BEYOND = np.float32(2.0**16)


def _layer(n: int, terms: list[tuple[int, int, int]], ends: list[tuple[int, int]]) -> Any:
    """Make a function that fills vectors with weighted sums, with a ReLU.

    Parameters
    ----------
    n : int
        A term stands for so many inputs, one after the other.
    terms : list of tuple of int
        Place of the first input, place of its weights, and number of the sum it adds to.
    ends : list of tuple of int
        For each sum, place of its bias and place where it goes.
    """
    step = max(weight for _, weight, _ in terms) + LANES

    def layer(_: Any, inputs: Any, start: Any, weights: Any, bias: Any, out: Any, to: Any) -> Any:
        def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            writer, number = VectorWriter(context, builder), ir.IntType(64)
            data = [writer.data(signature.args[i], values[i]) for i in (0, 2, 3, 4)]
            inputs, weights, bias, out = data
            inputs, out = writer.at(inputs, values[1]), writer.at(out, values[5])
            sums = writer.sums(len(ends))
            for place, (end, _) in zip(sums, ends, strict=True):
                builder.store(writer.load(writer.at(bias, number(end))), place)
            with cgutils.for_range(builder, number(n)) as loop:
                here = writer.at(inputs, loop.index)
                row = writer.at(weights, builder.mul(loop.index, number(step)))
                total = [builder.load(place) for place in sums]
                for first, weight, i in terms:
                    value = writer.spread(writer.at(here, number(first)))
                    factor = writer.load(writer.at(row, number(weight)))
                    total[i] = writer.multiply_add(value, factor, total[i])
                for place, value in zip(sums, total, strict=True):
                    builder.store(value, place)
            for place, (_, end) in zip(sums, ends, strict=True):
                # In this order what is no number stays none.
                value = writer.larger(ir.Constant(writer.vector, None), builder.load(place))
                writer.store(value, writer.at(out, number(end)))
            return context.get_dummy_value()

        return types.void(inputs, start, weights, bias, out, to), write

    return intrinsic(layer)


def _rows(*, n_rows: int, side: int, n_maps: int) -> Any:
    """Convolve `n_maps` maps, as (y, x, map), into `n_rows` rows of `side` pixels."""
    wide = side + KERNEL - 1
    terms = [
        (((y + v) * wide + x + u) * n_maps, (v * KERNEL + u) * MAPS, y * side + x)
        for y, x, v, u in np.ndindex(n_rows, side, KERNEL, KERNEL)
    ]
    # By input: each is read once, and no two terms of a sum follow one another.
    return _layer(n_maps, sorted(terms), [(0, i * MAPS) for i in range(n_rows * side)])


def _connected(*, n: int, step: int) -> Any:
    """Connect `n` inputs of some candidates to `FEATURES` outputs, from one to the next `step`."""
    parts = [(c, i) for c in range(_CANDIDATES_AT_ONCE) for i in range(0, FEATURES, LANES)]
    terms = [(c * n, i, number) for number, (c, i) in enumerate(parts)]
    return _layer(n, terms, [(i, c * step + i) for c, i in parts])


# More sums at once than 15 would not fit the 16 registers of AVX2.
_first_row = _rows(n_rows=1, side=_MIDDLE, n_maps=1)
_two_rows = _rows(n_rows=2, side=SIDE, n_maps=MAPS)
_three_rows = _rows(n_rows=3, side=SIDE, n_maps=MAPS)
_wide = _connected(n=_SEEN, step=_NARROW)
_narrow = _connected(n=_NARROW, step=FEATURES)


@compiled
def _to_singles(halves: NDArray[np.int16], bits: NDArray[np.int32], out: Floats) -> None:
    """Single precision of the bits of half-precision numbers; NaN for what is not finite."""
    for i in range(halves.size):
        bits[i] = (np.int32(halves[i]) << _SHIFT) & _KEPT
    singles = bits.view(np.float32)
    for i in range(halves.size):
        value = singles[i] * _ZEROS
        out[i] = value if abs(value) < _BEYOND else np.float32(np.nan)


@compiled
def logits_of_patches(
    halves: NDArray[np.int16], noise: Floats, packed: Packed, out: Floats
) -> None:
    """Fill `out` with the logit of every candidate.

    Parameters
    ----------
    halves : ndarray of int16
        Shape (candidate, 81): the bits of the half-precision pixels.
    noise : ndarray of float32
        Shape (candidate,), in photons.
    packed : Packed
        Here as (map in, y, x, map out) and, of fully connected layers, (input, output).
    out : ndarray of float32
        Shape (candidate,).
    """
    bits, patch = np.empty(PATCH * PATCH, np.int32), np.empty(PATCH * PATCH, np.float32)
    first = np.empty(_MIDDLE * _MIDDLE * MAPS, np.float32)
    second = np.zeros(_CANDIDATES_AT_ONCE * _SEEN, np.float32)
    features = np.zeros(_CANDIDATES_AT_ONCE * _NARROW, np.float32)
    hidden = np.empty(_CANDIDATES_AT_ONCE * FEATURES, np.float32)
    for start in range(0, len(noise), _CANDIDATES_AT_ONCE):
        n = min(_CANDIDATES_AT_ONCE, len(noise) - start)
        for c in range(n):
            _to_singles(halves[start + c], bits, patch)
            for y in range(_MIDDLE):
                to = y * _MIDDLE * MAPS
                _first_row(patch, y * PATCH, packed.first, packed.first_bias, first, to)
            to, third = c * _SEEN, 2 * _MIDDLE * MAPS
            _two_rows(first, 0, packed.second, packed.second_bias, second, to)
            to += 2 * SIDE * MAPS
            _three_rows(first, third, packed.second, packed.second_bias, second, to)
        _wide(second, 0, packed.wide, packed.wide_bias, features, 0)
        for c in range(n):
            level = noise[start + c]
            # A noise that is no number stays none.
            level = np.float32(NOISE_FLOOR) if level < NOISE_FLOOR else level
            features[c * _NARROW + FEATURES] = math.log(level)
        _narrow(features, 0, packed.narrow, packed.narrow_bias, hidden, 0)
        for c in range(n):
            total = packed.last_bias[0]
            for i in range(FEATURES):
                total += hidden[c * FEATURES + i] * packed.last[i]
            out[start + c] = total


PATCH_SCALE = 0.25
"""Pixels of a patch, in units of sigma, are multiplied by this first: -4 to 16 become -1 to 4. The
shipped model has learned with it."""

_LAYERS = {
    "trunk.0": (MAPS, 1, KERNEL, KERNEL),
    "trunk.2": (MAPS, MAPS, KERNEL, KERNEL),
    "trunk.4": (FEATURES, MAPS, SIDE, SIDE),
    "head.0": (FEATURES, FEATURES + 1),
    "head.2": (1, FEATURES),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FusedPatchNetwork:
    """The patch network, its weights in the order in which the kernels read them.

    Examples
    --------
    >>> from sfxreduce.scorers.cnn.patches.candidates import CandidateFinder
    >>> from sfxreduce.scorers.cnn.folder import default_model, read_model
    >>> frame = np.random.default_rng(0).poisson(20, (1, 1, 64, 64))
    >>> frame[0, 0, 29:32, 39:42] += [[10, 40, 10], [40, 90, 40], [10, 40, 10]]
    >>> found = CandidateFinder()(frame, np.ones((1, 64, 64), bool), adu_per_photon=1.0)
    >>> network = FusedPatchNetwork.of(read_model(default_model()).weights)
    >>> int(network.logits(found).argmax())
    0
    """

    packed: Packed = field(repr=False)

    @classmethod
    def of(cls, weights: Mapping[str, NDArray[np.float32]]) -> FusedPatchNetwork:
        """Pack the weights of a model.

        Parameters
        ----------
        weights : mapping of str to ndarray
            The parameters of `PatchNetwork` by their names; other arrays do not matter.

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
                f"model: expected the weights of architecture 'patches', found {odd} missing or of "
                "another shape; train the model again"
            )
        first, second, wide, narrow, last = (
            np.asarray(weights[f"{name}.weight"], np.float32) for name in _LAYERS
        )
        in_order = (
            # A power of two: it rounds nothing, whether the pixels or the weights are scaled.
            first.transpose(1, 2, 3, 0) * np.float32(PATCH_SCALE),
            second.transpose(1, 2, 3, 0),
            wide.transpose(2, 3, 1, 0),
            narrow.T,
            last.T,
        )
        packed = []
        for name, weight in zip(_LAYERS, in_order, strict=True):
            packed.append(np.ascontiguousarray(weight).ravel())
            packed.append(np.array(weights[f"{name}.bias"], np.float32))
        return cls(packed=Packed(*packed))

    def logits(self, found: Candidates) -> NDArray[np.float32]:
        """Logit of every candidate to be a Bragg peak.

        Returns
        -------
        ndarray of float32
            Shape (candidate,). NaN where a pixel of the patch is no finite number.
        """
        logits = np.empty(len(found), np.float32)
        patches = np.ascontiguousarray(found.patch, np.float16).reshape(len(found), PATCH**2)
        noise = np.ascontiguousarray(found.noise_photons, np.float32)
        logits_of_patches(patches.view(np.int16), noise, self.packed, logits)
        return logits
