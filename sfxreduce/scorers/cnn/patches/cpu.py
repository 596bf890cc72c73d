"""The patch network on a CPU, several times faster than a general runtime, without torch.

The numbers are those of `sfxreduce.scorers.cnn.patches.network` up to rounding. A candidate's logit
is the same to the last bit whatever is computed beside it, and few candidates cost no more than
they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import ModelError
from sfxreduce.scorers.cnn._vector_writer import Packed
from sfxreduce.scorers.cnn.patches._cpu import (
    FEATURES,
    KERNEL,
    MAPS,
    NOISE_FLOOR,
    SIDE,
    logits_of_patches,
)
from sfxreduce.scorers.cnn.patches.candidates import PATCH, Candidates

__all__ = ["NOISE_FLOOR", "PATCH_SCALE", "FusedPatchNetwork"]

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
