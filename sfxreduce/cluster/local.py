"""Workers on this machine: processes that listen on 127.0.0.1 only, and talk to nobody else.

Every user of a machine reaches 127.0.0.1, and a scheduler runs whatever it is sent. So each cluster
has an authority of its own for as long as it lives (docs/decisions/0022).
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from multiprocessing import resource_tracker
from pathlib import Path

import dask
from distributed import LocalCluster, Nanny, Scheduler, SpecCluster
from distributed.security import Security
from distributed.system import MEMORY_LIMIT

from sfxreduce.cluster.forks import start_origin

__all__ = ["local_cluster", "visible_cards"]

HOST = "127.0.0.1"
DASHBOARD = "127.0.0.1:0"

ALLOWED_FAILURES = 3
"""Deaths of workers that a task may be near to. Most tasks have nothing to do with them: one that
had to do with more is set aside, not given up."""

WORKER_TTL = "120 s"
"""Silence after which a worker is restarted. It is looked for as often: at most twice as long.

A worker that loads torch on a busy machine, or is held by a C library, may be silent for a while
and is well."""

ENVIRONMENT = "distributed.nanny.pre-spawn-environ"
KEPT_BY_WORKERS = {"MALLOC_TRIM_THRESHOLD_": 512 << 20, "MALLOC_MMAP_THRESHOLD_": 256 << 20}
"""Bytes that a worker keeps for its next task, for the allocator of the GNU C library. Dask's own
64 kB gives the pages of every batch back: 3.2 million page faults for 320 frames instead of 0.3,
and 11 seconds of system time instead of 4.6. The environment of the user is stronger."""

SCHEDULER = {"allowed_failures": ALLOWED_FAILURES, "worker_ttl": WORKER_TTL}


def local_cluster(n_workers: int, *, gpu: bool, security: Security | None = None) -> SpecCluster:
    """Start workers on this machine that listen on 127.0.0.1 only.

    Parameters
    ----------
    n_workers : int
        Worker processes; 0 for one per processor or, with `gpu`, per graphics card.
    gpu : bool
        Whether they offer the resource ``GPU``.
    security : distributed.security.Security, optional
        Certificates; by default new ones, whose key never leaves the memory of these processes.
    """
    security = security or Security.temporary()
    processors = len(os.sched_getaffinity(0))
    # Ctrl-C, and the end of a terminal, reach every process of it. Workers inherit this mask and
    # leave them to us. So does the resource tracker, which sees to Ctrl-C itself: started later, it
    # would undo this.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        environment = dask.config.get(ENVIRONMENT) | KEPT_BY_WORKERS
        start_origin(environment)
        with dask.config.set({ENVIRONMENT: environment}):
            if gpu:
                return _gpu_cluster(n_workers, visible_cards(), security)
            return LocalCluster(
                n_workers=n_workers or processors,
                threads_per_worker=1,
                host=HOST,
                dashboard_address=DASHBOARD,
                security=security,
                scheduler_kwargs=SCHEDULER,
                silence_logs=logging.CRITICAL,
                env=dict(os.environ),  # that of the process it is a fork of may be older
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def visible_cards() -> list[str]:
    """Graphics cards that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [card.strip() for card in named.split(",")]
    # The driver lists its cards; torch would open all of them to count them.
    cards = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(cards.iterdir())))] if cards.is_dir() else []


def _gpu_cluster(n_workers: int, cards: Sequence[str], security: Security) -> SpecCluster:
    """Workers that see one card each; more workers than cards share them in turn."""
    cards = cards or ["0"]
    n_workers = n_workers or len(cards)
    shared = {
        "host": HOST,
        "security": security,
        "protocol": "tls://",
    }
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                **shared,
                "nthreads": 1,
                "resources": {"GPU": 1},
                "memory_limit": MEMORY_LIMIT // n_workers,  # by itself, one thread's share
                "silence_logs": logging.CRITICAL,
                # Set before the worker starts: CUDA reads it once per process.
                "env": os.environ | {"CUDA_VISIBLE_DEVICES": cards[number % len(cards)]},
            },
        }
        for number in range(n_workers)
    }
    options = {**shared, **SCHEDULER, "dashboard_address": DASHBOARD, "port": 0}
    return SpecCluster(
        workers=workers,
        scheduler={"cls": Scheduler, "options": options},
        security=security,
        silence_logs=logging.CRITICAL,
    )
