"""The two ways of bytes to the API and back: one blocks, one waits. All else is written once above them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ParamSpec, Protocol, TypeVar

import httpx

P = ParamSpec("P")
T = TypeVar("T")


class Body(Protocol):
    """An answer whose body is read piece by piece."""

    answer: httpx.Response

    def lines(self) -> AsyncIterator[str]:
        """Yield the lines of the body."""
        ...

    def pieces(self, size: int) -> AsyncIterator[bytes]:
        """Yield the bytes of the body."""
        ...

    async def read(self) -> None:
        """Read the whole body into `answer`."""
        ...


class Wire(Protocol):
    """Sends requests and waits. Raises httpx.TransportError when there is no answer."""

    async def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Return an answer with its body."""
        ...

    def stream(self, method: str, url: str, **options: Any) -> AbstractAsyncContextManager[Body]:
        """Return an answer that is read piece by piece."""
        ...

    def upload(self, pieces: Iterator[bytes]) -> Any:
        """Return `pieces` as the `content` of a request of this wire."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    async def aside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a function returns that takes its time, such as one that reads or writes a file."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class _BlockingBody:
    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer

    async def lines(self) -> AsyncIterator[str]:
        for line in self.answer.iter_lines():
            yield line

    async def pieces(self, size: int) -> AsyncIterator[bytes]:
        for piece in self.answer.iter_bytes(size):
            yield piece

    async def read(self) -> None:
        self.answer.read()


class BlockingWire:
    """Blocks its thread, and so never suspends a coroutine. sleep: waits between two tries."""

    def __init__(self, options: Mapping[str, Any], sleep: Callable[[float], None] = time.sleep) -> None:
        self._http, self._sleep = httpx.Client(**options), sleep

    async def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Return an answer with its body."""
        return self._http.request(method, url, **options)

    @asynccontextmanager
    async def stream(self, method: str, url: str, **options: Any) -> AsyncIterator[Body]:
        """Return an answer that is read piece by piece."""
        with self._http.stream(method, url, **options) as answer:
            yield _BlockingBody(answer)

    def upload(self, pieces: Iterator[bytes]) -> Any:
        """Return `pieces` as they are."""
        return pieces

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        self._sleep(seconds)

    async def aside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `function` returns."""
        return function(*args, **kwargs)

    async def close(self) -> None:
        """Close the connections."""
        self._http.close()


class _WaitingBody:
    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer

    def lines(self) -> AsyncIterator[str]:
        return self.answer.aiter_lines()

    def pieces(self, size: int) -> AsyncIterator[bytes]:
        return self.answer.aiter_bytes(size)

    async def read(self) -> None:
        await self.answer.aread()


class WaitingWire:
    """Lets the event loop go on while it waits."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._http = httpx.AsyncClient(**options)

    async def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Return an answer with its body."""
        return await self._http.request(method, url, **options)

    @asynccontextmanager
    async def stream(self, method: str, url: str, **options: Any) -> AsyncIterator[Body]:
        """Return an answer that is read piece by piece."""
        async with self._http.stream(method, url, **options) as answer:
            yield _WaitingBody(answer)

    async def upload(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Yield `pieces`, each made in a thread: it comes from a disk."""
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def aside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `function` returns, run in a thread."""
        return await asyncio.to_thread(function, *args, **kwargs)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
