"""An S3 server on this machine, and a way to it that counts requests and spoils some."""

from __future__ import annotations

import http.client
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BUCKET = "beamtime"
START_SECONDS = 90
KEY, SECRET = "AKIDTHATISNOSECRET", "the-secret-key-of-the-tests"


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, method: str = "GET", body: bytes | None = None) -> bytes:
    """One request, as it is; the server of the tests looks at no signature."""
    # Without a type, it would be sent as a form.
    headers = {"Content-Type": "application/octet-stream", "Authorization": f"AWS {KEY}:unsigned"}
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        held: bytes = answer.read()
        return held


class ObjectServer:
    """A server with one bucket; it has no more than what is put there."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"

    def put(self, name: str, data: bytes) -> None:
        """Put an object."""
        ask(f"{self.url}/{BUCKET}/{name}", "PUT", data)

    def put_run(self, folder: Path, name: str) -> str:
        """Put all files of a store; returns its address."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(f"{name}/{file.relative_to(folder)}", file.read_bytes())
        return f"s3://{BUCKET}/{name}"


@contextmanager
def object_server(log: Path) -> Iterator[ObjectServer]:
    """Start a server of its own, and stop it by its process."""
    port = free_port()
    with log.open("wb") as told:
        process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "moto.server",
                "-H",
                "127.0.0.1",
                "-p",
                f"{port}",
            ],
            stdout=told,
            stderr=told,
        )
    try:
        server = ObjectServer(port)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                ask(f"{server.url}/{BUCKET}", "PUT")
                break
            except (OSError, urllib.error.URLError):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(30)


class Gate:
    """What stands between a client and the server.

    Parameters
    ----------
    refused, cut : float
        Share of the requests that are answered with 503, and of the answers that end half way.
    hold_at : int
        Shards after which nothing is answered until `held` is set; 0 for none.
    """

    def __init__(self, server: ObjectServer) -> None:
        self.server = server
        self.requests: list[tuple[str, str]] = []
        self.spoiled: Counter[str] = Counter()
        self.refused = self.cut = 0.0
        self.denied = False
        self.hold_at = 0
        self.held = threading.Event()
        self.held.set()
        self._dice = random.Random(195)
        self._lock = threading.Lock()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                gate.answer(self)

        class Listening(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                pass  # clients are killed

        self._http = Listening(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self.held.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def count(self, part: str = "") -> int:
        """Requests so far with this in their path."""
        return sum(part in path for _, path in self.requests)

    @property
    def listings(self) -> int:
        """Requests for lists of objects."""
        return self.count("list-type=2")

    def forget(self) -> None:
        """Count from here on."""
        self.requests.clear()
        self.spoiled.clear()

    def answer(self, asked: BaseHTTPRequestHandler) -> None:
        """Pass a request on, or spoil it."""
        with self._lock:
            self.requests.append((asked.command, asked.path))
            luck = self._dice.random()
            if self.hold_at and self.count("/frames/c/") > self.hold_at:
                self.hold_at = 0
                self.held.clear()
        self.held.wait(60)
        if self.denied:
            self._plain(asked, 403, b"<Error><Code>AccessDenied</Code></Error>")
            return
        if luck < self.refused:
            self.spoiled["refused"] += 1
            self._plain(asked, 503, b"<Error><Code>SlowDown</Code></Error>")
            return
        there = urlsplit(self.server.url)
        link = http.client.HTTPConnection(there.hostname or "", there.port, timeout=30)
        link.request(asked.command, asked.path, headers=dict(asked.headers))
        found = link.getresponse()
        body = found.read()
        link.close()
        asked.send_response(found.status)
        for name, value in found.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date"):
                asked.send_header(name, value)
        asked.send_header("Content-Length", str(len(body)))
        asked.end_headers()
        if luck < self.refused + self.cut and len(body) > 1:
            self.spoiled["cut"] += 1
            asked.wfile.write(body[: len(body) // 2])
            asked.close_connection = True
            return
        asked.wfile.write(body)

    def _plain(self, asked: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        asked.send_response(status)
        asked.send_header("Content-Length", str(len(body)))
        asked.end_headers()
        asked.wfile.write(body)
