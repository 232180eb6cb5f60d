"""Tiles from a pool of reader actors (`mhs_ray.actors.tile_readers`): for a GPU actor or a job script.

The caller's process keeps the list of parts (`mhs_ray.slides.units`) and hands each reader the next one as it becomes
free, so a fast reader takes what a slow one has not begun. Readers on the caller's node decode in place into shared
memory and Ray carries only "part 7 is done"; readers elsewhere answer through the object store. Backpressure is by
bytes: a part is only begun when there is room for all of its tiles. A reader that dies costs its unfinished parts,
which another one reads.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from mhs_ray.actors.tile_readers import ReaderActor, TileSlide
from mhs_ray.domain.errors import MhsError, SlideError
from mhs_ray.slides.bands import cores
from mhs_ray.slides.plan import TilePlan, TileRequest, coordinates, sides
from mhs_ray.slides.remote import RemoteOptions
from mhs_ray.slides.ring import Ring
from mhs_ray.slides.tile_reader import Tissue
from mhs_ray.slides.units import share_out

log = logging.getLogger(__name__)
_resources: Any = ray  # these functions of it have no types

_AHEAD: Final = 2  # parts that a reader has at a time: the next one waits with it, not with us
_MOST: Final = 4
"""Batches in a part. A call for each costs a millisecond; more would have more memory touched for the first time."""

_MAX_LOSSES: Final = 3  # of readers while they held the same part: then it is the part that kills


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """readers: actors, each one core; None for the cores that are free. memory_bytes: of decoded tiles under way.

    batch: tiles in one. ordered: slides in the order given, parts in the plan's order. elsewhere: readers may be placed
    on other nodes. bad_slide: called with the name and the error of a slide that cannot be read, which is then left
    out; when None the error is raised.
    """

    readers: int | None = None
    memory_bytes: int = 512 << 20
    batch: int = 64
    ordered: bool = False
    elsewhere: bool = False
    remote: RemoteOptions | None = None
    bad_slide: Callable[[str, MhsError], None] | None = None


@dataclass(eq=False)
class PoolBatch:
    """Some tiles of one slide. pixels: (n, height, width, 3), good until `release` or the next batch is asked for.

    place: the ring's address, slots and bytes of a slot, and the slot, for an actor on the same node that reads the
    pixels there; None for pixels that came through the object store.
    """

    slide: int
    plan: TilePlan
    indices: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    _release: Callable[[], None] | None = field(default=None, repr=False)
    place: tuple[str, int, int, int] | None = field(default=None, repr=False)
    _kept: bool = False

    def __len__(self) -> int:
        return len(self.indices)

    def record_batch(self) -> pa.RecordBatch:
        """Return slide, level, x, y (level-0 pixels), mpp, and the pixels as a fixed-shape tensor, without a copy."""
        table = coordinates(self.plan, self.indices).combine_chunks().to_batches()[0]
        tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(self.pixels)
        return pa.RecordBatch.from_arrays([*table.columns, tensor], [*table.schema.names, "tile"])

    def keep(self) -> None:
        """Hold the pixels until `release`, also when further batches are asked for; see `TilePool.may_keep`."""
        self._kept = True

    def next_asked(self) -> None:
        """Release, unless `keep` was called."""
        if not self._kept:
            self.release()

    def release(self) -> None:
        """Give the memory back; a second call does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()


@dataclass(eq=False)
class _Part:
    slide: int
    number: int
    plan: TilePlan
    indices: NDArray[np.int64]
    slots: list[int] = field(default_factory=list)
    answer: list[NDArray[np.uint8]] | None = None


