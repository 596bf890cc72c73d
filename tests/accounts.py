"""Accounts of this machine that are nobody's, and commands that they give; it takes root."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sfxreduce_cli.main import main

__all__ = ["GROUP", "Account", "need_root", "open_folder"]

GROUP = 61_000


@dataclass(frozen=True)
class Account:
    """One account, perhaps a member of the group."""

    uid: int
    in_group: bool = True
    umask: int = 0o022

    def does(self, action: Any) -> int:
        """Call something as this account, in a process of its own: its exit status."""
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        status = 97
        try:
            os.setgroups([GROUP] if self.in_group else [])
            os.setgid(self.uid)
            os.setuid(self.uid)
            os.umask(self.umask)
            os.environ["LOGNAME"] = f"account{self.uid}"
            status = int(action() or 0)
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            os._exit(status)

    def types(self, *words: object) -> tuple[int, Any, str]:
        """Give a command: exit status, what it printed as JSON, and what it said."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:

            def command() -> None:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                sys.argv = ["sfxreduce", *map(str, words), "--json"]
                try:
                    main()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()

            status = self.does(command)
            out.seek(0)
            err.seek(0)
            said = out.read().decode()
            return status, json.loads(said) if said else None, err.read().decode()


def need_root() -> None:
    """Skip a test that becomes other accounts where this one cannot."""
    if os.geteuid():
        pytest.skip("needs root, to act as three accounts; this is another one")


@contextmanager
def open_folder() -> Iterator[Path]:
    """Folder that every account can enter; those of the tests are their owner's alone."""
    folder = Path(tempfile.mkdtemp(prefix="sfxreduce-accounts-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
