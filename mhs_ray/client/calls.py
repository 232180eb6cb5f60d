"""What the calls of every part of the API stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from mhs_ray.client.http import Http

POLL_S: Final = 0.3
"""Lies between two looks at something that changes."""

_PAGE: Final = 200


class Calls:
    """One API, reached by `http`."""

    def __init__(self, http: Http) -> None:
        self.http = http

    async def _get(self, path: str, **params: Any) -> Any:
        return (await self.http.send("GET", path, params=params)).json()

    async def _post(self, path: str, body: Any = None, *, repeatable: bool = False) -> Any:
        return (await self.http.send("POST", path, body=body, repeatable=repeatable)).json()

    async def _patch(self, path: str, body: Mapping[str, Any]) -> Any:
        return (await self.http.send("PATCH", path, body=dict(body), repeatable=True)).json()

    async def _delete(self, path: str) -> None:
        await self.http.send("DELETE", path)

    async def _pages(self, path: str, limit: int | None, **params: Any) -> AsyncIterator[Any]:
        """Yield the items of a list over all its pages, `limit` at most."""
        left, cursor = limit, None
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            page = await self._get(path, **params, cursor=cursor, limit=size)
            for item in page["items"]:
                yield item
            left = None if left is None else left - len(page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    async def pause(self) -> None:
        """Wait as long as lies between two looks at something that changes."""
        await self.http.wire.sleep(POLL_S)
