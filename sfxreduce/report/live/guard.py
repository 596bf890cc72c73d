"""Who is shown a page: whoever has its address with the token, and nobody else of this machine.

Every user of a machine reaches 127.0.0.1, and every page in a browser can send requests to it. So a
page asks for three things: a token that only its address holds, exchanged for a cookie that no
script and no other site can use; a host name of this machine, which the page of a foreign name that
points here does not send; and, where the browser says which page a request comes from, this one.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from html import escape
from typing import Any
from urllib.parse import urlsplit

from bokeh.document import Document
from bokeh.server.tornado import BokehTornado
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.web import RequestHandler

__all__ = ["GuardedPages"]

NAMES = ("127.0.0.1", "localhost", "::1")
"""What this machine is called by a browser on it, or at the end of a tunnel to it."""

TOKEN_BYTES = 24

REFUSED = (
    "403: this page is shown to whoever started it. Open the address that the command printed, "
    "with the token at its end.\n"
)


class GuardedPages(BokehTornado):
    """Bokeh pages below one path, for a web server on 127.0.0.1, each request checked.

    The cookie is sent below a path that nobody can guess, so that another server of this machine,
    at another port, is never sent it.

    Parameters
    ----------
    root : str
        The path, as ``/review``. ``ROOT?token=...`` lets a browser in.
    page : callable
        Builds the page in a document.
    alone : bool
        Whether the server has no other pages: then every other path is refused, too.
    """

    def __init__(self, root: str, page: Callable[[Document], None], *, alone: bool = True) -> None:
        self._root = root
        self._alone = alone
        self._token, self._cookie = (secrets.token_urlsafe(TOKEN_BYTES) for _ in range(2))
        inside = f"{root}/{secrets.token_urlsafe(TOKEN_BYTES)}"
        super().__init__(
            {"/page": page},
            prefix=inside,
            use_index=False,
            extra_websocket_origins=["*"],  # each request was compared with its own host before
            include_headers=[],  # otherwise the page repeats them, and with them the cookie
            include_cookies=[],
            absolute_url="",
            log_function=_silent,
        )

    @property
    def entry(self) -> str:
        """Path with the token."""
        return f"{self._root}?token={self._token}"

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate | None:  # type: ignore[override]
        """Find what answers a request: the page, the way in, or a refusal; None for other paths."""
        path = request.path
        is_inside = path.startswith(f"{self.prefix}/")
        if not (self._alone or path == self._root or path.startswith(f"{self._root}/")):
            return None
        if not is_local(request.headers):
            return self.get_handler_delegate(request, _Refuse)
        if is_inside and self._is_let_in(request):
            return super().find_handler(request, **kwargs)
        if path == self._root and self._has_token(request):
            way = {"cookie": self._cookie, "below": self.prefix, "page": f"{self.prefix}/page"}
            return self.get_handler_delegate(request, _LetIn, way)
        return self.get_handler_delegate(request, _Refuse)

    def _has_token(self, request: HTTPServerRequest) -> bool:
        given = request.query_arguments.get("token", [b""])[0]
        return hmac.compare_digest(given, self._token.encode())

    def _is_let_in(self, request: HTTPServerRequest) -> bool:
        given = request.cookies.get(_COOKIE)
        return given is not None and hmac.compare_digest(
            given.value.encode(), self._cookie.encode()
        )


_COOKIE = "sfxreduce"


def is_local(headers: Mapping[str, str]) -> bool:
    """Whether a request is meant for this machine, and comes from a page of the same address.

    Browsers say where every request comes from that a page opens a socket with, or changes anything
    with; a socket is refused without it.

    Examples
    --------
    >>> is_local({"Host": "127.0.0.1:80", "Origin": "http://127.0.0.1:80"})
    True
    >>> is_local({"Host": "127.0.0.1:80", "Origin": "http://127.0.0.1:81"})
    False
    >>> is_local({"Host": "example.org"}), is_local({"Host": "localhost"})
    (False, True)
    >>> is_local({"Host": "localhost", "Upgrade": "websocket"})
    False
    """
    host, origin = headers.get("Host", ""), headers.get("Origin")
    try:
        is_here = urlsplit(f"http://{host}").hostname in NAMES
    except ValueError:
        return False
    if origin is None:
        return is_here and "Upgrade" not in headers
    return is_here and origin == f"http://{host}"


class _LetIn(RequestHandler):
    """Gives the cookie. A redirect would be followed without it after a link on another site."""

    def initialize(self, cookie: str, below: str, page: str) -> None:
        self._given, self._below, self._page = cookie, below, page

    def get(self) -> None:
        self.set_cookie(_COOKIE, self._given, path=self._below, httponly=True, samesite="Strict")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "no-referrer")
        self.write(f'<meta http-equiv="refresh" content="0; url={escape(self._page)}">')


class _Refuse(RequestHandler):
    """Says no to any request, and why."""

    def prepare(self) -> None:
        self.set_status(403)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(REFUSED)


def _silent(handler: RequestHandler) -> None:
    """Log no request: addresses hold the token."""
