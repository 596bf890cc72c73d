"""A browser, and what it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """One browser for all tests; it is told of no network but 127.0.0.1."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: object) -> Iterator[Callable[..., object]]:
    """Open an address in a browser of its own; at the end, no request has left this machine."""
    contexts, asked = [], []

    def open_(address: str, *, width: int = 1280, offline: bool = False) -> object:
        context = chromium.new_context(  # type: ignore[attr-defined]
            viewport={"width": width, "height": 900}, offline=offline
        )
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert asked
    for url in asked:
        parts = urlsplit(url)
        assert parts.scheme in ("data", "file", "blob") or parts.hostname == "127.0.0.1", url
