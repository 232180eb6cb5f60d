"""Requests to the API: signed in, retried where that is safe, errors as `ApiError` and `UnreachableError`."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx

from mhs_ray import __version__
from mhs_ray.client.errors import ApiError, UnreachableError
from mhs_ray.client.wires import Body, Wire

log = logging.getLogger(__name__)

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_LONGEST_PAUSE_S: Final = 30.0
_TIMEOUT_S: Final = 60.0
_NOBODY: Final = httpx.Auth()
_LONG: Final = httpx.Timeout(300, connect=10)
_LOCAL: Final = ("all://127.0.0.1", "all://localhost", "all://[::1]")


def connection(url: str, client_id: str, client_secret: str) -> dict[str, Any]:
    """Return how httpx is to talk to the API at `url`."""
    return {
        "base_url": url,
        "auth": (client_id, client_secret),
        "timeout": httpx.Timeout(_TIMEOUT_S, connect=5.0),
        "headers": {"User-Agent": f"mhs-ray/{__version__}"},
        "mounts": dict.fromkeys(_LOCAL),  # no proxy stands between us and this machine
    }


class Http:
    """One API. retries: further tries of a request that may be sent twice."""

    def __init__(self, url: str, wire: Wire, *, retries: int = 4) -> None:
        self.url, self.wire, self._retries = url, wire, retries

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        repeatable: bool | None = None,
    ) -> httpx.Response:
        """Return the API's answer. repeatable: the request may arrive twice; None: what the method says.

        Raises ApiError for a status of 400 or more, UnreachableError when there was no answer.
        """
        again = method in _IDEMPOTENT if repeatable is None else repeatable
        left = self._retries if again else 0
        given = {k: v for k, v in (params or {}).items() if v is not None}
        pause = 0.2
        while True:
            try:
                answer = await self.wire.request(method, path, params=given, json=body)
            except httpx.TransportError as error:
                if not left:
                    raise unreachable(self.url, error) from None
                wait = pause * random.uniform(0.75, 1.25)
            else:
                if answer.status_code not in (429, 503) or not left or "retry-after" not in answer.headers:
                    return checked(answer)
                wait = _retry_after(answer)
            log.debug("%s %s is sent again in %.1f s", method, path, wait)
            left -= 1
            await self.wire.sleep(wait)
            pause = min(2 * pause, 5.0)

    @asynccontextmanager
    async def stream(
        self, path: str, *, params: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None,
        read_timeout_s: float | None = None,
    ) -> AsyncIterator[Body]:  # fmt: skip
        """Yield the answer to a GET whose body is read piece by piece; tried once."""
        timeout = httpx.Timeout(read_timeout_s or _TIMEOUT_S, connect=5.0)
        given = {k: v for k, v in (params or {}).items() if v is not None}
        try:
            async with self.wire.stream("GET", path, params=given, headers=headers, timeout=timeout) as body:
                if body.answer.status_code >= 400:
                    await body.read()
                checked(body.answer)
                yield body
        except httpx.TransportError as error:
            raise unreachable(self.url, error) from None

    async def put_signed(self, url: str, pieces: Iterator[bytes], size: int) -> None:
        """PUT `size` bytes to a signed URL: without a credential of ours, and nothing writes the URL anywhere."""
        where = str(httpx.URL(url).copy_with(query=None))
        headers = {"Content-Length": str(size)}
        try:
            answer = await self.wire.request(
                "PUT", url, content=self.wire.upload(pieces), headers=headers, auth=_NOBODY, timeout=_LONG
            )
        except httpx.TransportError as error:
            raise unreachable(where, error) from None
        checked(answer)

    @asynccontextmanager
    async def get_signed(self, url: str) -> AsyncIterator[Body]:
        """Yield the answer of a signed URL, as in `put_signed`."""
        where = str(httpx.URL(url).copy_with(query=None))
        try:
            async with self.wire.stream("GET", url, auth=_NOBODY, timeout=_LONG) as body:
                if body.answer.status_code >= 400:
                    await body.read()
                checked(body.answer)
                yield body
        except httpx.TransportError as error:
            raise unreachable(where, error) from None


def unreachable(url: str, error: httpx.TransportError) -> UnreachableError:
    """Return our error for one of the transport's, in a few words."""
    reasons = {
        httpx.ConnectError: "connection refused or host unknown",
        httpx.ConnectTimeout: "no connection in time",
        httpx.ReadTimeout: "no answer in time",
        httpx.RemoteProtocolError: "the connection broke off",
    }
    return UnreachableError(url, reasons.get(type(error), type(error).__name__))


def checked(answer: httpx.Response) -> httpx.Response:
    """Return an answer below 400, raise ApiError for another one."""
    if answer.status_code < 400:
        return answer
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or not {"detail", "parts"} & problem.keys():  # parts: /readyz is its own document
        text = answer.text.strip()[:300]
        problem = {
            "type": f"/problems/http-{answer.status_code}", "title": answer.reason_phrase or "The request failed",
            "status": answer.status_code, "detail": text or f"HTTP {answer.status_code}", "errors": [],
        }  # fmt: skip
    raise ApiError(answer.status_code, problem)


def _retry_after(answer: httpx.Response) -> float:
    told = answer.headers.get("retry-after", "")
    return min(float(told), _LONGEST_PAUSE_S) if told.isascii() and told.isdigit() else 1.0
