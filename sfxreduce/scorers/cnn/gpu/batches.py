"""A batch that does not fit the device's memory is halved, down to one, then to the processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Batches", "Fetched", "Pieces", "assembled", "batch_that_fits"]

Fetched: TypeAlias = Callable[[], NDArray[np.float32]]
"""Gives values once they have arrived."""

Pieces: TypeAlias = list[tuple[int, Fetched]]
"""Results as far as they have come: the place of the first value, and what gives the values."""

# Other processes use the card too, and what a batch needs grows with other layers' choices.
_SHARE_OF_FREE = 0.5


def batch_that_fits(free_bytes: int | None, *, bytes_per_item: float, most: int) -> int:
    """Items that may go through a network together.

    Parameters
    ----------
    free_bytes : int or None
        Memory of the device that is left; None if it is not known.
    bytes_per_item : float
        Measured on a few of them.

    Examples
    --------
    >>> batch_that_fits(10**9, bytes_per_item=1e7, most=256)
    50
    >>> batch_that_fits(10**6, bytes_per_item=1e7, most=256)
    1
    """
    if free_bytes is None or bytes_per_item <= 0:
        return most
    return max(1, min(most, int(_SHARE_OF_FREE * free_bytes / bytes_per_item)))


@dataclass(slots=True, kw_only=True)
class Batches:
    """How many items go through a network together, and what became of that.

    Parameters
    ----------
    size : int
        Items together; halved when the memory does not suffice, and never raised again.
    forget : callable
        Gives memory back that is kept for later; called at the first failure, and only then.
    halvings : int
        How often `size` was halved.
    on_cpu : int
        Items that the processor answered, because even one was too much for the device.
    """

    size: int
    forget: Callable[[], None]
    halvings: int = 0
    on_cpu: int = 0

    def run(
        self,
        n: int,
        *,
        on_device: Callable[[int, int], Fetched],
        on_cpu: Callable[[int, int], NDArray[np.float32]],
    ) -> Pieces:
        """Answer `n` items batch by batch.

        Parameters
        ----------
        on_device : callable
            Of the first item and the batch's size: what gives the values of the items from there
            on. It may give more values than there are items left.
        on_cpu : callable
            Of the first item and the one after the last: their values.

        Returns
        -------
        list of tuple of int and callable
            See `assembled`.
        """
        pieces: Pieces = []
        start = 0
        while start < n:
            fetched = _unless_full(on_device, start, self.size)
            if fetched is not None:
                pieces.append((start, fetched))
                start += self.size
            elif not self._halve():
                pieces.append((start, partial(np.asarray, on_cpu(start, n))))
                self.on_cpu += n - start
                break
        return pieces

    def _halve(self) -> bool:
        """Make the batch smaller; False if it cannot be."""
        if not self.halvings:
            self.forget()
        if self.size == 1:
            return False
        self.size //= 2
        self.halvings += 1
        return True


def assembled(pieces: Pieces, n: int) -> NDArray[np.float32]:
    """Values of `n` items from their pieces, once all of them have arrived."""
    values = np.empty(n, np.float32)
    for start, fetched in pieces:
        piece = fetched()[: n - start]
        values[start : start + len(piece)] = piece
    return values


def _unless_full(on_device: Callable[[int, int], Fetched], start: int, size: int) -> Fetched | None:
    """What the device promises, or None if its memory is full.

    The error is gone when this returns, and with it the tensors that its traceback held on to.
    """
    try:
        return on_device(start, size)
    except torch.OutOfMemoryError:
        return None
