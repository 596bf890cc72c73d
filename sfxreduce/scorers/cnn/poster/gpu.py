"""The poster's network on a device that works while threads read, decode and stage what is next.

Pixels go to the device in the source's own dtype and are normalised there, so that the slow way
between the two carries as few bytes as the source has. The same code runs on a processor; what
differs is behind `sfxreduce.scorers.cnn.gpu.device`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sfxreduce.errors import ModelError
from sfxreduce.scorers.cnn.gpu.batches import Batches, Fetched, Pieces, assembled, batch_that_fits
from sfxreduce.scorers.cnn.gpu.compile import CompiledIfPossible
from sfxreduce.scorers.cnn.gpu.device import Seam, Slot, seam_of
from sfxreduce.scorers.cnn.gpu.feed import (
    TOLERANCE,
    DeviceScores,
    DeviceSettings,
    Feed,
    events_together,
    sub_batches,
)
from sfxreduce.scorers.cnn.gpu.overlap import overlap
from sfxreduce.scorers.cnn.gpu.transfer import as_numbers, pixels_in, wire_dtype
from sfxreduce.scorers.cnn.poster._normalise_gpu import in_noise_units, least_variance
from sfxreduce.scorers.cnn.poster._space_to_depth import in_squares
from sfxreduce.scorers.cnn.poster.cpu import FusedNetwork
from sfxreduce.scorers.cnn.poster.network import TILE_SHAPE, HitNetwork
from sfxreduce.scorers.cnn.poster.normalise import Normalisation, normalise

__all__ = ["TOLERANCE", "DeviceScores", "DeviceSettings", "Feed", "PosterOnDevice"]

_TILE_PIXELS = math.prod(TILE_SHAPE)
_TILES_OF_A_TRIAL = 4


class PosterOnDevice:
    """The poster's network on a device.

    Parameters
    ----------
    fused : FusedNetwork
        The same weights for the processor, for tiles that do not fit the device's memory.

    Raises
    ------
    ClusterError
        If the device is not there.

    Examples
    --------
    >>> network = HitNetwork().requires_grad_(requires_grad=False)
    >>> fused = FusedNetwork.of({k: v.numpy() for k, v in network.state_dict().items()})
    >>> settings = DeviceSettings(device="cpu", tiles=2, n_threads=1)
    >>> poster = PosterOnDevice(network, fused=fused, how=Normalisation(), settings=settings)
    >>> pixels = np.random.default_rng(0).poisson(5, (2, 1, 350, 350)).astype(np.uint16)
    >>> poster.score(Feed.of(pixels, good=np.ones((1, 350, 350), bool))).score.shape
    (2,)
    """

    def __init__(
        self,
        network: HitNetwork,
        *,
        fused: FusedNetwork,
        how: Normalisation,
        settings: DeviceSettings,
    ) -> None:
        self.settings = settings
        self.seam: Seam = seam_of(settings.device)
        self.fused, self.how = fused, how
        half = self.seam.likes_half if settings.half is None else settings.half
        compiled = self.seam.likes_compiled if settings.compiled is None else settings.compiled
        self.tolerance = TOLERANCE["half" if half else "float32"]
        eager = _Margin(network, how, half=half).to(self.seam.device)
        self._eager = eager
        self.margin = CompiledIfPossible(eager) if compiled else eager
        self._bytes_per_tile = 0.0

    def score(self, feed: Feed) -> DeviceScores:
        """Score all events of a feed.

        Returns
        -------
        DeviceScores
            In the order of the events, and up to rounding the same whatever the sub-batches.

        Raises
        ------
        ModelError
            If the tiles are not of 350 x 350.
        """
        if feed.good.shape[1:] != TILE_SHAPE:
            raise ModelError(
                f"device scorer: expected tiles of {TILE_SHAPE} pixels, found "
                f"{feed.good.shape[1:]}; read them with the window of this model"
            )
        parts = sub_batches(feed, self.settings.tiles)
        # As many for a feed of few events: a compiled network knows one number of tiles.
        room = events_together(feed, self.settings.tiles) * len(feed.good)
        n_bytes = room * _TILE_PIXELS * wire_dtype(feed.dtype).itemsize
        # Every thread reads right into a slot.
        n_slots = min(len(parts), self.settings.threads + self.settings.n_slots)
        with (
            torch.inference_mode(),
            self.seam.exact(),
            self.seam.slots(n_slots, n_bytes) as slots,
        ):
            size = self._at_once(wire_dtype(feed.dtype), room, n_bytes * len(slots))
            batches = Batches(size=size, forget=self.seam.forget)
            work = _PosterWork(feed=feed, room=room, batches=batches, poster=self)
            overlap(parts, work, slots=slots, n_threads=self.settings.threads)
        return DeviceScores(
            score=work.score,
            kind=np.zeros(feed.n_events, np.uint8),
            reason=np.zeros(feed.n_events, np.uint32),
            halvings=batches.halvings,
            on_cpu=batches.on_cpu,
        )

    def _at_once(self, dtype: np.dtype[np.generic], room: int, n_bytes: int) -> int:
        """Tiles to begin with, by what a few need and what is free beside the slots' bytes."""
        most = max(1, min(room, self.seam.most_at_once))
        free = self.seam.free_bytes()
        if free is None:
            return most
        if not self._bytes_per_tile:
            n = min(_TILES_OF_A_TRIAL, most)
            try:
                self._bytes_per_tile = self.seam.peak_bytes(lambda: self._trial(n, dtype)) / n
            except torch.OutOfMemoryError:
                return 1
        return batch_that_fits(free - n_bytes, bytes_per_item=self._bytes_per_tile, most=most)

    def _trial(self, n: int, dtype: np.dtype[np.generic]) -> None:
        """Let some blank tiles pass."""
        device = self.seam.device
        sent = torch.zeros(n * _TILE_PIXELS * dtype.itemsize, dtype=torch.uint8, device=device)
        good = torch.ones((1, *TILE_SHAPE), dtype=torch.bool, device=device)
        self._eager(as_numbers(sent, dtype), good, 1.0, dtype.kind != "f")


