"""Loaded by the process of which workers are forks: Numba's types, half a second for each process.

Numba loads them with the first kernel that is called.
"""

from __future__ import annotations

from sfxreduce._numba import load_types

__all__: list[str] = []

load_types()
