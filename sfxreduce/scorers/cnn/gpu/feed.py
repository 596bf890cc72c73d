"""Events that come sub-batch by sub-batch, how a device scores them, and what comes out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import ModelError
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.gpu.transfer import wire_dtype

if TYPE_CHECKING:
    from sfxreduce.scorers.calibration.record import FirstLook

__all__ = ["TOLERANCE", "DeviceScores", "DeviceSettings", "Feed", "events_together", "sub_batches"]

TOLERANCE = {"float32": 2e-3, "half": 2e-2}
"""How far a hit probability may be from the processor's. A decision differs only for events that
are as near as this to the threshold."""

# Each holds a sub-batch in memory, and machines have a card for so many processors or fewer.
_MOST_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """Where and how a network runs.

    Parameters
    ----------
    device : str
        "cpu", "cuda" or "cuda:N".
    half : bool or None
        Convolve with numbers of 16 bits; None for what suits the device.
    compiled : bool or None
        Let torch compile the poster's network, which takes ten seconds once; None for what suits
        the device. Where torch cannot, it says so and does without.
    n_threads : int
        Threads that read and decode; 0 for one per processor this process may use, up to 16.
    n_slots : int
        Sub-batches on their way to or on the device, beside those that are being read.
    tiles : int
        Tiles of one sub-batch; an event is never divided.
    search_on_device : bool
        Search for the candidates of the patch network on the device, which gets all pixels then,
        and not on the threads that read. It has not been measured on a graphics card.
    """

    device: str = "cuda"
    half: bool | None = None
    compiled: bool | None = None
    n_threads: int = 0
    n_slots: int = 3
    tiles: int = 128
    search_on_device: bool = False

    @property
    def threads(self) -> int:
        """Number of threads that read and decode."""
        return self.n_threads or min(len(os.sched_getaffinity(0)), _MOST_THREADS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feed:
    """Events that can be read sub-batch by sub-batch, and what is known of their pixels.

    Parameters
    ----------
    read : callable
        Writes the pixels of consecutive events, given as a range, into an array of shape (event,
        tile, y, x), in ADU, that may hold anything before. Called on several threads at once.
        Pixels of an event that cannot be read may be anything.
    dtype : dtype
        Of a pixel; it is read in this machine's byte order.
    good : ndarray of bool
        Shape (tile, y, x): pixels that can be trusted.
    adu_per_photon : float
        Gain in ADU; NaN if unknown.
    window : Window, optional
        Where the tiles lie: the patch network tells rings of powder and classes by it.
    picture_tiles : int
        Tiles of the whole picture; 0 if these are all.
    first_look : FirstLook, optional
        How the first tiles count for themselves, for the patch network.

    Examples
    --------
    >>> pixels = np.zeros((5, 1, 350, 350), np.uint16)
    >>> feed = Feed.of(pixels, good=np.ones((1, 350, 350), bool))
    >>> feed.n_events, feed.pixels(range(2, 4)).shape
    (5, (2, 1, 350, 350))
    """

    read: Callable[[range, NDArray[np.generic]], None]
    n_events: int
    dtype: np.dtype[np.generic]
    good: NDArray[np.bool_]
    adu_per_photon: float = math.nan
    window: Window | None = None
    picture_tiles: int = 0
    first_look: FirstLook | None = None

    @classmethod
    def of(
        cls,
        pixels: NDArray[np.generic],
        *,
        good: NDArray[np.bool_],
        adu_per_photon: float = math.nan,
        window: Window | None = None,
    ) -> Feed:
        """Feed of events that are in memory, shape (event, tile, y, x).

        Raises
        ------
        ModelError
            If the pixels are of another shape than the mask.
        """
        if pixels.shape[1:] != good.shape:
            raise ModelError(
                f"device scorer: expected pixels of shape {('event', *good.shape)}, found "
                f"{pixels.shape}; read them with the window of this model"
            )

        def read(events: range, there: NDArray[np.generic]) -> None:
            np.copyto(there, pixels[events.start : events.stop], casting="same_kind")

        return cls(
            read=read,
            n_events=len(pixels),
            dtype=pixels.dtype,
            good=good,
            adu_per_photon=adu_per_photon,
            window=window,
        )

    def pixels(self, events: range) -> NDArray[np.generic]:
        """Read events into memory of their own, shape (event, tile, y, x)."""
        pixels = np.empty((len(events), *self.good.shape), wire_dtype(self.dtype))
        self.read(events, pixels)
        return pixels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceScores:
    """What came out, and what it took.

    Parameters
    ----------
    score : ndarray of float32
        Hit probability of every event, shape (event,).
    kind : ndarray of uint8
        `EventClass` of every event; 0 where the model cannot tell.
    reason : ndarray of uint32
        `Reason` bits not to trust the score of each.
    peaks, width_px : ndarray, optional
        See `sfxreduce.scorers.protocol.EventScores`; none from a network that counts no peaks.
    first : ndarray of float32, optional
        Likewise; none where no tiles count for themselves.
    halvings : int
        How often a batch was halved because the device's memory was full.
    on_cpu : int
        Tiles, or patches of the patch network, that the processor looked at because not even one
        of them fitted there.
    """

    score: NDArray[np.float32]
    kind: NDArray[np.uint8]
    reason: NDArray[np.uint32]
    halvings: int
    on_cpu: int
    peaks: NDArray[np.int16] | None = None
    first: NDArray[np.float32] | None = None
    width_px: NDArray[np.float32] | None = None


def events_together(feed: Feed, tiles: int) -> int:
    """Events that have some `tiles` together, at least one event."""
    return max(1, tiles // len(feed.good))


def sub_batches(feed: Feed, tiles: int) -> list[range]:
    """Consecutive events of some `tiles` together, at least one event.

    Examples
    --------
    >>> feed = Feed.of(np.zeros((5, 2, 9, 9)), good=np.ones((2, 9, 9), bool))
    >>> sub_batches(feed, 4)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    step = events_together(feed, tiles)
    return [range(n, min(n + step, feed.n_events)) for n in range(0, feed.n_events, step)]
