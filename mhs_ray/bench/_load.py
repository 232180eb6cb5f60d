"""A small HTTP/1.1 load generator: keep-alive connections that each send one request after the other.

A full client library costs more CPU per request than the server under test, and both share this machine's cores.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """What a run gave: requests per second, latencies in seconds, answers by status."""

    rate: float
    latencies: list[float]
    statuses: dict[int, int]


async def load(host: str, port: int, request: Callable[[int], bytes], *, connections: int, seconds: float) -> Load:
    """Send ``request(i)`` over `connections` connections for `seconds`."""
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    began = time.monotonic()
    number = iter(range(10**9))

    async def one() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            while time.monotonic() - began < seconds:
                sent = time.monotonic()
                writer.write(request(next(number)))
                statuses[await _answer(reader)] += 1
                latencies.append(time.monotonic() - sent)
        finally:
            writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return Load(len(latencies) / (time.monotonic() - began), latencies, dict(statuses))


async def _answer(reader: asyncio.StreamReader) -> int:
    """Read one answer whole and return its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = head.split("\r\n")
    headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    if "content-length" in headers:
        await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")
    return int(lines[0].split()[1])


def post(path: str, body: bytes, host: str, authorization: str = "") -> bytes:
    """Return the bytes of a JSON POST."""
    auth = f"Authorization: {authorization}\r\n" if authorization else ""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{auth}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
