"""Nobody but this machine, or who holds the certificates, may talk to a cluster."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urljoin

import psutil
import pytest
from accounts import Account, need_root, open_folder
from commands import run
from distributed import LocalCluster
from distributed.comm.core import connect as open_comm
from distributed.security import Security
from elsewhere import scheduler_elsewhere
from planted import BrightestPixel, planted_run

from sfxreduce.cluster import SerialPool, open_pool
from sfxreduce.cluster.connection import connect
from sfxreduce.cluster.security import FILES, read_security
from sfxreduce.errors import ClusterError, RefusedError, SfxReduceError, UsageError
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.score import collect_scores


def certificates(folder: Path) -> Path:
    """A folder with an authority of its own, and a key."""
    folder.mkdir()
    made = Security.temporary()
    texts = {"ca": made.tls_ca_file, "cert": made.tls_client_cert, "key": made.tls_client_key}
    for kind, text in texts.items():
        (folder / FILES[kind]).touch(mode=0o600)
        (folder / FILES[kind]).write_text(text)
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("ours") / "tls")


@pytest.mark.parametrize("tls", [False, True])
def test_a_running_filter_listens_on_this_machine_only(
    tls: bool, ours: Path, tmp_path: Path
) -> None:
    ingest_run(planted_run(n_events=100), out=tmp_path / "run.zarr", pool=SerialPool())
    options = ["--security", str(ours)] if tls else []
    command = [
        sys.executable, "-m", "sfxreduce_cli", "filter", "--in", str(tmp_path / "run.zarr"),
        "--out", str(tmp_path / "hits.zarr"), "--scorer", "peaks", "--workers", "2", *options,
    ]  # fmt: skip
    found: set[tuple[str, int]] = set()
    with psutil.Popen(command, stderr=subprocess.PIPE, text=True) as filtering:
        while filtering.poll() is None:
            found |= listeners(filtering)
            time.sleep(0.1)
        assert filtering.returncode == 0, filtering.stderr.read()
    # The scheduler, its dashboard, two nannies, two workers and their dashboards.
    assert len(found) >= 6
    assert {address for address, _ in found} == {"127.0.0.1"}


def listeners(process: psutil.Process) -> set[tuple[str, int]]:
    """Addresses and ports on which a process, or one below it, waits for anybody."""
    found: set[tuple[str, int]] = set()
    try:
        for one in [process, *process.children(recursive=True)]:
            for open_ in one.net_connections(kind="inet"):
                if open_.status == psutil.CONN_LISTEN:
                    found.add((open_.laddr.ip, open_.laddr.port))
    except psutil.Error:
        pass  # it has just ended
    return found


STRANGER = Account(61_004, in_group=False)


ROUTES = (
    ("GET", "/sitemap.json"), ("GET", "/json/counts.json"), ("GET", "/info/main/workers.html"),
    ("GET", "/health"), ("GET", "/metrics"), ("GET", "/status"), ("GET", "/info/logs.html"),
    ("POST", "/api/v1/retire_workers"), ("POST", "/info/main/workers.html"),
)  # fmt: skip

N_PAGES = 400
"""More than the dashboard of two workers has; so many are followed from its own links."""


def pages(port: int) -> dict[str, tuple[int, bytes]]:
    """What a port says to those who speak HTTP, on each page that another one names.

    Nothing if it does not answer.
    """
    said: dict[str, tuple[int, bytes]] = {}
    routes = list(ROUTES)
    while routes and len(said) < N_PAGES:
        method, path = routes.pop(0)
        http = HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            http.request(method, path)
            answer = http.getresponse()
            body = answer.read()
        except (OSError, HTTPException):
            continue
        finally:
            http.close()
        said[f"{method} {path}"] = answer.status, body
        if "statics" in path or "static/" in path:
            continue
        texts = body.decode(errors="replace")
        links = re.findall(r"""(?:href|src)=["']([^"'#?]+)["']|"(/[\w./-]+)\"""", texts)
        for link in {urljoin(path, one or other) for one, other in links}:
            route = ("GET", link)
            if link.startswith("/") and f"GET {link}" not in said and route not in routes:
                routes.append(route)
    return said


