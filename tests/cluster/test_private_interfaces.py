"""Every interface of Dask that Dask does not document and this package rests on, by its name.

If a test here fails after an update, what it names has gone or changed: see decision 18 on what it
is used for, and look at `sfxreduce/cluster` before the upper bound in `pyproject.toml` is raised.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import time
from operator import attrgetter
from pathlib import Path

import dask
import distributed
import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster, Status, Worker
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.http.routing import RoutingApplication
from distributed.security import Security
from distributed.utils import LoopRunner

import sfxreduce
from sfxreduce.cluster.answers import admit

IMPORTED = {
    "dask.base": {"tokenize"},
    "dask.core": {"flatten"},
    "dask.highlevelgraph": {"HighLevelGraph"},
    "dask.local": {"get_sync"},
    "dask.optimization": {"cull"},
    "dask.typing": {"Key"},
    "dask.utils": {"parse_bytes"},
    "distributed.client": {"ClosedClientError", "FutureCancelledError"},
    "distributed.comm.addressing": {"get_address_host", "parse_address"},
    "distributed.comm.core": {"CommClosedError", "connect"},
    "distributed.diagnostics.plugin": {"SchedulerPlugin"},
    "distributed.protocol": {"pickle"},
    "distributed.security": {"Security"},
    "distributed.system": {"MEMORY_LIMIT"},
    "distributed.utils": {"LoopRunner", "get_ip", "get_ip_interface", "silence_logging_cmgr"},
}
DOCUMENTED = {"dask", "dask.array", "dask.config", "distributed"}

ATTRIBUTES = [
    (distributed.protocol.pickle, "dumps"),
    (distributed.protocol.pickle, "loads"),
    (dask.highlevelgraph.HighLevelGraph, "cull"),
    (Security, "get_connection_args"),
    (LoopRunner, "run_sync"),
    (Nanny, "status"),
    (RoutingApplication, "add_application"),
    (Scheduler, "start_http_server"),
    (SchedulerPlugin, "transition"),
    (SchedulerPlugin, "add_worker"),
    (Scheduler, "add_plugin"),
    (SpecCluster, "loop"),
    (SpecCluster, "__await__"),
    (Status, "running"),
    (Status, "paused"),
    (Worker, "log_event"),
    (Worker, "set_resources"),
    (Client, "subscribe_topic"),
    (Client, "unsubscribe_topic"),
    (Client, "get_events"),
    (Client, "unregister_worker_plugin"),
    (Status, "closed"),
    (Status, "failed"),
]

PARAMETERS = [
    (Client.cancel, {"asynchronous"}),
    (Client.gather, {"errors", "asynchronous"}),
    (Client.get, {"keys", "sync", "resources", "retries"}),
    (Client.map, {"key", "pure", "retries", "resources"}),
    (Client.run, {"workers"}),
    (Client.restart_workers, {"timeout", "raise_for_error"}),
    (Client.scheduler_info, {"n_workers"}),
    (Client.sync, {"callback_timeout"}),
    (LoopRunner, {"asynchronous"}),
    (Nanny, {"host", "security", "nthreads", "resources", "memory_limit", "silence_logs", "env"}),
    (Scheduler, {"allowed_failures", "worker_ttl"}),
    (Scheduler.identity, {"n_workers"}),
    (Scheduler.register_worker_plugin, {"plugin", "name", "idempotent"}),
    (Scheduler.remove_worker, {"address", "stimulus_id", "expected"}),
    (distributed.comm.core.connect, {"timeout"}),
]

QUESTIONS = (
    "identity", "ncores", "processing", "who_has", "unregister", "register_worker_plugin",
)  # fmt: skip
"""What `Flow` and `RollCall` ask a scheduler by the name of its handler."""


def _imports() -> dict[str, set[str]]:
    """What this package imports from modules of Dask, by module."""
    names: dict[str, set[str]] = {}
    for file in Path(sfxreduce.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                pairs = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                pairs = [(node.module or "", alias.name) for alias in node.names]
            else:
                continue
            for module, name in pairs:
                if module.partition(".")[0] in ("dask", "distributed"):
                    names.setdefault(module, set()).add(name)
    return names


def test_no_interface_is_used_that_is_not_named_here() -> None:
    imported = {m: names for m, names in _imports().items() if m not in DOCUMENTED}
    assert imported == IMPORTED


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in IMPORTED for name in sorted(IMPORTED[module])]
)
def test_what_is_imported_is_there(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name), f"{module}.{name} has gone"


@pytest.mark.parametrize(("owner", "name"), ATTRIBUTES)
def test_attributes_are_there(owner: object, name: str) -> None:
    assert hasattr(owner, name), f"{owner}.{name} has gone"


@pytest.mark.parametrize(("function", "names"), PARAMETERS)
def test_parameters_are_there(function: object, names: set[str]) -> None:
    assert callable(function)
    missing = names - set(inspect.signature(function).parameters)
    assert not missing, f"{function} takes no {sorted(missing)} any more"


def test_a_cluster_answers_every_question_that_is_asked() -> None:
    with (
        distributed.LocalCluster(
            n_workers=1, processes=False, dashboard_address=None, resources={"GPU": 1}
        ) as cluster,
        Client(cluster) as client,
    ):
        for question in QUESTIONS:
            assert question in cluster.scheduler.handlers, f"no scheduler answers '{question}'"
        (address,) = client.sync(client.scheduler.ncores, callback_timeout=60)
        assert address in client.sync(client.scheduler.processing, callback_timeout=60)
        identity = client.sync(client.scheduler.identity, callback_timeout=60, n_workers=-1)
        for workers in (identity["workers"], client.scheduler_info(n_workers=-1)["workers"]):
            assert {"nanny", "resources"} <= set(workers[address]), "a worker's description changed"
        assert cluster.workers.keys() == cluster.worker_spec.keys()
        worker = cluster.workers[0]
        assert isinstance(worker, Worker)
        assert attrgetter("memory_manager.memory_limit")(worker) is not None


def test_words_and_settings_of_dask_that_are_compared_or_set() -> None:
    from sfxreduce.cluster.in_flight import NOT_UNDERSTOOD

    source = inspect.getsource(distributed.scheduler)
    assert NOT_UNDERSTOOD in source, "the error for a task that cannot be unpickled reads otherwise"
    assert dask.config.get("distributed.deploy.lost-worker-timeout")
    assert hasattr(Security(), "require_encryption")
    # What a worker's silence, its end and its memory are called among the events.
    for word in ('"worker-ttl-timed-out"', '"remove-worker"', '"expected": expected'):
        assert word in source
    assert '"worker-restart-memory"' in inspect.getsource(distributed.worker_memory)


def unrunnable(dask_scheduler: Scheduler) -> list[object]:
    return [task.key for task in dask_scheduler.unrunnable]


def test_a_task_that_waits_for_a_resource_is_given_to_a_worker_that_is_found_to_have_it() -> None:
    # A scheduler does not look again by itself: see `sfxreduce.cluster.answers.admit`.
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        waiting = client.submit(int, 7, resources={"token": 1}, pure=False)
        deadline = time.monotonic() + 30
        while waiting.key not in client.run_on_scheduler(unrunnable):
            assert time.monotonic() < deadline
        client.run(admit, "token")
        assert waiting.result(timeout=30) == 7
