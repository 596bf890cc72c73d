"""Open a pool, whichever is asked for, and close it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfxreduce.cluster.pool import PATIENCE_SECONDS, Pool, SerialPool, unheard
from sfxreduce.errors import UsageError

__all__ = ["open_pool"]


@contextmanager
def open_pool(
    *,
    serial: bool = False,
    scheduler: str = "",
    n_workers: int = 0,
    gpu: bool = False,
    security: Path | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    drop_bad_workers: bool = False,
    tell: Callable[[str], None] = unheard,
) -> Iterator[Pool]:
    """Open a pool and close it with the block.

    Parameters
    ----------
    serial : bool
        Work in this process.
    scheduler : str
        Address of a running Dask scheduler, as ``tcp://127.0.0.1:8786``.
    n_workers : int
        Worker processes on this machine, reached at 127.0.0.1 only; 0 for one per processor.
    gpu : bool
        Whether the workers of that cluster offer the resource ``GPU``.
    security : Path, optional
        Certificates, see `read_security`; needed for a scheduler on another machine.
    patience_seconds : float
        Without any task done, after which workers are restarted.
    drop_bad_workers : bool
        Do without workers that fail the roll call; else the work stops.
    tell : callable
        Given a line about each worker that is lost, retired or done without.

    Raises
    ------
    UsageError
        If both a scheduler and serial work are asked for, or the certificates are none.
    RefusedError
        If the connection to another machine would not be encrypted, or others can read the key.
    ClusterError
        If the scheduler does not answer.
    """
    if serial and scheduler:
        raise UsageError("--serial and --scheduler exclude each other; drop one of them")
    if serial and security:
        raise UsageError("--serial talks to nobody; drop --serial or --security")
    if not patience_seconds > 0:
        raise UsageError(f"expected a patience of more than 0 seconds, found {patience_seconds}")
    if serial:
        yield SerialPool()
        return
    from sfxreduce.cluster.dask_pool import open_dask_pool  # half a second, of no use above

    how: dict[str, Any] = {"drop_bad_workers": drop_bad_workers, "tell": tell}
    with open_dask_pool(
        scheduler, n_workers, gpu=gpu, security=security, patience_seconds=patience_seconds, **how
    ) as pool:
        yield pool
