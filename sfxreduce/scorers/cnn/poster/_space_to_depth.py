"""A convolution and the largest of every square as one convolution that suits a graphics card.

With few channels a convolution gives a card's matrix units next to nothing to do. Cut into squares
of the pooling's side, a picture has a channel for every place in a square, the kernel covers a few
squares, and one convolution of many channels gives all numbers of a square side by side. The sums
are the same, with zeros among them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import conv2d, pad, pixel_unshuffle

__all__ = ["PooledConvolution", "in_squares"]


class PooledConvolution(nn.Module):
    """A convolution, the largest number of every square, and ReLU.

    Parameters
    ----------
    convolution : Conv2d
        With a bias and a kernel as wide as it is high, without margin and steps.
    side : int
        Of a square, in pixels. Squares that the picture's edge cuts do not count.

    Examples
    --------
    >>> plain, pictures = nn.Conv2d(2, 3, 4).requires_grad_(False), torch.randn(1, 2, 17, 17)
    >>> expected = torch.relu(torch.max_pool2d(plain(pictures), 3))
    >>> torch.allclose(PooledConvolution(plain, 3)(pictures), expected, atol=1e-5)
    True
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, convolution: nn.Conv2d, side: int) -> None:
        super().__init__()
        self.side, self.kernel = side, convolution.kernel_size[0]
        # So many squares in a row are touched by the kernel from anywhere in the first of them.
        self.reach = -(-(self.kernel + side - 1) // side)
        self.register_buffer("weight", self._moved(convolution.weight.detach()))
        none = convolution.weight.new_zeros(convolution.out_channels)
        bias = none if convolution.bias is None else convolution.bias.detach()
        self.register_buffer("bias", bias[:, None, None])

    def _moved(self, weight: torch.Tensor) -> torch.Tensor:
        """Weights of every place in a square, shape (output and place, input and place, y, x)."""
        n_out, n_in, kernel, _ = weight.shape
        side, wide = self.side, self.side * self.reach
        moved = weight.new_zeros((n_out, side, side, n_in, wide, wide))
        for y in range(side):
            for x in range(side):
                moved[:, y, x, :, y : y + kernel, x : x + kernel] = weight
        return pixel_unshuffle(moved.reshape(-1, n_in, wide, wide), side)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Shape (picture, output, y, x) from (picture, input, y, x)."""
        lacks = [self._wanted(n) - n for n in pictures.shape[2:]]
        if any(lacks):  # what is added or left out meets zeros only
            pictures = pad(pictures, (0, lacks[1], 0, lacks[0]))
        numbers = conv2d(pixel_unshuffle(pictures, self.side), self.weight)
        # The largest number stays the largest, whatever is added to all of them.
        n_out, places = len(self.bias), self.side**2
        largest = numbers.reshape(-1, n_out, places, *numbers.shape[2:]).amax(dim=2)
        return (largest + self.bias).relu()

    def _wanted(self, n: int) -> int:
        """Pixels in a row that whole squares of results need, of `n` that there are."""
        return ((n - self.kernel + 1) // self.side + self.reach - 1) * self.side


def in_squares(layers: Sequence[nn.Module]) -> nn.Sequential:
    """Write every convolution, with the pooling and the ReLU behind it, as one layer.

    Parameters
    ----------
    layers : sequence of Module
        Convolution, pooling, ReLU, again and again.
    """
    merged = []
    for convolution, pooling, _ in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
        side = getattr(pooling, "kernel_size", None)
        if not isinstance(convolution, nn.Conv2d) or not isinstance(side, int):
            raise TypeError(f"expected a convolution and a pooling, found {convolution}, {pooling}")
        merged.append(PooledConvolution(convolution, side))
    return nn.Sequential(*merged)
