"""Where the work runs: in this process, on a cluster of this machine, or on a pool elsewhere.

`pool` says what a pool is. `dask_pool` hands tasks to workers, `in_flight` waits for them,
`suspects` deals with tasks that end their workers, `isolated` runs one call in its own process.
`roll_call` lets no worker have a task before its `answers` passed the `verdict`; `restarts` lists
those that were lost.
`local` starts workers on this machine, `connection` reaches others, `security` says who may talk to
them.
"""

from __future__ import annotations

from sfxreduce.cluster.open import open_pool
from sfxreduce.cluster.pool import IN_PROCESS, Pool, SerialPool

__all__ = ["IN_PROCESS", "Pool", "SerialPool", "open_pool"]