class TilePool:
    """See the module. Use it as a context manager, or call `close`: actors and memory are gone then.

    planned, done: tiles so far; `plans` has the plan of each slide by its place, once it was made.
    """

    def __init__(
        self,
        slides: Sequence[TileSlide],
        request: TileRequest,
        options: PoolOptions | None = None,
        *,
        tissue: bool | Tissue = False,
    ) -> None:
        self._slides, self._request, self._tissue = list(slides), request, tissue
        self._options = options = options or PoolOptions()
        if options.batch < 1 or (options.readers is not None and options.readers < 1):
            raise SlideError("bad-request", "a pool has at least 1 reader, and a batch at least 1 tile")
        self._slot_bytes = options.batch * sides(request)[0].pixels * 3
        count = options.readers or max(1, min(cores(), int(_resources.available_resources().get("CPU", 0))))
        self._slots = max(count + 1, options.memory_bytes // self._slot_bytes)
        if self._slot_bytes * (count + 1) > options.memory_bytes:
            raise SlideError(
                "bad-request",
                f"{count} readers of batches of {options.batch} need {self._slot_bytes * (count + 1) >> 20} MiB; "
                f"{options.memory_bytes >> 20} MiB are allowed",
            )
        self._per_part = max(1, min(_MOST, self._slots // (2 * count + 1)))
        # Each reader has slots of its own, last freed first: a page costs as much to touch first as to fill.
        self._free = [list(range(seat, self._slots, count)) for seat in range(count)]
        self._ring = Ring.make(self._slots, self._slot_bytes)
        self._here = ray.get_runtime_context().get_node_id()
        self._readers: list[_Handle] = []
        self.plans: dict[int, TilePlan] = {}
        self.planned, self.done = 0, 0
        self._todo: deque[_Part] = deque()
        self._unplanned = deque(range(len(self._slides)))
        self._bad: set[int] = set()
        self._skipped: set[int] = set()  # parts of bad slides that nobody began
        self._losses: Counter[int] = Counter()  # of readers, by what they were at
        self._numbers = 0
        self._running: dict[Any, tuple[_Handle, _Part | int]] = {}
        try:
            for seat in range(count):
                self._readers.append(self._hire(seat))
        except BaseException:
            self.close()
            raise

    @property
    def may_keep(self) -> int:
        """How many batches the caller may `keep` at a time without the readers running out of memory."""
        return max(1, self._slots // 2)

    def wait_for_readers(self) -> None:
        """Return once every reader runs."""
        ray.get([r.actor.node.remote() for r in self._readers])

    def batches(self) -> Iterator[PoolBatch]:
        """Yield every tile of every slide once. Raises SlideError for a slide that cannot be read; see PoolOptions."""
        waiting: dict[int, _Part] = {}
        following = 0
        while True:
            self._hand_out()
            while self._options.ordered and (following in waiting or following in self._skipped):
                if following in waiting:
                    yield from self._deliver(waiting.pop(following))
                following += 1
                self._hand_out()
            if not self._running:
                self._hand_out()
            starting = [r.up for r in self._readers if r.up is not None]
            if not self._running and not (starting and (self._todo or self._unplanned)):
                if self._todo:
                    raise SlideError("bad-request", f"more than {self.may_keep} batches are kept; release some first")
                return
            ready, _ = ray.wait([*self._running, *starting], num_returns=1)
            for ref in ready:
                if ref not in self._running:
                    continue  # a reader that is up now gets work above
                part = self._take(ref)
                if part is None:
                    continue
                if self._options.ordered:
                    waiting[part.number] = part
                else:
                    yield from self._deliver(part)

    def close(self) -> None:
        """End the readers and give the memory back; a second call does nothing."""
        for reader in self._readers:
            ray.kill(reader.actor)
        self._readers.clear()
        self._running.clear()
        self._todo.clear()
        self._unplanned.clear()
        self._ring.close()

    def __enter__(self) -> TilePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hire(self, seat: int) -> _Handle:
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0}
        if not self._options.elsewhere:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self._here, soft=False)
        ring = None if self._options.elsewhere else (self._ring.address, self._slots, self._slot_bytes)
        first = self._free[seat][-_AHEAD * self._per_part :]
        actor = ReaderActor.options(**options).remote(self._options.remote, ring, first)
        return _Handle(actor, seat, actor.node.remote())

    def _see_who_is_up(self) -> None:
        """A reader that finds no free core yet, or never, must not hold up work that others could do."""
        for reader in self._readers:
            if reader.up is not None and ray.wait([reader.up], timeout=0)[0]:
                with suppress(ray.exceptions.RayActorError):  # what it is given next will tell
                    reader.near = reader.near and ray.get(reader.up) == self._here
                reader.up = None

    def _hand_out(self) -> None:
        """Give each reader with room for it the next part; plan the next slide before the last one's parts run out."""
        self._see_who_is_up()
        for reader in sorted((r for r in self._readers if r.up is None), key=lambda r: r.load):
            while reader.load < _AHEAD:
                few = len(self._todo) < 2 * len(self._readers)
                planning = any(isinstance(what, int) for _, what in self._running.values())
                if self._unplanned and few and not planning:
                    slide = self._unplanned.popleft()
                    ref = reader.actor.plan.remote(self._slides[slide], self._request, self._tissue)
                    self._begin(ref, reader, slide)
                    continue
                if not self._todo:
                    break
                part = self._todo[0]
                wanted = -(-len(part.indices) // self._options.batch)
                free = self._free[reader.seat]
                if len(free) < wanted:
                    break
                part.slots = [free.pop() for _ in range(wanted)]
                self._todo.popleft()
                ring = (self._ring.address, self._slots, self._slot_bytes) if reader.near else None
                tiles = part.plan.take(part.indices)
                slide_ = self._slides[part.slide]
                ref = reader.actor.read.remote(slide_, tiles, self._options.batch, ring, part.slots)
                self._begin(ref, reader, part)

    def _begin(self, ref: Any, reader: _Handle, what: _Part | int) -> None:
        self._running[ref] = (reader, what)
        reader.load += 1

    def _take(self, ref: Any) -> _Part | None:
        """Return the part that is done; None where the answer was a plan, an error, or never came."""
        reader, _ = self._running[ref]
        oldest = next(w for r, w in self._running.values() if r is reader)  # what the reader is at, if it is alive
        _, what = self._running.pop(ref)
        reader.load -= 1
        slide = what if isinstance(what, int) else what.slide
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayActorError:
            return self._lost(reader, what, oldest)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, MhsError) else None
            if cause is None or self._options.bad_slide is None:
                raise (cause or error) from None
            self._leave_out(slide, cause, what)
            return self._empty(what)
        if isinstance(what, int):
            self._planned(what, answer)
            return None
        what.answer = answer
        if slide in self._bad:
            self._give_back(what.slots)
            return self._empty(what)
        return what

    def _empty(self, what: _Part | int) -> _Part | None:
        """A part of a slide that was left out still has its place in the order."""
        if isinstance(what, int):
            return None
        what.indices, what.slots, what.answer = what.indices[:0], [], None
        return what

    def _planned(self, slide: int, plan: TilePlan) -> None:
        self.plans[slide] = plan
        self.planned += len(plan)
        batch, options = self._options.batch, self._options
        parts = share_out(
            plan, batch, self._per_part * batch, len(self._readers), ordered=options.ordered,
            begins=not self._numbers, ends=not self._unplanned,
        )  # fmt: skip
        for indices in parts:
            self._todo.append(_Part(slide, self._numbers, plan, indices))
            self._numbers += 1

    def _lost(self, reader: _Handle, what: _Part | int, oldest: _Part | int) -> _Part | None:
        """Replace the reader and have its work done again, unless it is the work that kills: what it was at."""
        if reader in self._readers:
            log.warning("a tile reader died; another one takes over what it had not finished")
            ray.kill(reader.actor)  # one that is only out of reach would go on writing to its slots
            self._readers.remove(reader)
            self._readers.append(self._hire(reader.seat))
            self._losses[_key(oldest)] += 1
        slide = what if isinstance(what, int) else what.slide
        if isinstance(what, _Part):
            self._give_back(what.slots)
            what.slots = []
        if slide not in self._bad and self._losses[_key(what)] < _MAX_LOSSES:
            if isinstance(what, int):
                self._unplanned.appendleft(what)
            else:
                self._todo.appendleft(what)
            return None
        error = SlideError("unreadable", f"{self._name(slide)} killed {_MAX_LOSSES} readers; it is hostile")
        if self._options.bad_slide is None:
            raise error
        self._leave_out(slide, error, what)
        return self._empty(what)

    def _name(self, slide: int) -> str:
        source = self._slides[slide]
        return source.name or source.where.split("?")[0]

    def _leave_out(self, slide: int, error: MhsError, what: _Part | int) -> None:
        if slide not in self._bad:
            self._bad.add(slide)
            self._skipped.update(p.number for p in self._todo if p.slide == slide)
            self._todo = deque(p for p in self._todo if p.slide != slide)
            plan = self.plans.pop(slide, None)
            if plan is not None:
                self.planned -= len(plan)
            assert self._options.bad_slide is not None
            self._options.bad_slide(self._name(slide), error)
        if isinstance(what, _Part):
            self._give_back(what.slots)

    def _give_back(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._free[slot % len(self._free)].append(slot)

    def _deliver(self, part: _Part) -> Iterator[PoolBatch]:
        if part.slide in self._bad:
            self._give_back(part.slots)
            return
        batch, size = self._options.batch, part.plan.size
        for at, slot in enumerate(part.slots):
            indices = part.indices[at * batch : (at + 1) * batch]
            if part.answer is not None:
                pixels = part.answer[at]
            else:
                pixels = self._ring.tiles(slot, len(indices), size.height, size.width)
            made = PoolBatch(part.slide, part.plan, indices, pixels, partial(self._give_back, [slot]))
            if part.answer is None:
                made.place = (self._ring.address, self._slots, self._slot_bytes, slot)
            self.done += len(indices)
            yield made
            made.next_asked()


def _key(what: _Part | int) -> int:
    """A slide while it was planned, or a part."""
    return ~what if isinstance(what, int) else what.number


@dataclass(eq=False)
class _Handle:
    """up: what answers once the reader runs; None when it does. near: it is on the caller's node."""

    actor: Any
    seat: int
    up: Any
    near: bool = True
    load: int = 0
