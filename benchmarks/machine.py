"""What figures depend on: the machine, its packages, and who else used it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

__all__ = ["IDLE_BELOW", "Others", "machine"]

_PACKAGES = ("sfxreduce", "numpy", "numba", "torch", "dask", "distributed", "zarr", "numcodecs")

IDLE_BELOW = 0.05
"""Share of a machine that others may use while it counts as idle: what the system does for itself
came to 1 to 2 % on two cores with nothing started."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """Describe the machine, as far as figures depend on it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


class Others:
    """What everybody else uses of the machine, from now on.

    A virtual machine's host is one of them, as far as it says what it takes away.
    """

    def __init__(self) -> None:
        self._busy_s, self._at = _busy_s(), time.perf_counter()

    def share(self, own_cpu_s: float) -> float:
        """Share of the machine's processors, less what was used by oneself."""
        wall_s = time.perf_counter() - self._at
        others_s = max(_busy_s() - self._busy_s - own_cpu_s, 0.0)
        return others_s / (wall_s * (os.cpu_count() or 1))


def _busy_s() -> float:
    """CPU seconds that all processors were not idle, or were taken away from the machine."""
    of_cpus = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, of_cpus[:8])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S
