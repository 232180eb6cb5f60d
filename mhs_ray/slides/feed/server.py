"""The node's side of the tile feed. The container is hostile: nothing it says makes more than its own feed fail."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from mhs_ray.domain.errors import SlideError
from mhs_ray.domain.tile_feed import TileFeed
from mhs_ray.slides.bands import BatchLimits, TileBatch, batch_size, cores
from mhs_ray.slides.plan import TilePlan, TileRequest
from mhs_ray.slides.ring import Ring
from mhs_ray.slides.tile_reader import TileReader
from mhs_ray.slides.tiles import Batch

log = logging.getLogger(__name__)

SOCKET: Final = "feed.sock"
_MAX_LINE: Final = 4096
_MAX_CONNECTIONS: Final = 32
_HELD: Final = 4  # slots that all clients together may hold beyond those being filled
_FUTURE_WRITE: Final = 0x10  # F_SEAL_FUTURE_WRITE, Linux 5.1: what we have mapped stays writable, for us alone
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _FUTURE_WRITE

OnProgress = Callable[[int, int, float | None], None]
"""Called with (tiles given out, tiles planned, seconds left or None) when the plan is made and then per batch."""


class _StoppedError(Exception):
    """The feed was closed."""


class FeedServer:
    """Serves one slide's tiles in `folder`, which is mounted into the container. Use it as a context manager.

    memory_bytes: of all decoded tiles. Planning begins at once; who connects before it is done waits.
    """

    def __init__(
        self,
        open_reader: Callable[[], TileReader],
        feed: TileFeed,
        folder: Path,
        *,
        memory_bytes: int = 512 << 20,
        threads: int | None = None,
        on_progress: OnProgress = lambda done, planned, left: None,
    ) -> None:
        self._open_reader, self._feed, self._folder = open_reader, feed, folder
        self._threads = threads or cores()
        self._memory_bytes, self._on_progress = memory_bytes, on_progress
        self._stop, self._planned = threading.Event(), threading.Event()
        self._lock, self._pull = threading.Condition(), threading.Lock()
        self._failure: str | None = None
        self._reader: TileReader | None = None
        self._plan: TilePlan | None = None
        self._batches: Iterator[TileBatch] | None = None
        self._ring: Ring | None = None
        self._free: list[int] = []
        self._slot_of: dict[int, int] = {}
        self._held = 0
        self._clients: set[socket.socket] = set()
        self.done = 0
        self._began = time.monotonic()
        self._listener = _listen(folder)
        self._workers = [
            threading.Thread(target=self._prepare, name="feed plan", daemon=True),
            threading.Thread(target=self._accept, name="feed", daemon=True),
        ]
        for worker in self._workers:
            worker.start()

    @property
    def planned(self) -> int | None:
        """How many tiles there are; None before the plan is made."""
        return None if self._plan is None else len(self._plan)

    def close(self) -> None:
        """End the feed: connections, threads, memory and the slide."""
        self._stop.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            self._lock.notify_all()
            clients = list(self._clients)
        for client in clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for worker in self._workers:
            worker.join(10)
        with self._pull:
            if self._batches is not None:
                self._batches.close()  # type: ignore[attr-defined]
        if self._reader is not None:
            self._reader.close()
        if self._ring is not None:
            self._ring.close()
        (self._folder / SOCKET).unlink(missing_ok=True)

    def __enter__(self) -> FeedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        try:
            self._reader = reader = self._open_reader()
            feed = self._feed
            request = TileRequest(
                size=feed.size,
                stride=feed.stride,
                mpp=feed.mpp,
                level=feed.level,
                edge="drop" if feed.drop_edges else "pad",
                scaling="dct" if feed.dct else "exact",
            )
            plan = reader.plan(request, tissue=feed.tissue)
            filling = 2 * self._threads + 1
            limits = BatchLimits(feed.batch, self._threads, self._memory_bytes, ordered=not feed.unordered)
            tile = plan.size.pixels * 3
            # The memory also holds what the clients have, so a batch may be smaller than asked for.
            each = max(1, min(batch_size(plan, limits), self._memory_bytes // 2 // ((filling + _HELD) * tile)))
            limits = BatchLimits(each, self._threads, self._memory_bytes, ordered=not feed.unordered)
            self._ring = Ring.make(filling + _HELD, each * tile)
            fcntl.fcntl(self._ring.handle, fcntl.F_ADD_SEALS, _SEALS)
            self._free = list(range(self._ring.slots))
            self._batches = reader.batches(plan, limits, self._allocate)
            self._plan = plan
            self._on_progress(0, len(plan), None)
        except SlideError as error:
            self._failure = error.message
        except Exception:
            log.exception("the tile feed cannot begin")
            self._failure = "the tile feed cannot begin; the platform's log has the cause"
        self._began = time.monotonic()
        self._planned.set()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if len(self._clients) >= _MAX_CONNECTIONS or self._stop.is_set():
                    client.close()
                    continue
                self._clients.add(client)
            worker = threading.Thread(target=self._serve, args=(client,), name="feed client", daemon=True)
            self._workers = [w for w in self._workers if w.is_alive()] + [worker]
            worker.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                client.settimeout(60)
                lines = _Lines(client)
                hello = lines.next()
                client.settimeout(None)
                self._planned.wait()
                if self._failure is not None:
                    _say(client, {"error": self._failure})
                elif hello.get("version") != 1 or hello.get("transport") not in ("arrow", "memory"):
                    _say(client, {"error": 'say {"version": 1, "transport": "arrow"} or "memory"'})
                elif hello["transport"] == "arrow":
                    self._serve_arrow(client)
                else:
                    self._serve_memory(client, lines)
        except (OSError, ValueError, _StoppedError) as error:
            log.debug("a tile feed's client went: %s", error)
        finally:
            with self._lock:
                self._clients.discard(client)

    def _serve_arrow(self, client: socket.socket) -> None:
        writer: Any = None
        assert self._plan is not None
        try:
            with client.makefile("wb", buffering=1 << 20) as sink:
                while (batch := self._next(client)) is not None:
                    try:
                        rows = batch.record_batch()
                        if writer is None:
                            schema = rows.schema.with_metadata({"mhs.plan": json.dumps(self._plan.facts())})
                            writer = pa.ipc.new_stream(sink, schema)
                        writer.write_batch(pa.RecordBatch.from_arrays(rows.columns, schema=schema))
                    finally:
                        self._freed(self._slot_of.pop(batch.number))
                if writer is None:
                    writer = pa.ipc.new_stream(sink, pa.schema([("slide", pa.string())]))
                writer.close()
        except SlideError as error:
            log.warning("the tile feed ends: %s", error.message)

    def _serve_memory(self, client: socket.socket, lines: _Lines) -> None:
        assert self._ring is not None
        assert self._plan is not None
        ring, plan = self._ring, self._plan
        hello = {"version": 1, "slots": ring.slots, "slot_bytes": ring.slot_bytes, "plan": plan.facts()}
        socket.send_fds(client, [json.dumps(hello).encode() + b"\n"], [ring.handle])
        mine: set[int] = set()
        gone = threading.Event()

        def hear() -> None:
            with suppress(OSError, ValueError):
                while True:
                    slot = lines.next().get("free")
                    with self._lock:
                        if slot in mine:
                            mine.discard(slot)
                            self._freed(slot)
            gone.set()
            with self._lock:
                self._lock.notify_all()

        listener = threading.Thread(target=hear, name="feed ears", daemon=True)
        listener.start()
        try:
            sent = 0
            while (batch := self._next(client, gone)) is not None:
                slot = self._slot_of.pop(batch.number)
                with self._lock:
                    mine.add(slot)
                at = batch.indices
                sent += len(at)
                _say(
                    client,
                    {
                        "slot": slot,
                        "count": len(at),
                        "level": plan.level,
                        "mpp": plan.mpp,
                        "x": [round(v * plan.downsample) for v in plan.column[at].tolist()],
                        "y": [round(v * plan.downsample) for v in plan.row[at].tolist()],
                    },
                )
            _say(client, {"end": True, "tiles": sent})
            gone.wait(5)  # for its last words
        except SlideError as error:
            _say(client, {"error": error.message})
        finally:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            listener.join(5)
            with self._lock:
                for slot in list(mine):
                    self._freed(slot)
                mine.clear()

    def _next(self, client: socket.socket, gone: threading.Event | None = None) -> TileBatch | None:
        """Return the next batch for one client; it counts as held until its slot is freed."""
        with self._lock:
            while self._held >= _HELD and not self._stop.is_set() and not (gone and gone.is_set()):
                self._lock.wait(1)
            if self._stop.is_set() or (gone and gone.is_set()):
                raise _StoppedError
            self._held += 1
        try:
            with self._pull:
                assert self._batches is not None
                batch = next(self._batches, None)
        except BaseException:
            self._unhold()
            raise
        if batch is None:
            self._unhold()
            return None
        self.done += len(batch)
        assert self._plan is not None
        passed = time.monotonic() - self._began
        self._on_progress(self.done, len(self._plan), passed / self.done * (len(self._plan) - self.done))
        assert self._ring is not None
        self._slot_of[batch.number] = self._ring.slot_of(batch.pixels)
        return batch

    def _allocate(self, count: int) -> Batch:
        assert self._ring is not None
        with self._lock:
            while not self._free:
                if self._stop.is_set():
                    raise SlideError("cancelled", "the tile feed was ended")
                self._lock.wait(1)
            slot = self._free.pop()
        side = self._feed.size
        return self._ring.tiles(slot, count, side, side)

    def _freed(self, slot: int) -> None:
        with self._lock:
            self._free.append(slot)
            self._held -= 1
            self._lock.notify_all()

    def _unhold(self) -> None:
        with self._lock:
            self._held -= 1
            self._lock.notify_all()


class _Lines:
    """JSON objects, one a line, of bounded length."""

    def __init__(self, client: socket.socket) -> None:
        self._client, self._buffer = client, b""

    def next(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            if len(self._buffer) > _MAX_LINE:
                raise ValueError("a line is too long")
            more = self._client.recv(_MAX_LINE)
            if not more:
                raise ConnectionResetError("the client closed")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        found = json.loads(line)
        if not isinstance(found, dict):
            raise ValueError("a line is no object")  # noqa: TRY004
        return found


def _say(client: socket.socket, what: dict[str, Any]) -> None:
    client.sendall(json.dumps(what).encode() + b"\n")


def _listen(folder: Path) -> socket.socket:
    """Bind through the folder's handle: a socket's own path may have only 107 bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    (folder / SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        listener.bind(f"/proc/self/fd/{handle}/{SOCKET}")
        (folder / SOCKET).chmod(0o666)  # the container's user is another one
        listener.listen(8)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(handle)
    return listener
