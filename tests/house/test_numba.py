"""Machine code: what another version left behind does no harm, and short loops count nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

KERNEL = """
from typing import NamedTuple

from sfxreduce._numba import compiled

class {name}(NamedTuple):
    low: int

@compiled
def above(value, limits):
    return value {relation} limits.low

print(above(3, {name}(3)), above.stats.cache_hits.total())
"""


def run(folder: Path, *, name: str, relation: str) -> list[str]:
    """Write the kernel as it is in one version, and use it; what it says and what was cached."""
    (folder / "kernel.py").write_text(KERNEL.format(name=name, relation=relation))
    done = subprocess.run(
        [sys.executable, "-c", "import kernel"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_code_of_a_class_that_was_renamed_is_compiled_again(tmp_path: Path) -> None:
    # It was once an AttributeError out of a pickle, whatever command was given.
    assert run(tmp_path, name="Limits", relation=">") == ["False", "0"]
    assert list((tmp_path / "__pycache__").glob("kernel.above*.nbi"))
    assert run(tmp_path, name="PeakLimits", relation=">=") == ["True", "0"]
    assert run(tmp_path, name="PeakLimits", relation=">=")[0] == "True"


BORROWER = """
import numpy as np

from sfxreduce._numba import compiled

@compiled{how}
def total(rows):
    found = 0.0
    for i in range(len(rows)):
        found += first(rows, i)
    return found

@compiled{how}
def first(rows, i):
    {made}
    return rows[i][0]

assert total(np.ones((3, 2))) == 3.0
print(sum("NRT_incref" in code for code in total.inspect_asm().values()))
"""


@pytest.mark.parametrize(
    ("how", "made", "said"),
    [
        ("(borrows=True, cache=False)", "", "0"),
        ("(cache=False)", "rows = rows[::-1].copy()[::-1]", "1"),
        ("(borrows=True, cache=False)", "rows = rows.copy()", "NRT required"),
    ],
)
def test_a_kernel_that_borrows_counts_no_holders_and_makes_no_arrays(
    how: str, made: str, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BORROWER.format(how=how, made=made)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert said in (done.stdout.strip() or done.stderr)
