"""Processes of their own: what they say is heard, however late it is looked at."""

from __future__ import annotations

import subprocess
import sys
import time

from sfxreduce.io.process import read_outputs, start_process

LATE = "import time; time.sleep(0.3); print('answer', flush=True)"


def test_what_a_process_says_while_nobody_looks_is_heard() -> None:
    # It spoke and ended between two looks of a busy machine, and "said nothing".
    process = start_process([sys.executable, "-c", LATE], stderr=subprocess.PIPE)
    answer, _ = read_outputs(process, lambda _: time.sleep(1.0))
    assert answer == b"answer\n"
    assert process.returncode == 0
