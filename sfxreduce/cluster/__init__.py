"""Where the work runs: in this process, on a cluster of this machine, or on a pool elsewhere.

`pool` says what a pool is. `dask_pool` hands tasks to workers, `flow` waits for them, `suspects`
deals with tasks that end their workers, `alone` runs one call in a process of its own. `local`
starts workers on this machine, `connection` reaches others, `security` says who may talk to them.
"""

from __future__ import annotations

from sfxreduce.cluster.dask_pool import BLOCKS_AT_ONCE, DaskPool
from sfxreduce.cluster.in_flight import PATIENCE_SECONDS, TASKS_PER_THREAD
from sfxreduce.cluster.open import open_pool
from sfxreduce.cluster.pool import Pool, SerialPool

__all__ = [
    "BLOCKS_AT_ONCE",
    "PATIENCE_SECONDS",
    "TASKS_PER_THREAD",
    "DaskPool",
    "Pool",
    "SerialPool",
    "open_pool",
]
