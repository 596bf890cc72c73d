"""A site's own script as an archive. Nothing it says is believed unless it has the agreed form."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfxreduce.archive.tape.backends.protocol import Capabilities, check_pool
from sfxreduce.archive.tape.paths import check_path
from sfxreduce.archive.tape.receipts import Receipt, receipt_from_json
from sfxreduce.archive.tape.trusted import open_trusted
from sfxreduce.errors import ArchiveError, OutputExists, SchemaError
from sfxreduce.io.files.safe_read import parse_as, parse_json
from sfxreduce.io.process import how_it_ended, last_line, read_outputs, start_process

__all__ = ["TIMEOUT_S", "ScriptBackend"]

TIMEOUT_S = 24 * 3600
"""A tape library may well take hours to answer."""

ANSWER_BYTES = 1 << 20
"""A receipt has some hundred bytes, and a tape library at most `MAX_POOLS` pools to name."""

TRY_LATER = 75
"""Exit status of a program that could not do it now (EX_TEMPFAIL of sysexits)."""

TOLD = ("path", "size", "algorithm", "value", "value_source", "state", "copies")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptBackend:
    """An archive behind a script: ``SCRIPT put|query|recall|capabilities ...``, JSON on stdout.

    The contract stands in ``docs/reference/backends.md``.

    Parameters
    ----------
    name : str
        For receipts.
    timeout_s : float
        For each call.

    Raises
    ------
    ArchiveError
        If it is no program.
    RefusedError
        If others than the caller and root could change it, or a folder that leads to it.
    """

    script: Path
    name: str
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        os.close(self._opened())

    def capabilities(self) -> Capabilities:
        """Ask the script what it can do.

        Raises
        ------
        ArchiveError
            If the answer has not the agreed form.
        """
        facts, _ = self._ask("capabilities")
        try:
            capabilities = parse_as(Capabilities, facts)
        except ValueError as error:
            raise ArchiveError(
                f"{self.name}: expected capabilities as agreed, found others ({error}); see the "
                "reference of backends"
            ) from error
        for pool in capabilities.pools:
            check_pool(pool)
        return capabilities

    def put(self, local: Path, path: str, *, pool: str) -> Receipt:
        """Have the script put a file; see `Backend.put`."""
        named = check_path(path, where=self.name)
        return self._receipt("put", str(local.absolute()), named, check_pool(pool))

    def query(self, path: str, *, pool: str) -> Receipt:
        """Ask the script about a file; see `Backend.query`."""
        return self._receipt("query", check_path(path, where=self.name), check_pool(pool))

    def recall(self, path: str, into: Path, *, pool: str) -> None:
        """Have the script bring a file back; see `Backend.recall`."""
        if os.path.lexists(into):
            raise OutputExists(f"{into}: already exists; recall into an empty folder")
        named = check_path(path, where=self.name)
        self._run("recall", named, str(into.absolute()), check_pool(pool))
        if not into.is_file() or into.is_symlink():
            raise ArchiveError(f"{self.name}: said it recalled '{path}', but left no file")

    def _receipt(self, *arguments: str) -> Receipt:
        """Answer of the script as a receipt; what is missing in it is not made up."""
        facts, raw = self._ask(*arguments)
        where = f"{self.name} {arguments[0]}"
        if not set(facts) <= {*TOLD, "tool"}:
            raise ArchiveError(f"{where}: expected the fields {TOLD}, found {sorted(facts)[:20]}")
        ours = {
            "backend": self.name,
            "queried_at_ns": time.time_ns(),
            "tool": str(facts.get("tool", self.script)),
            "raw_sha256": hashlib.sha256(raw).hexdigest(),
        }
        try:
            return receipt_from_json({**facts, **ours}, where=where)
        except SchemaError as error:
            raise ArchiveError(str(error)) from error

    def _ask(self, *arguments: str) -> tuple[dict[str, Any], bytes]:
        raw = self._run(*arguments)
        try:
            facts = parse_json(raw)
        except ValueError as error:
            raise ArchiveError(
                f"{self.name} {arguments[0]}: expected one JSON object, found something else "
                f"({raw[:80]!a})"
            ) from error
        if not isinstance(facts, dict):
            raise ArchiveError(f"{self.name} {arguments[0]}: expected one JSON object")
        return facts, raw

    def _opened(self) -> int:
        """Descriptor of the script, which nobody else could have changed."""
        try:
            descriptor = open_trusted(self.script)
        except OSError as error:
            raise ArchiveError(
                f"{self.name}: expected a program, found none ({error.strerror or error}); check "
                "path and mode"
            ) from error
        if not os.fstat(descriptor).st_mode & 0o111:
            os.close(descriptor)
            raise ArchiveError(f"{self.name}: expected a program, found none; check path and mode")
        return descriptor

    def _run(self, *arguments: str) -> bytes:
        """Run the script and give what it wrote to its standard output; refuse what is too much."""
        name = f"{self.script} {arguments[0]}"
        deadline = time.monotonic() + self.timeout_s

        def check(answer: bytearray) -> None:
            if time.monotonic() > deadline:
                raise ArchiveError(f"{name}: did not end in time; raise its timeout")
            if len(answer) > ANSWER_BYTES:
                raise ArchiveError(f"{name}: expected an answer of at most {ANSWER_BYTES} bytes")

        # What was checked is what runs, whatever lies under its name by then.
        descriptor = self._opened()
        try:
            process = start_process(
                [f"/proc/self/fd/{descriptor}", *arguments],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                pass_fds=(descriptor,),
            )
        except OSError as error:
            raise ArchiveError(f"{name}: cannot be run ({error.strerror or error})") from error
        finally:
            os.close(descriptor)
        answer, complaint = read_outputs(process, check)
        if status := process.returncode:
            advice = "try again later" if status == TRY_LATER else "see the archive's log"
            raise ArchiveError(f"{name}: {how_it_ended(status)} ({last_line(complaint)}); {advice}")
        return answer
