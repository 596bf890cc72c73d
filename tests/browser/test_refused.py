"""On a shared machine nobody else sees a frame or sets a label: 403, and not one pixel."""

from __future__ import annotations

import base64
import http.client
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from accounts import Account
from planted import BrightestPixel, planted_run
from served import serving

from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.report.live.run_page import served_run_page
from sfxreduce.report.live.so_far import RunSoFar

SOCKET = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    "Sec-WebSocket-Protocol": "bokeh, x",
}


def asked(address: str, path: str, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of an answer."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = b"" if answer.status == 101 else answer.read()
    found = answer.status, body, dict(answer.getheaders())
    connection.close()
    return found


@pytest.fixture(params=["review", "dashboard", "alone"])
def address(
    request: pytest.FixtureRequest, tmp_path: Path, cluster: Pool
) -> Iterator[tuple[str, str]]:
    """Each kind of page, and its root."""
    run = planted_run(n_events=12)
    if request.param == "review":
        ingest_run(run, out=tmp_path / "run.zarr", pool=SerialPool())
        with serving("view", "run.zarr", folder=tmp_path) as served:
            yield served.address, "/view"
        return
    so_far = RunSoFar(run, BrightestPixel(), hit_from=500.0, out=tmp_path / "hits.zarr")
    dashboard = cluster.dashboard_here if request.param == "dashboard" else None
    assert (dashboard is None) == (request.param == "alone")
    with served_run_page(so_far, dashboard) as found:
        yield found, "/sfxreduce"


def test_whoever_lacks_token_cookie_host_or_origin_gets_403_and_no_pixel(
    address: tuple[str, str],
) -> None:
    url, root = address
    parts = urlsplit(url)
    here = {"Host": parts.netloc}
    entry = f"{parts.path}?{parts.query}"
    status, body, headers = asked(url, entry, here)
    assert status == 200
    assert len(body) < 200
    way = re.search(r'url=([^"]+)"', body.decode())
    assert way is not None
    page = way[1]
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert f"Path={page.removesuffix('/page')}" in cookie
    in_ = {**here, "Cookie": cookie.partition(";")[0]}
    script = f"{page.removesuffix('page')}static/js/bokeh.min.js"
    assert asked(url, page, in_)[0] == asked(url, script, in_)[0] == 200
    own = f"http://{parts.netloc}"
    assert asked(url, f"{page}/ws", {**in_, **SOCKET, "Origin": own})[0] == 101
    text = asked(url, page, in_)[1].decode()
    assert in_["Cookie"].partition("=")[2] not in text

    foreign = f"http://127.0.0.1:{parts.port + 1 if parts.port else 1}"
    for path, sent in (
        (root, here),
        (f"{root}?token=wrong", here),
        (f"{root}?token=", here),
        (page, here),
        (script, here),
        (page, {**here, "Cookie": "sfxreduce=wrong"}),
        (page, {**in_, "Origin": "http://example.org"}),
        (page, {**in_, "Origin": foreign}),
        (page, {**in_, "Origin": "null"}),
        (page, {**in_, "Host": "example.org"}),
        (entry, {"Host": f"example.org:{parts.port}"}),
        (f"{page}/ws", {**here, **SOCKET, "Origin": own}),
        (f"{page}/ws", {**in_, **SOCKET, "Origin": "http://example.org"}),
        (f"{page}/ws", {**in_, **SOCKET, "Origin": foreign}),
        (f"{page}/ws", {**in_, **SOCKET}),
        (f"{page}/autoload.js", here),
        (f"{page}/metadata", here),
        (f"{root}/x/../page", here),
    ):
        status, body, headers = asked(url, path, sent)
        assert status == 403, (path, sent)
        assert b"403" in body[:4]
        assert headers["Content-Type"].startswith("text/plain")
        assert "Set-Cookie" not in headers


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_another_user_of_the_machine_is_refused(address: tuple[str, str]) -> None:
    url, root = address

    def look() -> int:
        netloc = urlsplit(url).netloc
        return int(asked(url, root, {"Host": netloc})[0] != 403)

    assert Account(61_234, in_group=False).does(look) == 0
