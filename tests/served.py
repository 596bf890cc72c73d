"""Commands that serve a page, until they are told to stop."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

__all__ = ["Served", "serving"]

TOKEN = re.compile(r"(http://127\.0\.0\.1:\d+/\S+token=\S+)")


class Served:
    """A command that serves a page: its address once it is said, and what it says after that."""

    def __init__(self, *words: object, folder: Path) -> None:
        command = [sys.executable, "-m", "sfxreduce_cli", *map(str, words)]
        self.process = psutil.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.said: list[str] = []
        self.address = ""
        found = threading.Event()

        def listen() -> None:
            for line in self.process.stderr:
                self.said.append(line)
                address = TOKEN.search(line)
                if address and not self.address:
                    self.address = address[1]
                    found.set()
            found.set()

        self._listener = threading.Thread(target=listen, daemon=True)
        self._listener.start()
        assert found.wait(120)
        assert self.address, self.said

    def ended(self) -> tuple[int, str]:
        """Exit status, and what it printed."""
        printed = self.process.stdout.read()
        self._listener.join(60)
        return self.process.wait(60), printed

    def kill(self) -> None:
        with suppress(psutil.Error):  # it may have ended by itself
            for one in [*self.process.children(recursive=True), self.process]:
                one.kill()
        self.process.wait(60)
        self.process.stdout.close()
        self._listener.join(60)
        self.process.stderr.close()


@contextmanager
def serving(*words: object, folder: Path) -> Iterator[Served]:
    served = Served(*words, folder=folder)
    try:
        yield served
    finally:
        served.kill()
