"""Filter runs that are killed, starved of disk, or lose their power: nothing is lost, none lies.

A bounded set of ``tests/faults/soak.py``, which runs in a process of its own: it forks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOAK = Path(__file__).with_name("soak.py")
FEW = ("--commands=40", "--random=30", "--calls=30", "--errors=15", "--cuts=30", "--full=15")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of each kind of fault."""
    found = tmp_path_factory.mktemp("faults") / "faults.json"
    done = subprocess.run(
        [sys.executable, str(SOAK), *FEW, "--json", str(found)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.exists(), done.stderr
    rows = json.loads(found.read_text())["faults"]
    return {row["kind"]: row for row in rows}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "trials"),
    [
        ("command", 40),
        ("kill", 30),
        ("call", 30),
        ("EIO", 15),
        ("ENOSPC", 15),
        ("disk full", 15),
        ("power cut", 30),
    ],
)
def test_no_output_lies_and_nothing_acknowledged_is_lost(
    faults: dict[str, dict[str, Any]], kind: str, trials: int
) -> None:
    row = faults[kind]
    if "skipped" in row:
        pytest.skip(row["skipped"])
    assert row["violations"] == 0, row["first"]
    assert row["trials"] == trials
