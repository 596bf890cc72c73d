"""Memory, measured in a process of its own: other threads of a test's process would be counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def traced_peak(act: Callable[[], object]) -> int:
    """Most bytes that Python had allocated at once while it acted."""
    tracemalloc.start()
    act()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def elsewhere(file: str, function: str, *arguments: object) -> Any:
    """Call a function of a test file in a fresh process; what it returns has to be plain JSON."""
    path = Path(file)
    call = f"import json, {path.stem} as m; print(json.dumps(m.{function}(*{arguments!r})))"
    done = subprocess.run(
        [sys.executable, "-c", call],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(path.parent), str(HERE), *filter(None, sys.path)])}
        | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
