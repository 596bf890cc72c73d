"""Pixels on their way to a device: what they are sent as, and numbers again once there."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["as_numbers", "pixels_in", "wire_dtype"]

# What torch calls the same bytes. It has few operations for unsigned numbers of more than 16 bits:
# those travel as signed ones and are put right on the other side.
_SENT_AS = {
    "i1": torch.int8,
    "u1": torch.uint8,
    "i2": torch.int16,
    "u2": torch.uint16,
    "i4": torch.int32,
    "u4": torch.int32,
    "i8": torch.int64,
    "u8": torch.int64,
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
}


def wire_dtype(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """Dtype in which pixels travel: the source's own in this machine's byte order.

    Examples
    --------
    >>> wire_dtype(np.dtype(">u2")) == np.dtype("uint16"), wire_dtype(np.dtype("longdouble"))
    (True, dtype('float64'))
    """
    native = dtype.newbyteorder("=")
    return native if native.str[1:] in _SENT_AS else np.dtype(np.float64)


def pixels_in(
    host: NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> NDArray[np.generic]:
    """Pixels at the beginning of some bytes, to be written to."""
    return host[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def as_numbers(sent: torch.Tensor, dtype: np.dtype[np.generic]) -> torch.Tensor:
    """Make numbers of 32 bits from bytes that were written to `pixels_in`.

    Parameters
    ----------
    sent : Tensor of uint8
        Shape (byte,).
    dtype : dtype
        See `wire_dtype`.

    Returns
    -------
    Tensor of float32
        Shape (pixel,).
    """
    kind = dtype.str[1:]
    signed = sent.view(_SENT_AS[kind])
    if kind == "u4":
        return signed.to(torch.int64).bitwise_and(0xFFFFFFFF).float()
    if kind == "u8":
        wide = signed.double()
        return torch.where(wide < 0, wide + 2.0**64, wide).float()
    return signed.float()
