"""Workers of this machine are forks of one process that has loaded what they need.

That process does nothing but load and fork, so that no worker has half of a thread or of a lock of
somebody who was at work. A worker is there in a tenth of a second, also one that takes the place of
another, and modules are loaded once instead of once for each.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver

import dask.config

__all__ = ["forked_workers", "start_origin"]

METHOD = "forkserver"
"""As ``multiprocessing`` calls this way to start a process."""

HOW_STARTED = "distributed.worker.multiprocessing-method"

OURS = ("sfxreduce", "sfxreduce_cli")
ALSO_LOADED = ("distributed", "sfxreduce.cluster.kernel_types")


@contextmanager
def forked_workers() -> Iterator[None]:
    """Have workers be forks as long as the block lasts, also those that take another's place."""
    with dask.config.set({HOW_STARTED: METHOD}):
        yield


def start_origin(environment: Mapping[str, object]) -> None:
    """Start the process of which workers are forks, unless it runs; it loads in the background.

    It loads what this process has loaded of this package.

    Parameters
    ----------
    environment : mapping
        Variables of workers; those of this process are stronger, and None is none.
    """
    loaded = [name for name in sys.modules if name.partition(".")[0] in OURS]
    multiprocessing.get_context(METHOD).set_forkserver_preload([*ALSO_LOADED, *loaded])
    with _set(environment):
        forkserver.ensure_running()


@contextmanager
def _set(environment: Mapping[str, object]) -> Iterator[None]:
    """Have variables set as long as the block lasts, where they are not."""
    missing = {
        name: str(value)
        for name, value in environment.items()
        if value is not None and name not in os.environ
    }
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
