"""Who did what, noted before the answer goes out: each change that a client made or was refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from mhs_ray.domain.errors import ForbiddenError
from mhs_ray.domain.models import Principal
from mhs_ray.services.core import Core


class AuditedRoute(APIRoute):
    """Notes what comes by `deps.writer`. Tasks are noted in the transaction that makes them, so not here.

    A route may add to the target by ``request.state.audit_detail``.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's own handler."""
        inner = super().get_route_handler()
        action = self.name.replace("_", " ")

        async def handle(request: Request) -> Response:
            try:
                response = await inner(request)
            except ForbiddenError:
                await note(request, getattr(request.state, "writer", None), f"refused: {action}", request.url.path)
                raise
            target = _target(request, response) + getattr(request.state, "audit_detail", "")
            await note(request, getattr(request.state, "writer", None), action, target)
            return response

        return handle


async def note(request: Request, who: Principal | None, action: str, target: str) -> None:
    """Add a line; who: None where nobody's change is to be noted."""
    if who is not None:
        core: Core = request.app.state.core
        await run_in_threadpool(core.audit.note, who, action, target)


def _target(request: Request, response: Response) -> str:
    path = request.url.path
    if response.status_code != 201:
        return path
    try:
        made = json.loads(bytes(response.body))
        return f"{path}/{made['client']['id'] if 'client' in made else made['id']}"
    except (ValueError, KeyError, TypeError):
        return path