@dataclass(slots=True, kw_only=True)
class _PosterWork:
    """The steps of `sfxreduce.scorers.cnn.gpu.overlap.Work` for one feed."""

    feed: Feed
    room: int
    batches: Batches
    poster: PosterOnDevice
    score: NDArray[np.float32] = field(init=False)
    good: torch.Tensor = field(init=False)
    dtype: np.dtype[np.generic] = field(init=False)
    least: float = field(init=False)

    def __post_init__(self) -> None:
        feed, poster = self.feed, self.poster
        self.score = np.empty(feed.n_events, np.float32)
        self.good = torch.from_numpy(np.ascontiguousarray(feed.good)).to(poster.seam.device)
        self.dtype = wire_dtype(feed.dtype)
        self.least = least_variance(poster.how, feed.adu_per_photon)

    def load(self, events: range) -> range:
        """Nothing yet: what is decoded elsewhere would have to be copied."""
        return events

    def stage(self, slot: Slot, loaded: range) -> int:
        """Read and decode the pixels; the number of tiles."""
        shape = (len(loaded), *self.feed.good.shape)
        self.feed.read(loaded, pixels_in(slot.host, shape, self.dtype))
        return len(loaded) * len(self.feed.good)

    def launch(self, slot: Slot, staged: int) -> Pieces:
        """Score the tiles batch by batch."""
        n_bytes = staged * _TILE_PIXELS * self.dtype.itemsize

        def on_device(start: int, size: int) -> Fetched:
            # Always tiles of the whole slot, whatever the last ones hold: another shape may be
            # worked out by another method, and a compiled network knows one shape.
            first = min(start, self.room - size)
            of_tiles = slot.sent(n_bytes).view(self.room, -1)[first : first + size]
            values = as_numbers(of_tiles.reshape(-1), self.dtype)
            good, finite = self._good_of(first, size), self.dtype.kind != "f"
            margin = self.poster.margin(values, good, self.least, finite)
            return self.poster.seam.fetch(margin[start - first :])

        return self.batches.run(
            staged,
            on_device=on_device,
            on_cpu=lambda start, stop: self._by_cpu(slot.host, start, stop),
        )

    def finish(self, events: range, launched: Pieces) -> None:
        """Let the loudest tile speak for the event."""
        n_tiles = len(self.feed.good)
        margin = assembled(launched, len(events) * n_tiles).reshape(-1, n_tiles).max(axis=1)
        probability = np.exp(-np.logaddexp(0.0, -margin.astype(np.float64)))
        self.score[events.start : events.stop] = probability

    def _good_of(self, first: int, size: int) -> torch.Tensor:
        """Masks of some tiles of a slot, in which events follow one another."""
        if len(self.good) == 1:
            return self.good
        at = torch.arange(first, first + size, device=self.good.device)
        return self.good[at % len(self.good)]

    def _by_cpu(self, host: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.float32]:
        """Margins of some tiles by the processor's own network."""
        n_bytes = _TILE_PIXELS * self.dtype.itemsize
        tiles = host[start * n_bytes : stop * n_bytes].view(self.dtype)
        good = self.feed.good[np.arange(start, stop) % len(self.feed.good)]
        seen = normalise(
            tiles.reshape(1, -1, *TILE_SHAPE),
            good,
            adu_per_photon=self.feed.adu_per_photon,
            how=self.poster.how,
        )
        outputs = self.poster.fused.outputs(seen, np.ones(good.shape, np.bool_))[0]
        margin: NDArray[np.float32] = outputs[:, 1] - outputs[:, 0]
        return margin


class _Margin(nn.Module):
    """How much louder a tile speaks for a hit than for a miss, from its numbers in ADU."""

    def __init__(self, network: HitNetwork, how: Normalisation, *, half: bool) -> None:
        super().__init__()
        trunk = copy.deepcopy(network.trunk).eval().requires_grad_(requires_grad=False)
        flat = next(i for i, layer in enumerate(trunk) if isinstance(layer, nn.Flatten))
        largest = max(abs(how.lowest), abs(how.highest))
        self._dtype = _half_dtype(trunk[:flat], largest) if half else torch.float32
        self._convolve = in_squares([*trunk.children()][:flat]).to(self._dtype)
        # The connected layers are a hundredth of the work, and their sums are the longest.
        self._connect = trunk[flat:].float()
        self._how = how

    def forward(
        self, values: torch.Tensor, good: torch.Tensor, least: float, finite: bool
    ) -> torch.Tensor:
        """Shape (tile,), from numbers of shape (tile * y * x,) and masks (tile or 1, y, x)."""
        tiles = values.view(-1, *TILE_SHAPE)
        seen = in_noise_units(tiles, good, self._how, least=least, finite=finite)
        maps = self._convolve(seen.unsqueeze(1).to(self._dtype))
        outputs: torch.Tensor = self._connect(maps.float())
        return outputs[:, 1] - outputs[:, 0]


def _half_dtype(convolutions: nn.Module, largest: float) -> torch.dtype:
    """Return the finer dtype of 16 bits, unless a sum could leave its range."""
    for layer in convolutions.children():
        if isinstance(layer, nn.Conv2d):
            sums = layer.weight.abs().sum(dim=(1, 2, 3)) * largest
            largest = float((sums if layer.bias is None else sums + layer.bias.abs()).max())
    return torch.float16 if largest < torch.finfo(torch.float16).max else torch.bfloat16