def talks(port: int, security: Security | None) -> bool:
    """Whether a server of Dask answers somebody with these certificates, or without any."""

    async def ask() -> object:
        scheme = "tls" if security else "tcp"
        told = security.get_connection_args("client") if security else {}
        comm = await open_comm(f"{scheme}://127.0.0.1:{port}", timeout=3, **told)
        await comm.write({"op": "identity", "reply": True})
        return await comm.read()

    try:
        return bool(asyncio.run(asyncio.wait_for(ask(), 10)))
    except (OSError, ValueError, TimeoutError):
        return False


def tried(ports: list[int], report: Path, foreign: Security) -> None:
    """Try everything on every port, and write down what came of it."""
    facts = {
        port: {
            "plain": talks(port, None),
            "foreign": talks(port, foreign),
            "pages": {k: (status, body.hex()) for k, (status, body) in pages(port).items()},
        }
        for port in ports
    }
    report.write_text(json.dumps(facts))


WAITING = """
import sys, time
from pathlib import Path
from sfxreduce.pipeline import filter
from sfxreduce_cli.main import app

scored, go, *words = sys.argv[1:]
method_for = filter.method_for

def waits(*given, **named):
    Path(scored).touch()
    while not Path(go).exists():
        time.sleep(0.05)
    return method_for(*given, **named)

filter.method_for = waits
app(words)
"""
"""The command line, which stops for a look once all events have their scores."""


def test_another_account_gets_nothing_done_and_sees_no_frame(ours: Path, tmp_path: Path) -> None:
    # Any user of the machine could send a function to the scheduler, which ran it as this one.
    need_root()
    planted = planted_run(n_events=40)
    row = planted.source.read([0]).pixels[0].tobytes()[:64]
    ingest_run(planted, out=tmp_path / "run.zarr", pool=SerialPool())
    scored, go = tmp_path / "scored", tmp_path / "go"
    command = [
        sys.executable, "-c", WAITING, str(scored), str(go), "filter", "--in",
        str(tmp_path / "run.zarr"), "--out", str(tmp_path / "hits.zarr"), "--scorer", "peaks",
        "--workers", "2",
    ]  # fmt: skip
    foreign = read_security(ours)
    with open_folder() as folder, psutil.Popen(command, stderr=subprocess.PIPE) as filtering:
        report = folder / "report.json"
        os.chown(folder, STRANGER.uid, -1)
        while not scored.exists() and filtering.poll() is None:
            time.sleep(0.05)
        ports = sorted(port for _, port in listeners(filtering))
        assert STRANGER.does(lambda: tried(ports, report, foreign)) == 0
        go.touch()
        assert filtering.wait() == 0, filtering.stderr.read()
        found = json.loads(report.read_text())
    # The scheduler, its dashboard, two nannies and two workers.
    assert len(found) >= 6
    assert not [port for port, facts in found.items() if facts["plain"] or facts["foreign"]]
    spoken = {int(port): facts["pages"] for port, facts in found.items() if facts["pages"]}
    answered = [
        what for said in spoken.values() for what, (status, _) in said.items() if status == 200
    ]
    # The dashboards of scheduler and workers, on every page that they link to.
    assert 30 < len(answered) < N_PAGES, answered
    for port, answers in spoken.items():
        for what, (status, body) in answers.items():
            assert row not in bytes.fromhex(body), (port, what)
            # It tells what is being done, and takes no orders.
            assert status in (404, 405) or what.startswith("GET"), (port, what, status)


def test_a_cluster_without_certificates_would_have_answered() -> None:
    here = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=1, processes=False, protocol="tcp", **here) as c:
        assert talks(int(c.scheduler_address.rpartition(":")[2]), None)


def test_what_listens_to_everybody_would_be_found() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert ("0.0.0.0", server.getsockname()[1]) in listeners(psutil.Process())


