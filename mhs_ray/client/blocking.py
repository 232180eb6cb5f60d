"""Run what was written once, as coroutines, without an event loop.

Every call of the API is a coroutine of `AsyncClient`. Its only waits are those of its `Wire`; a wire that blocks
instead never suspends, so that the coroutine runs to its end at the first step. `Client` is made of that.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


class HasCalls(Protocol):
    """A client that blocks; `calls` holds the coroutines, on a wire that never suspends."""

    calls: Any


def run(step: Awaitable[T]) -> T:
    """Return what a coroutine that never suspends returns."""
    coroutine = cast(Coroutine[Any, Any, T], step)
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    coroutine.close()
    raise RuntimeError("a call of the blocking client waited for an event loop")


def each(items: AsyncIterator[T]) -> Iterator[T]:
    """Yield what an asynchronous generator that never suspends yields; closing the one closes the other."""
    generator = cast(AsyncGenerator[T, None], items)
    try:
        while True:
            try:
                item = run(generator.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(generator.aclose())


def blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[HasCalls, P], T]:
    """Return the blocking form of an asynchronous method, with its signature and its words."""

    @functools.wraps(method)
    def call(self: HasCalls, *args: P.args, **kwargs: P.kwargs) -> T:
        return run(method(self.calls, *args, **kwargs))

    return cast(Callable[Concatenate[HasCalls, P], T], _as_plain(call))


def blocking_each(
    method: Callable[Concatenate[Any, P], AsyncIterator[T]],
) -> Callable[Concatenate[HasCalls, P], Iterator[T]]:
    """Return the blocking form of a method that yields: an iterator."""

    @functools.wraps(method)
    def call(self: HasCalls, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return each(method(self.calls, *args, **kwargs))

    signature = inspect.signature(method)
    told = str(signature.return_annotation).replace("AsyncIterator", "Iterator")
    call.__signature__ = signature.replace(return_annotation=told)  # type: ignore[attr-defined]
    return cast(Callable[Concatenate[HasCalls, P], Iterator[T]], _as_plain(call))


def _as_plain(call: Any) -> Any:
    # What inspects it must not take it for the coroutine function that it wraps; its signature is kept.
    call.__signature__ = inspect.signature(call)
    del call.__wrapped__
    return call
