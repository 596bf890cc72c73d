"""The patch network: is this candidate a Bragg peak? And the pooling of its answers to an event.

A fully convolutional network is looked at only where a pixel stands out: everywhere else its
answer is no. The answers of a tile are added up to an expected number of peaks, capped, because a
streak or an ice ring puts many false peaks into few tiles while crystals scatter everywhere. The
sum over the window's tiles, on a logarithmic scale, gives the hit probability.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sfxreduce.scorers.cnn.patches.candidates import Candidates
from sfxreduce.scorers.cnn.patches.cpu import NOISE_FLOOR, PATCH_SCALE

__all__ = ["PatchNetwork", "patch_logits"]

# The network always sees the same number of patches, the last group filled up with zeros: torch
# may choose other arithmetic for another shape, and an event's score must not depend on others.
_PATCHES_AT_ONCE = 512


class PatchNetwork(nn.Module):
    """One number a patch: the logit that its centre is a Bragg peak.

    Layers::

        9 x 9                convolution 3 x 3    8 x 7 x 7     ReLU
        8 x 7 x 7            convolution 3 x 3    8 x 5 x 5     ReLU
        8 x 5 x 5            convolution 5 x 5    16            ReLU
        16 and the noise     fully connected      16            ReLU
        16                   fully connected      1
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 16, 5),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Linear(17, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, patches: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Logits of patches.

        Parameters
        ----------
        patches : Tensor
            Shape (patch, 9, 9), in units of sigma.
        noise : Tensor
            Shape (patch,): sigma of the surroundings in photons.

        Returns
        -------
        Tensor
            Shape (patch,).
        """
        seen = self.trunk((patches * PATCH_SCALE).unsqueeze(1)).flatten(1)
        level = noise.clamp_min(NOISE_FLOOR).log().unsqueeze(1)
        logits: torch.Tensor = self.head(torch.cat([seen, level], dim=1))
        return logits[:, 0]


def patch_logits(
    network: PatchNetwork, found: Candidates, *, device: str = "cpu"
) -> NDArray[np.float32]:
    """Logit of every candidate to be a Bragg peak.

    Parameters
    ----------
    network : PatchNetwork
        On `device`.

    Returns
    -------
    ndarray of float32
        Shape (candidate,).
    """
    logits = np.empty(len(found), np.float32)
    patches = torch.zeros((_PATCHES_AT_ONCE, *found.patch.shape[1:]))
    noise = torch.ones(_PATCHES_AT_ONCE)
    with torch.inference_mode():
        for start in range(0, len(found), _PATCHES_AT_ONCE):
            part = slice(start, start + _PATCHES_AT_ONCE)
            n = len(found.noise_photons[part])
            patches[:n] = torch.from_numpy(found.patch[part].astype(np.float32))
            noise[:n] = torch.from_numpy(found.noise_photons[part])
            logits[part] = network(patches.to(device), noise.to(device))[:n].cpu().numpy()
    return logits
