"""Open a pool, whichever is asked for, and close it again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Client
from distributed.security import Security
from distributed.utils import silence_logging_cmgr

from sfxreduce.cluster.connection import connect
from sfxreduce.cluster.dask_pool import DaskPool
from sfxreduce.cluster.in_flight import PATIENCE_SECONDS
from sfxreduce.cluster.local import local_cluster
from sfxreduce.cluster.pool import Pool, SerialPool
from sfxreduce.cluster.respawn import kept_in_number
from sfxreduce.cluster.security import read_security
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
) -> Iterator[Pool]:
    """Open a pool and close it with the block.

    Parameters
    ----------
    serial : bool
        Work in this process.
    scheduler : str
        Address of a running Dask scheduler, as ``tcp://127.0.0.1:8786``.
    n_workers : int
        Worker processes of a cluster on this machine; 0 for one per processor. It listens on
        127.0.0.1 only.
    gpu : bool
        Whether the workers of that cluster offer the resource ``GPU``.
    security : Path, optional
        Certificates, see `sfxreduce.cluster.security.read_security`. A scheduler on another machine
        is not talked to without them.
    patience_seconds : float
        Without any task done, after which workers are restarted, and what they were at is tried
        alone.

    Raises
    ------
    UsageError
        If both a scheduler and serial work are asked for, or the certificates are none.
    RefusedError
        If the scheduler is on another machine and the connection would not be encrypted, or others
        can read the key.
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
    certificates = read_security(security) if security else None
    clients = (
        _connected(scheduler, certificates)
        if scheduler
        else _own_cluster(n_workers, gpu, certificates)
    )
    with clients as client:
        yield DaskPool(client, patience_seconds=patience_seconds)


@contextmanager
def _connected(scheduler: str, certificates: Security | None) -> Iterator[Client]:
    # What goes wrong is told in one line, here; Dask would add pages of its own.
    with (
        silence_logging_cmgr(logging.CRITICAL),
        connect(scheduler, security=certificates) as client,
    ):
        yield client


@contextmanager
def _own_cluster(n_workers: int, gpu: bool, certificates: Security | None) -> Iterator[Client]:
    with (
        local_cluster(n_workers, gpu=gpu, security=certificates) as cluster,
        kept_in_number(cluster),
        Client(cluster) as client,
    ):
        yield client
