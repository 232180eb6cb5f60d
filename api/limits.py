"""No request body may fill a replica's memory."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OWN_LIMIT = "/api/v3/external/results/"  # results are large; the route itself counts


class BodyLimit:
    """Cuts bodies at ``api.max_body``, whether their length is told or not. Raises HTTPException(413)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that counts."""
        if scope["type"] != "http" or scope["path"].startswith(_OWN_LIMIT):
            await self._app(scope, receive, send)
            return
        left: int = scope["app"].state.core.settings.api.max_body

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, "the body is larger than this path takes")
            return message

        await self._app(scope, counted, send)
