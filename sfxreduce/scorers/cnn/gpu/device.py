"""Where a graphics card differs from the processor: memory, copies and their order.

Everything else of the device scorer is the same code for both. On a card a sub-batch lies in
page-locked memory and is copied on a stream of its own while the card works on the one before;
events keep either from overwriting what the other still reads. On the processor the memory is
one and the same, and there is nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from sfxreduce.errors import ClusterError
from sfxreduce.scorers.cnn.gpu.batches import Fetched

__all__ = ["CpuSeam", "CudaSeam", "Seam", "Slot", "seam_of"]


class _HostSlot:
    """Room in the memory of the processor, which is also the device.

    `wait` before writing to the bytes of `host`; `release` once what was launched so far is the
    last to look at them.
    """

    def __init__(self, n_bytes: int) -> None:
        self._bytes = torch.empty(n_bytes, dtype=torch.uint8)
        self.host: NDArray[np.uint8] = self._bytes.numpy()

    def wait(self) -> None:
        """Return at once: what read the bytes has ended."""

    def sent(self, n_bytes: int) -> torch.Tensor:  # noqa: ARG002 - as `_CudaSlot`
        """All bytes on the device's side, of which the first `n_bytes` are copied if need be."""
        return self._bytes

    def release(self) -> None:
        """Do nothing."""


class CpuSeam:
    """The processor as a device: the same code, and the reference in tests."""

    device = torch.device("cpu")
    likes_half = False  # whether numbers of 16 bits make it faster
    likes_compiled = False  # whether a compiled network is worth the seconds that compiling takes
    most_at_once = 8  # more tiles no longer fit the cache

    @contextmanager
    def slots(self, n: int, n_bytes: int) -> Iterator[Sequence[Slot]]:
        """Room for `n` sub-batches of `n_bytes` each; idle once the block is left."""
        yield [_HostSlot(n_bytes) for _ in range(n)]

    def fetch(self, values: torch.Tensor) -> Fetched:
        """Start to bring values to this side, where these are already."""
        here: NDArray[np.float32] = values.numpy()
        return lambda: here

    def free_bytes(self) -> int | None:
        """Memory that is left on the device; None, as nobody counts it here."""
        return None

    def peak_bytes(self, action: Callable[[], object]) -> int:  # noqa: ARG002 - as `CudaSeam`
        """Most memory of the device that an action held at once; zero here, and it is not run."""
        return 0

    def forget(self) -> None:
        """Give memory back that is kept for later: none."""

    def exact(self) -> AbstractContextManager[None]:
        """Multiply numbers of 32 bits as such; a processor knows no other way."""
        return nullcontext()


class _CudaSlot:
    """Page-locked room here, and as much on the card once it is needed."""

    def __init__(self, n_bytes: int, device: torch.device, copies: torch.cuda.Stream) -> None:
        self._bytes = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
        self.host: NDArray[np.uint8] = self._bytes.numpy()
        self._device, self._copies = device, copies
        self._there: torch.Tensor | None = None
        self._is_sent = False
        self._copied = _event()
        self._used = _event()

    def wait(self) -> None:
        """Sleep until the last copy has left this side."""
        self._copied.synchronize()

    def sent(self, n_bytes: int) -> torch.Tensor:
        """Copy on the stream of copies, and let later work of the card wait for it."""
        work = torch.cuda.current_stream(self._device)
        if self._there is None:
            self._there = torch.empty_like(self._bytes, device=self._device)
            # The allocator hands out memory that earlier work of this stream may still read.
            self._used.record(work)
        if not self._is_sent:
            with torch.cuda.stream(self._copies):
                self._copies.wait_event(self._used)
                self._there[:n_bytes].copy_(self._bytes[:n_bytes], non_blocking=True)
                self._copied.record(self._copies)
            work.wait_event(self._copied)
            self._is_sent = True
        return self._there

    def release(self) -> None:
        """Let the next copy wait for what was launched so far."""
        self._is_sent = False
        self._used.record(torch.cuda.current_stream(self._device))


def _event() -> torch.cuda.Event:
    """Event on which threads wait asleep: a processor that spins decodes nothing."""
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]


class CudaSeam:
    """One graphics card."""

    likes_half = True
    likes_compiled = True
    most_at_once = 2**11  # beyond that, maps have more values than 32 bits can count

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def slots(self, n: int, n_bytes: int) -> Iterator[Sequence[Slot]]:
        """Room in page-locked memory, with one stream for all copies."""
        copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        try:
            yield [_CudaSlot(n_bytes, self.device, copies) for _ in range(n)]
        finally:
            # Memory that is still being written must not be handed to anyone else.
            copies.synchronize()

    def fetch(self, values: torch.Tensor) -> Fetched:
        """Copy behind the work that makes the values, and wait for that alone when asked."""
        here = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        here.copy_(values, non_blocking=True)
        arrived = _event()
        arrived.record(torch.cuda.current_stream(self.device))

        def get() -> NDArray[np.float32]:
            arrived.synchronize()
            numbers: NDArray[np.float32] = here.numpy()
            return numbers

        return get

    def free_bytes(self) -> int | None:
        """What the card has left, and what torch keeps for later."""
        free, _ = torch.cuda.mem_get_info(self.device)
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(free + kept)

    def peak_bytes(self, action: Callable[[], object]) -> int:
        """Run the action and ask the allocator."""
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        action()
        torch.cuda.synchronize(self.device)
        return int(torch.cuda.max_memory_allocated(self.device) - before)

    def forget(self) -> None:
        """Empty the allocator's cache."""
        torch.cuda.empty_cache()

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Keep cuDNN from rounding to 10 bits on the way, and make the card the current one."""
        with (
            torch.cuda.device(self.device),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False, fp32_precision="ieee"),
        ):
            yield


Slot: TypeAlias = _HostSlot | _CudaSlot
"""Room for one sub-batch, on both sides."""

Seam: TypeAlias = CpuSeam | CudaSeam
"""What the device scorer asks of the machine."""


def seam_of(device: str) -> Seam:
    """Find the seam of "cpu", "cuda" or "cuda:N".

    Raises
    ------
    ClusterError
        If the device is not there.
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        return CpuSeam()
    if kind != "cuda":
        raise ClusterError(f"device: expected cpu, cuda or cuda:N, found '{device}'; pass --device")
    if not torch.cuda.is_available():
        raise ClusterError(
            f"device '{device}': expected a CUDA device, found none that torch {torch.__version__} "
            "can use; pass --device cpu"
        )
    return CudaSeam(torch.device(device))
