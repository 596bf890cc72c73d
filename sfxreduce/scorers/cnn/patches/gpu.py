"""The patch network on a device: threads find candidates, the device tells which are peaks."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.gpu.batches import Batches, Fetched, Pieces, assembled, batch_that_fits
from sfxreduce.scorers.cnn.gpu.device import Seam, Slot, seam_of
from sfxreduce.scorers.cnn.gpu.feed import (
    TOLERANCE,
    DeviceScores,
    DeviceSettings,
    Feed,
    sub_batches,
)
from sfxreduce.scorers.cnn.gpu.overlap import overlap
from sfxreduce.scorers.cnn.patches.candidates import PATCH, CandidateFinder, Candidates
from sfxreduce.scorers.cnn.patches.network import PatchNetwork, patch_logits
from sfxreduce.scorers.cnn.patches.outliers import Usual, doubts_of
from sfxreduce.scorers.cnn.patches.pooling import (
    Pooling,
    class_of,
    count_peaks,
    event_features,
    on_first_tiles,
)
from sfxreduce.scorers.cnn.patches.search_on_device import DeviceFinder
from sfxreduce.scorers.protocol import not_counted

__all__ = ["PatchesOnDevice"]

_PATCH_BYTES = PATCH * PATCH * 2
_NOISE_BYTES = 4
# Chosen, not measured: they decide about speed and memory, not about scores.
_PATCHES_AT_ONCE = {"cpu": 512, "cuda": 16384}
_PATCHES_OF_A_TRIAL = 64


class PatchesOnDevice:
    """The patch network on a device.

    The candidates are searched for on the threads that read: their kernels run without Python's
    lock. What goes to the device is small, some hundred patches of 162 bytes for an event. With
    `DeviceSettings.search_on_device` the device searches, and pixels go there.

    Parameters
    ----------
    class_head : tuple of ndarray, optional
        See `sfxreduce.scorers.cnn.folder.Model.class_head`; the feed must have a window then.
    usual : Usual, optional
        Likewise; which events are like the calibrated ones.
    settings : DeviceSettings
        `half` does not matter: this network is small, and its patches are of 16 bits anyway.

    Raises
    ------
    ClusterError
        If the device is not there.
    """

    def __init__(
        self,
        network: PatchNetwork,
        *,
        finder: CandidateFinder,
        pooling: Pooling,
        class_head: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
        usual: Usual | None = None,
        settings: DeviceSettings,
    ) -> None:
        self.settings = settings
        self.seam: Seam = seam_of(settings.device)
        self.tolerance = TOLERANCE["float32"]
        self.finder: CandidateFinder | DeviceFinder = finder
        if settings.search_on_device:
            self.finder = DeviceFinder(finder=finder, device=settings.device)
        self.pooling = pooling
        self.class_head, self.usual = class_head, usual
        self.on_cpu = copy.deepcopy(network).cpu().eval().requires_grad_(requires_grad=False)
        self.network = copy.deepcopy(self.on_cpu).to(self.seam.device)
        self._bytes_per_patch = 0.0

    def score(self, feed: Feed) -> DeviceScores:
        """Score all events of a feed, and tell their classes if there is a head for it.

        Returns
        -------
        DeviceScores
            In the order of the events, and up to rounding the same whatever the sub-batches.

        Raises
        ------
        ModelError
            If pixels do not fit the mask.
        """
        parts = sub_batches(feed, self.settings.tiles)
        room = max(map(len, parts), default=0) * len(feed.good) * self.finder.most_of_tile
        n_bytes = room * (_PATCH_BYTES + _NOISE_BYTES)
        with (
            torch.inference_mode(),
            self.seam.exact(),
            self.seam.slots(self.settings.n_slots, n_bytes) as slots,
        ):
            size = self._at_once(room, n_bytes * len(slots))
            batches = Batches(size=size, forget=self.seam.forget)
            work = _PatchWork(feed=feed, room=room, batches=batches, scorer=self)
            overlap(parts, work, slots=slots, n_threads=self.settings.threads)
        return DeviceScores(
            score=work.score,
            kind=work.kind,
            reason=work.reason,
            peaks=work.peaks,
            width_px=work.width_px,
            first=work.first,
            halvings=batches.halvings,
            on_cpu=batches.on_cpu,
        )

    def _at_once(self, room: int, n_bytes: int) -> int:
        """Patches to begin with, by what a few need and what is free beside the slots' bytes."""
        most = max(1, min(room, _PATCHES_AT_ONCE[self.seam.device.type]))
        free = self.seam.free_bytes()
        if free is None:
            return most
        if not self._bytes_per_patch:
            n = min(_PATCHES_OF_A_TRIAL, most)
            try:
                self._bytes_per_patch = self.seam.peak_bytes(lambda: self._trial(n)) / n
            except torch.OutOfMemoryError:
                return 1
        return batch_that_fits(free - n_bytes, bytes_per_item=self._bytes_per_patch, most=most)

    def _trial(self, n: int) -> None:
        """Let some blank patches pass."""
        device = self.seam.device
        self.network(torch.zeros((n, PATCH, PATCH), device=device), torch.ones(n, device=device))