def test_certificates_work_from_end_to_end_and_nothing_works_without_them(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfxreduce.cluster.connection.CONNECT_SECONDS", 20)
    theirs = certificates(tmp_path / "theirs")
    planted = planted_run(n_events=20)
    paths = zip(("--tls-ca-file", "--tls-cert", "--tls-key"), FILES.values(), strict=True)
    options = [word for option, name in paths for word in (option, str(ours / name))]
    with scheduler_elsewhere(tmp_path, *options, protocol="tls") as (_, address):
        assert address.startswith("tls://127.0.0.1:")
        toml = tmp_path / "tls.toml"
        toml.write_text("".join(f'{kind} = "{ours / name}"\n' for kind, name in FILES.items()))
        for security in (ours, toml):
            with open_pool(scheduler=address, security=security) as pool:
                rows = collect_scores(planted, BrightestPixel(), pool=pool)
        here = collect_scores(planted, BrightestPixel(), pool=SerialPool())
        assert rows.tobytes() == here.tobytes()
        monkeypatch.setattr("sfxreduce.cluster.connection.CONNECT_SECONDS", 3)
        unencrypted = address.replace("tls", "tcp")
        for wrong, security_ in ((address, None), (unencrypted, None), (address, theirs)):
            with (
                pytest.raises(SfxReduceError) as told,
                open_pool(scheduler=wrong, security=security_),
            ):
                pass
            assert isinstance(told.value, ClusterError | RefusedError)
            assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "address",
    ["tcp://192.0.2.1:8786", "192.0.2.1:8786", "tcp://[2001:db8::1]:8786", "ws://192.0.2.1:80"],
)
def test_a_scheduler_on_another_machine_is_refused_without_certificates(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("somebody was talked to")

    monkeypatch.setattr("sfxreduce.cluster.connection.Client", never)
    monkeypatch.setattr("sfxreduce.cluster.connection.open_comm", never)
    with pytest.raises(RefusedError, match="--security") as told:
        connect(address)
    assert "openssl" in str(told.value)
    assert "\n" not in str(told.value)
    ingest_run(planted_run(n_events=3), out=tmp_path / "run.zarr", pool=SerialPool())
    command = ["filter", "--in", tmp_path / "run.zarr", "--out", tmp_path / "hits.zarr"]
    assert run(*command, "--scorer", "peaks", "--scheduler", address).exit_code == 3
    assert not (tmp_path / "hits.zarr").exists()


def test_certificates_are_not_sent_where_nothing_is_encrypted(ours: Path) -> None:
    with pytest.raises(UsageError, match="expected an address tls://"):
        connect("tcp://192.0.2.1:8786", security=read_security(ours))
    with pytest.raises(UsageError, match="talks to nobody"), open_pool(serial=True, security=ours):
        pass


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    folder = certificates(tmp_path / "tls")
    (folder / FILES["key"]).chmod(mode)
    with pytest.raises(RefusedError, match="chmod 600"):
        read_security(folder)


def no_key(folder: Path) -> None:
    (folder / FILES["key"]).unlink()


def empty_authority(folder: Path) -> None:
    (folder / FILES["ca"]).write_text("")


def foreign_key(folder: Path) -> None:
    other = certificates(folder / "other") / FILES["key"]
    (folder / FILES["key"]).write_bytes(other.read_bytes())


def garbage(folder: Path) -> None:
    (folder / FILES["cert"]).write_bytes(bytes(range(256)))


@pytest.mark.parametrize("harm", [no_key, empty_authority, foreign_key, garbage])
def test_certificates_that_are_none_are_one_line(
    harm: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = certificates(tmp_path / "tls")
    harm(folder)
    with pytest.raises(UsageError, match="--security") as told:
        read_security(folder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["", "ca = 1", "ca = 'a'\ncert = 'b'\nkey = 'c'\nmore = 'd'", "["])
def test_a_file_that_names_no_certificates_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "tls.toml").write_text(text)
    with pytest.raises(UsageError, match="ca, cert, key") as told:
        read_security(tmp_path / "tls.toml")
    assert "\n" not in str(told.value)
