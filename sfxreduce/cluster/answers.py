"""What a worker answers when the roll is called: what it is made of, and what it sees.

This is the part that runs on workers. The answer comes from a thread of its own, as loading modules
may take minutes on a busy file system, and a worker that says nothing meanwhile is taken for dead.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import socket
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distributed import Status, Worker, WorkerPlugin

from sfxreduce.errors import SourceError
from sfxreduce.io.files.durable import write_file
from sfxreduce.io.files.safe_read import content_pin, read_small
from sfxreduce.io.files.sentinel import sentinel
from sfxreduce.io.store.manifest import made_here

__all__ = ["ALWAYS_ENOUGH", "Answering", "Question", "admit", "kernel_features", "signature"]

KERNEL_FEATURES = ("avx512f", "avx2", "avx", "fma", "sse4.2", "neon", "sve")
"""Features of a processor by which kernels are compiled one way or another."""

ALWAYS_ENOUGH = 1e9
"""Of the resource that admits a worker: any number of its tasks may run."""

NONCE_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What workers are asked.

    Parameters
    ----------
    topic : str
        Under which they answer.
    number : int
        Of the question.
    files : tuple of str
        See `sfxreduce.io.files.sentinel.sentinel`.
    folder : str
        Where the file `nonce` lies, and an answer to it is written.
    least_bytes : int
        Memory of a worker that loads the modules; one with less would die of it.
    """

    topic: str
    number: int
    files: tuple[str, ...] = ()
    folder: str = ""
    nonce: str = ""
    model: str = ""
    modules: tuple[str, ...] = ()
    least_bytes: int = 0


class Answering(WorkerPlugin):
    """Answers a question on every worker, also on those that join later."""

    def __init__(self, question: Question) -> None:
        self.question = question

    def setup(self, worker: Worker) -> None:
        """Begin to answer; the worker goes on with its start."""
        answer = threading.Thread(
            target=self._answer, args=(worker,), name="roll call", daemon=True
        )
        answer.start()

    def _answer(self, worker: Worker) -> None:
        asked = self.question
        told = {"number": asked.number, "address": worker.address, "name": str(worker.name)}
        # Another process may have the same address later.
        told["id"] = str(worker.id)
        try:
            told |= _facts(asked, worker)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
            told["failed"] = f"{type(error).__name__}: {error}"
        worker.log_event(asked.topic, told)


def _facts(asked: Question, worker: Worker) -> dict[str, Any]:
    """Everything that is asked; nothing is loaded where there is too little memory for it."""
    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "threads": worker.state.nthreads,
        "memory_bytes": worker.memory_manager.memory_limit or 0,
        "nanny": worker.nanny is not None,
        "gpu": float(worker.state.total_resources.get("GPU", 0)),
    }
    if 0 < facts["memory_bytes"] < asked.least_bytes:
        return facts
    for module in asked.modules:
        importlib.import_module(module)
    return facts | {
        **asdict(made_here()),
        "cpu": kernel_features(),
        "files": {path: sentinel(path) for path in asked.files},
        "model": _model(asked.model) if asked.model else "",
        "folder": _exchanged(asked, worker) if asked.folder else "",
    }


def kernel_features() -> str:
    """Features of this processor that choose a kernel, in words."""
    # With numba, which not every command loads.
    from llvmlite import binding  # type: ignore[import-untyped]

    on = binding.get_host_cpu_features()
    return " ".join(name for name in KERNEL_FEATURES if on.get(name)) or "none"


def _exchanged(asked: Question, worker: Worker) -> str:
    """Read what the client wrote where outputs are made, and write an answer there."""
    folder = Path(asked.folder)
    try:
        nonce = read_small(folder / asked.nonce, most_bytes=NONCE_BYTES)
        mine = signature(nonce, worker.address)
        write_file(folder / f"{asked.nonce}.{mine}", mine.encode())
    except Exception as error:  # noqa: BLE001 - a worker that cannot write says why
        return str(error)
    return mine


def signature(nonce: bytes, address: str) -> str:
    """What a worker answers to a nonce, in hexadecimal."""
    return hashlib.sha256(nonce + address.encode()).hexdigest()[:32]


async def admit(token: str, amount: float = ALWAYS_ENOUGH, *, dask_worker: Worker) -> None:
    """Let a worker have tasks that ask for this resource, or no longer."""
    await dask_worker.set_resources(**{token: amount})
    if amount and dask_worker.status == Status.running:
        # A scheduler looks for work that waits for a worker when one begins to run, and not when
        # one is found to have a resource.
        dask_worker.status = Status.paused
        dask_worker.status = Status.running


def _model(path: str) -> str:
    """Hash of the model, or why there is none."""
    try:
        return content_pin(Path(path)) if Path(path).exists() else "no such file or directory"
    except SourceError as error:
        return str(error)