@dataclass(slots=True, kw_only=True)
class _PatchWork:
    """The steps of `sfxreduce.scorers.cnn.gpu.overlap.Work` for one feed."""

    feed: Feed
    room: int
    batches: Batches
    scorer: PatchesOnDevice
    score: NDArray[np.float32] = field(init=False)
    kind: NDArray[np.uint8] = field(init=False)
    reason: NDArray[np.uint32] = field(init=False)
    peaks: NDArray[np.int16] = field(init=False)
    width_px: NDArray[np.float32] = field(init=False)
    first: NDArray[np.float32] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.peaks, self.width_px = not_counted(self.feed.n_events)
        self.score = np.empty(self.feed.n_events, np.float32)
        self.kind = np.zeros(self.feed.n_events, np.uint8)
        self.reason = np.zeros(self.feed.n_events, np.uint32)
        if self.feed.first_look is not None:
            self.first = np.empty(self.feed.n_events, np.float32)

    def load(self, events: range) -> Candidates:
        """Read, decode and search; what is unlike the calibrated events is told by the patches."""
        feed = self.feed
        pixels = feed.pixels(events)
        found = self.scorer.finder(pixels, feed.good, adu_per_photon=feed.adu_per_photon)
        own = slice(events.start, events.stop)
        counted, n_tiles, window = self._counted(found)
        counts = count_peaks(counted, n_events=len(events), n_tiles=n_tiles, window=window)
        self.peaks[own], self.width_px[own] = counts
        if feed.window is not None:
            self.reason[own] = doubts_of(
                self.scorer.usual, found, feed.window, n_events=len(events)
            )
        return found

    def stage(self, slot: Slot, loaded: Candidates) -> Candidates:
        """Write the noise of all candidates, then their patches."""
        n, patches_from = len(loaded), self.room * _NOISE_BYTES
        slot.host[: n * _NOISE_BYTES].view(np.float32)[:] = loaded.noise_photons
        there = slot.host[patches_from : patches_from + n * _PATCH_BYTES].view(np.float16)
        there.reshape(loaded.patch.shape)[:] = loaded.patch
        return loaded

    def launch(self, slot: Slot, staged: Candidates) -> tuple[Candidates, Pieces]:
        """Look at the patches batch by batch."""
        n_bytes = self.room * _NOISE_BYTES + len(staged) * _PATCH_BYTES

        def on_device(start: int, size: int) -> Fetched:
            # Always as many patches, whatever the last ones hold: see the poster's network.
            first = min(start, self.room - size)
            sent, patches_from = slot.sent(n_bytes), self.room * _NOISE_BYTES
            patches = sent[patches_from:].view(torch.float16).view(-1, PATCH, PATCH)
            noise = sent[:patches_from].view(torch.float32)
            part = slice(first, first + size)
            logits = self.scorer.network(patches[part].float(), noise[part])
            return self.scorer.seam.fetch(logits[start - first :])

        pieces = self.batches.run(
            len(staged),
            on_device=on_device,
            on_cpu=lambda start, stop: patch_logits(
                self.scorer.on_cpu, staged.take(slice(start, stop))
            ),
        )
        # The patches are the bulk of it, and nobody looks at them again.
        return replace(staged, patch=np.zeros((len(staged), 0, 0), np.float16)), pieces

    def finish(self, events: range, launched: tuple[Candidates, Pieces]) -> None:
        """Pool the answers of every event."""
        found, pieces = launched
        logits = assembled(pieces, len(found))
        n_events, at = len(events), slice(events.start, events.stop)
        look, head, window = self.feed.first_look, self.scorer.class_head, self.feed.window
        self.score[at] = self._probability(logits, found, len(self.feed.good), window, n_events)
        if look is not None and self.first is not None and window is not None:
            window = window.part(slice(look.tiles))
            found, own = on_first_tiles(found, look.tiles, of=len(self.feed.good))
            logits = logits[own]
            self.first[at] = self._probability(logits, found, look.tiles, window, n_events)
            self.score[at] = look.score(self.first[at], self.score[at])
        if head is not None and window is not None:
            features = event_features(logits, found, window, n_events=n_events)
            self.kind[at] = class_of(features, *head)

    def _probability(
        self,
        logits: NDArray[np.floating],
        found: Candidates,
        n_tiles: int,
        window: Window | None,
        n_events: int,
    ) -> NDArray[np.float32]:
        """Hit probability of events by some of their tiles."""
        pooling, of_picture = self.scorer.pooling, self.feed.picture_tiles or len(self.feed.good)
        of_tiles = pooling.evidence(
            logits, found, n_events=n_events, n_tiles=n_tiles, window=window
        )
        return pooling.probability(pooling.pooled(of_tiles, n_tiles=of_picture))

    def _counted(self, found: Candidates) -> tuple[Candidates, int, Window | None]:
        """Candidates whose peaks are counted, and the tiles on which they lie."""
        feed, n_tiles = self.feed, len(self.feed.good)
        if feed.first_look is None or feed.window is None:
            return found, n_tiles, feed.window
        few = feed.first_look.tiles
        return on_first_tiles(found, few, of=n_tiles)[0], few, feed.window.part(slice(few))
