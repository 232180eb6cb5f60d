"""Counts requests by route and status class; a path itself is never a label, for it holds ids."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Observe = Callable[[str, str, str, float], None]
"""Told (route template, method, status class such as ``2xx``, seconds until the answer began)."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpWatch:
    """The observer is the application's ``state.observe_http``; without one nothing is counted."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and tell of its answer once that begins: followed logs go on for hours."""
        observe: Observe | None = getattr(scope["app"].state, "observe_http", None) if "app" in scope else None
        if scope["type"] != "http" or observe is None:
            await self._app(scope, receive, send)
            return
        began = perf_counter()

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                observe(route, method, f"{message['status'] // 100}xx", perf_counter() - began)
            await send(message)

        await self._app(scope, receive, told)
