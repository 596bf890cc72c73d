"""The network: one small trunk that looks at one tile, and the pooling over a window's tiles.

The trunk is that of a poster on sorting diffraction images of the LCLS experiment CXIC0415: two
convolutions with pooling and three fully connected layers on the central 350 x 350 pixels. A
window of several tiles is looked at tile by tile with the same weights, and the tile that speaks
loudest for a hit speaks for the event; with one tile this is the poster's network and nothing else.
"""

from __future__ import annotations

import torch
from torch import nn

from sfxreduce.scorers.cnn.poster._cpu import CHANNELS, FEATURES, KERNEL, POOL, SIDE

__all__ = ["TILE_SHAPE", "HitNetwork"]

TILE_SHAPE = (SIDE, SIDE)
_HIDDEN = 16
_OUTPUTS = 2


class HitNetwork(nn.Module):
    """Two outputs an event, miss and hit, from the tiles of its window.

    Layers for one tile::

        350 x 350      convolution 7 x 7    4 x 344 x 344    ReLU, largest of 5 x 5
        4 x 68 x 68    convolution 7 x 7    4 x 62 x 62      ReLU, largest of 5 x 5
        4 x 12 x 12    flatten              576
        576            fully connected      576              ReLU
        576            fully connected      16               ReLU
        16             fully connected      2

    Attributes
    ----------
    trunk : Sequential
        Maps (tile, 1, y, x) to (tile, 2).
    """

    def __init__(self) -> None:
        super().__init__()
        # ReLU and the largest value of a square commute, so pooling first gives the poster's
        # numbers with a 25th of the work.
        self.trunk = nn.Sequential(
            nn.Conv2d(1, CHANNELS, KERNEL),
            nn.MaxPool2d(POOL),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, KERNEL),
            nn.MaxPool2d(POOL),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(FEATURES, FEATURES),
            nn.ReLU(),
            nn.Linear(FEATURES, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, _OUTPUTS),
        )

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Outputs of the tile that speaks loudest for a hit.

        Parameters
        ----------
        tiles : Tensor
            Shape (event, tile, 350, 350), normalised.

        Returns
        -------
        Tensor
            Shape (event, 2): miss and hit, as logarithms up to a common constant.
        """
        # Channels last halves the time of these few-channel convolutions on a CPU.
        flat = tiles.flatten(0, 1).unsqueeze(1).to(memory_format=torch.channels_last)
        outputs: torch.Tensor = self.trunk(flat).unflatten(0, tiles.shape[:2])
        loudest = (outputs[..., 1] - outputs[..., 0]).argmax(dim=1)
        return outputs[torch.arange(len(outputs), device=outputs.device), loudest]
