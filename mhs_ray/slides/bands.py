"""Read a plan's tiles in batches: every stored tile is decoded once, and as many tiles are cut from it as touch it.

One task makes one batch, on a pool of threads (decoding gives up the GIL). Tasks are handed out in the plan's order.
A task decodes the stored tiles that no earlier task has claimed, waits for those that one has, and cuts; a stored tile
is freed with its last cut. Tiles that are stored tiles themselves are decoded straight into the batch.

Memory is bounded by `BatchLimits.memory_bytes`, whatever the slide's size: about half for stored tiles kept for later
batches (what finds no room is decoded again), the rest for batches under way.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.cutting import Cutter, Stored
from mhs_ray.slides.plan import TilePlan, coordinates
from mhs_ray.slides.tiles import Batch, FastTiles
from mhs_ray.slides.units import in_blocks, shares_stored

_AHEAD_BYTES: Final = 48 << 20  # compressed bytes asked for ahead of decoding; they lie on disk, not in memory
_AHEAD_TASKS: Final = 8  # tasks whose bytes are asked for before the next one is begun: the first tile is not to wait

Allocate = Callable[[int], Batch]
"""Gives memory for n tiles, shape (n, height, width, 3), uint8, C-contiguous; waits while there is none."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How tiles are read. batch: tiles in one. threads: None for the cores this process may use.

    memory_bytes: for decoded pixels, of batches under way and of tiles kept; delivered batches are the caller's.
    ordered: tiles come in the plan's order, else as it is quickest, in batches as they are ready.
    """

    batch: int = 64
    threads: int | None = None
    memory_bytes: int = 512 << 20
    ordered: bool = True


@dataclass(eq=False)
class TileBatch:
    """Some tiles of a plan. indices: into the plan. pixels: shape (n, height, width, 3).

    `release` gives the pixels' memory back for another batch: faster than letting it go, when the caller is done.
    """

    plan: TilePlan
    number: int
    indices: NDArray[np.int64]
    pixels: Batch
    _pool: deque[Batch] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def release(self) -> None:
        """Let the memory of `pixels` be used again; they must not be touched any more."""
        if self._pool is not None and len(self._pool) < 64:
            self._pool.append(self.pixels.base if isinstance(self.pixels.base, np.ndarray) else self.pixels)
        self._pool = None

    def record_batch(self) -> pa.RecordBatch:
        """Return slide, level, x, y (level-0 pixels), mpp, and the pixels as a fixed-shape tensor, without a copy."""
        table = coordinates(self.plan, self.indices).combine_chunks().to_batches()[0]
        tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(self.pixels)
        return pa.RecordBatch.from_arrays([*table.columns, tensor], [*table.schema.names, "tile"])


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def read_batches(
    tiles: FastTiles, plan: TilePlan, limits: BatchLimits | None = None, allocate: Allocate | None = None
) -> Iterator[TileBatch]:
    """Yield every tile of `plan` in batches. Leaving early ends the work and gives all memory back.

    Raises SlideError for a tile that cannot be read, at its batch.
    """
    if not len(plan):
        return
    reading = _Reading(tiles, plan, limits or BatchLimits(), allocate)
    try:
        yield from reading.batches()
    finally:
        reading.close()


def batch_size(plan: TilePlan, limits: BatchLimits) -> int:
    """Return how many tiles a batch has so that two fit into half the memory; at most `limits.batch`."""
    tile = plan.size.pixels * 3
    fitting = limits.memory_bytes // (4 * tile)
    if fitting < 1:
        raise SlideError(
            "bad-request",
            f"tiles of {plan.size.width} x {plan.size.height} need at least {4 * tile >> 20} MiB of memory; "
            f"{limits.memory_bytes >> 20} MiB are allowed",
        )
    return max(1, min(limits.batch, fitting))


@dataclass(eq=False)
class _Task:
    number: int
    first: int
    count: int
    keys: list[int] = field(default_factory=list)
    entries: dict[int, Stored] = field(default_factory=dict)
    own: list[Stored] = field(default_factory=list)
    waits: list[threading.Event] = field(default_factory=list)
    decoded: threading.Event = field(default_factory=threading.Event)


class _Reading:
    def __init__(self, tiles: FastTiles, plan: TilePlan, limits: BatchLimits, allocate: Allocate | None) -> None:
        if limits.batch < 1 or (limits.threads is not None and limits.threads < 1):
            raise SlideError("bad-request", "a batch has at least 1 tile, and is read by at least 1 thread")
        self._tiles, self._plan, self._limits = tiles, plan, limits
        self._batch = batch_size(plan, limits)
        self._order: NDArray[np.int64] | None = None  # of the plan's tiles, where it is not their own
        if not limits.ordered and tiles.is_fast(plan.level) and not tiles.is_far and shares_stored(plan):
            self._order, _ = in_blocks(plan, self._batch)
        self._cutter = Cutter(tiles, plan if self._order is None else plan.take(self._order))
        self._threads = limits.threads or cores()
        self._allocate = allocate or self._reused
        self._pool_batches: deque[Batch] | None = deque() if allocate is None else None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._shared: dict[int, Stored] = {}
        self._kept = 0
        self._uses = self._cutter.uses(self._batch)
        tile_bytes = plan.size.pixels * 3
        task_bytes = self._batch * tile_bytes + self._cutter.private_bytes(self._batch)
        self._keep_bytes = limits.memory_bytes // 2
        room = max(1, (limits.memory_bytes - (self._keep_bytes if self._uses else 0)) // task_bytes)
        # One batch more than threads keeps them busy while the caller looks at the oldest.
        self._in_flight = max(1, min(2 * self._threads + 1, room))
        self._workers = ThreadPoolExecutor(min(self._threads, self._in_flight), thread_name_prefix="tiles")
        count = math.ceil(len(plan) / self._batch)
        self._count = count
        self._planned = 0  # tasks whose bytes were asked for
        self._ahead: deque[tuple[_Task, int]] = deque()
        self._ahead_bytes = 0

    def batches(self) -> Iterator[TileBatch]:
        waiting: deque[Future[TileBatch]] = deque()
        submitted = 0
        while submitted < self._count or waiting:
            while submitted < self._count and len(waiting) < self._in_flight:
                waiting.append(self._workers.submit(self._run, self._next()))
                submitted += 1
            if self._limits.ordered or self._threads == 1:  # one thread ends them in this order anyway
                done = waiting.popleft()
            else:
                if not any(f.done() for f in waiting):
                    wait(waiting, return_when=FIRST_COMPLETED)
                done = next(f for f in waiting if f.done())
                waiting.remove(done)
            yield done.result()

    def close(self) -> None:
        self._stop.set()
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _next(self) -> _Task:
        """Return the next task; the bytes of some that follow are asked for meanwhile."""
        until = min(self._count, self._planned + _AHEAD_TASKS)
        while self._planned < until and (not self._ahead or self._ahead_bytes < _AHEAD_BYTES):
            first = self._planned * self._batch
            task = _Task(self._planned, first, min(self._batch, len(self._plan) - first))
            task.keys = self._cutter.needs(task.first, task.count)
            size = self._cutter.prefetch(task.keys)
            self._ahead.append((task, size))
            self._ahead_bytes += size
            self._planned += 1
            if not size:
                break
        task, size = self._ahead.popleft()
        self._ahead_bytes -= size
        if not self._cutter.direct and self._cutter.fast:
            self._claim(task)
        return task

    def _claim(self, task: _Task) -> None:
        """Decide, in the order of tasks, who decodes what."""
        with self._lock:
            for key in task.keys:
                found = self._shared.get(key)
                if found is None:
                    found = self._cutter.stored(key, task.decoded)
                    task.own.append(found)
                    if self._uses.get(key, 1) > 1 and self._kept + found.nbytes <= self._keep_bytes:
                        found.shared = True
                        self._kept += found.nbytes
                        self._shared[key] = found
                elif found.ready is not task.decoded:
                    task.waits.append(found.ready)
                task.entries[key] = found

    def _run(self, task: _Task) -> TileBatch:
        try:
            pixels = self._allocate(task.count)
            if self._cutter.direct or not self._cutter.fast:
                for index in range(task.count):
                    self._check_stop()
                    self._cutter.read_one(task.first + index, pixels[index])
            else:
                for stored in task.own:
                    self._check_stop()
                    self._cutter.decode(stored)
                task.decoded.set()
                for event in task.waits:
                    event.wait()
                for index in range(task.count):
                    self._cutter.cut(task.first + index, task.entries, pixels[index])
        finally:
            task.decoded.set()
            self._give_back(task)
        indices = np.arange(task.first, task.first + task.count)
        if self._order is not None:
            indices = self._order[indices]
        return TileBatch(self._plan, task.number, indices, pixels, self._pool_batches)

    def _give_back(self, task: _Task) -> None:
        with self._lock:
            for key, stored in task.entries.items():
                if not stored.shared:
                    self._cutter.recycle(stored)
                if key in self._uses:
                    self._uses[key] -= 1
                    if self._uses[key] <= 0:
                        del self._uses[key]
                        done = self._shared.pop(key, None)
                        if done is not None:
                            self._kept -= done.nbytes
                            self._cutter.recycle(done)
        task.entries.clear()
        task.own.clear()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise SlideError("cancelled", "reading tiles was ended")

    def _reused(self, count: int) -> Batch:
        size = self._plan.size
        shape = (self._batch, size.height, size.width, 3)
        assert self._pool_batches is not None
        try:
            memory = self._pool_batches.pop()
        except IndexError:
            memory = np.empty(shape, np.uint8)
        return memory[:count]
