"""What figures depend on: the machine, and the packages that were installed on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["machine"]

_PACKAGES = ("sfxreduce", "numpy", "numba", "torch", "dask", "distributed", "zarr", "numcodecs")


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
