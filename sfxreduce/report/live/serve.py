"""A web server on 127.0.0.1 for pages of ours, as long as somebody wants to see them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EADDRINUSE
from threading import Event, Thread

from bokeh.server.server import BaseServer
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop

from sfxreduce.errors import UsageError
from sfxreduce.report.live.guard import GuardedPages

__all__ = ["serve_until_interrupted", "served_beside"]

HOST = "127.0.0.1"


def serve_until_interrupted(
    pages: GuardedPages, *, port: int = 0, ready: Callable[[str], None]
) -> None:
    """Serve pages until Ctrl-C.

    Parameters
    ----------
    port : int
        0 for one that is free.
    ready : callable
        Called with the address, token included, once it answers.

    Raises
    ------
    UsageError
        If the port is taken, or may not be listened at.
    """
    with _loop() as loop:
        server = _started(pages, port, ready)
        try:
            with suppress(KeyboardInterrupt):
                loop.start()
        finally:
            server.stop()


@contextmanager
def served_beside(pages: GuardedPages) -> Iterator[str]:
    """Serve pages in a thread as long as the block lasts; gives their address, token included.

    Raises
    ------
    UsageError
        If there is nowhere to listen.
    """
    address, loops, faults = "", [], []
    is_ready = Event()

    def note(found: str) -> None:
        nonlocal address
        address = found
        is_ready.set()

    def work() -> None:
        with _loop() as loop:
            loops.append(loop)
            try:
                server = _started(pages, 0, note)
            except Exception as fault:  # noqa: BLE001 - whoever waits for the pages is told
                faults.append(fault)
                is_ready.set()
                return
            try:
                loop.start()
            finally:
                server.stop()

    thread = Thread(target=work, name="pages", daemon=True)
    thread.start()
    is_ready.wait()
    if faults:
        thread.join()
        raise faults[0]
    try:
        yield address
    finally:
        loops[0].add_callback(loops[0].stop)
        thread.join()


@contextmanager
def _loop() -> Iterator[IOLoop]:
    """Event loop of this thread, closed with the block."""
    loop = IOLoop(make_current=False)
    asyncio.set_event_loop(loop.asyncio_loop)
    try:
        yield loop
    finally:
        asyncio.set_event_loop(None)
        loop.close(all_fds=True)


def _started(pages: GuardedPages, port: int, ready: Callable[[str], None]) -> BaseServer:
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        taken = "another program listens there" if error.errno == EADDRINUSE else "not to be had"
        raise UsageError(
            f"--port {port}: {taken} ({error.strerror}); choose another port, or leave it out for "
            "one that is free"
        ) from error
    http = HTTPServer(pages)
    listener.setblocking(False)
    http.add_socket(listener)
    server = BaseServer(IOLoop.current(), pages, http)
    server.start()
    address = f"http://{HOST}:{listener.getsockname()[1]}{pages.entry}"
    IOLoop.current().add_callback(ready, address)
    return server
