"""The dispatcher's actor: detached, on the head, back at once when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from time import monotonic, time
from typing import Any, Final, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mhs_ray.actors.ahead import RayNodes
from mhs_ray.actors.cluster import RayCluster, nodes
from mhs_ray.actors.metrics import removals_counter, starts_counter
from mhs_ray.actors.names import DISPATCHER, NAMESPACE, begin_soon, start_on_head
from mhs_ray.actors.node import sweep_node
from mhs_ray.actors.warm import prestart_worker, replace_worker
from mhs_ray.attempt.order import Outcome
from mhs_ray.dispatch.ahead import Ahead
from mhs_ray.dispatch.dispatcher import AttemptKey, Dispatcher
from mhs_ray.domain.instances import LABEL
from mhs_ray.domain.settings import load_settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.logs import configure_logging
from mhs_ray.services.core import build_core_patiently, build_courier
from mhs_ray.store.sql.lead import Lead
from mhs_ray.store.sql.listen import Listener, listen
from mhs_ray.telemetry.traces import open_traces

log = logging.getLogger(__name__)

T = TypeVar("T")

_RECONCILE_S: Final = 10.0
_SWEEP_S: Final = 60.0
_DB_BACK_S: Final = 2.0
_LOOK_S: Final = 0.5  # between looks ahead, however often somebody wakes us
_COHORT_S: Final = 1.0
_MIND_S: Final = 2.0
_BREATH_S: Final = 0.05  # from one look at the queue to the next: hundreds of submissions a second need no more
_THREADS: Final = 32  # what attempts tell at the same time is stored at the same time


class DispatcherShell:
    """Waits so that `Dispatcher` need not: for wake-ups, for due retries, for the ends of attempts."""

    def __init__(self) -> None:
        settings = load_settings()
        configure_logging(settings)
        self._core = build_core_patiently(settings, Endpoints.of(settings))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cluster = RayCluster(settings.cluster, self._launched)
        self._count_removal = removals_counter()
        self._ahead = Ahead(
            self._core, RayNodes(settings.cluster), self._errand_done, lambda gone: self._count_removal(gone.why)
        )
        self._looking: asyncio.Task[None] | None = None
        self._dispatcher = Dispatcher(self._core, self._cluster, prefer=self._ahead.prefer)
        self._wake = asyncio.Event()
        self._waiting: dict[AttemptKey, asyncio.Task[None]] = {}
        self._placed: dict[AttemptKey, str] = {}  # Ray's id of the node that an attempt lives on
        self._clean: set[str] = set()  # nodes whose last sweep found nothing, and that got no attempt since
        self._seen: set[str] = set()
        self._minding: asyncio.Task[None] | None = None
        self._main: asyncio.Task[None] | None = None
        self._sweep_now = False
        self._lead = Lead(self._core.db)
        self._listener: Listener | None = None
        self._count_start = starts_counter()
        self._traces = open_traces(settings.telemetry, self._core.keys.platform, "dispatcher", self._core.db)
        self._courier = build_courier(self._core, self._traces.delivered if self._traces else lambda *_: None)
        if self._courier is not None:
            self._courier.start()
        begin_soon(DISPATCHER)

    async def begin(self) -> None:
        """Reconcile, then dispatch for ever; twice is as good as once."""
        if self._main is None or self._main.done():
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
                self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, "dispatcher"))
            self._main = asyncio.create_task(self._run())

    async def ping(self) -> str:
        """Answer while the loop runs."""
        await self.begin()
        return "ok"

    async def wake(self) -> None:
        """Look at the queue now: something was committed, cancelled or rerun."""
        await self.begin()
        self._heard()

    async def retire(self) -> None:
        """Take nothing up any more, and end deliveries that are under way: a successor is about to start."""
        if self._main is not None:
            self._main.cancel()
        if self._courier is not None:
            await asyncio.to_thread(self._courier.close)
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)

    async def active(self) -> list[AttemptKey]:
        """Return the attempts that are wanted now, for a node's sweep."""
        return [(j.id, j.attempt) for j in await asyncio.to_thread(self._core.jobs.jobs.active)]

    async def _run(self) -> None:
        await self._until_leading()
        await asyncio.to_thread(self._cluster.adopt)
        if self._core.settings.cluster.placement == "label":
            self._minding = asyncio.create_task(self._mind_nodes())
        next_reconcile = next_sweep = 0.0
        while True:
            self._wake.clear()
            await self._until_leading()
            now = monotonic()
            try:
                if now >= next_reconcile:
                    await asyncio.to_thread(self._dispatcher.reconcile)
                    next_reconcile = now + _RECONCILE_S
                    await asyncio.to_thread(self._look_for_nodes)
                if now >= next_sweep or self._sweep_now:
                    self._sweep_now = False
                    await asyncio.to_thread(self._sweep)
                    next_sweep = now + _SWEEP_S
                cohorts_at_work = await asyncio.to_thread(self._feed_cohorts)
                while await asyncio.to_thread(self._dispatcher.dispatch):
                    pass
                self._look_ahead()
                await asyncio.to_thread(self._stop_unwanted)
                pause = await asyncio.to_thread(self._pause)
                if cohorts_at_work:  # a slide that ended makes room for the next one
                    pause = min(pause, _COHORT_S)
            except Exception:
                log.exception("the dispatcher could not work; it tries again")
                pause = _DB_BACK_S
            try:
                await asyncio.wait_for(self._wake.wait(), min(pause, max(0.05, next_reconcile - monotonic())))
            except TimeoutError:
                continue
            await asyncio.sleep(max(0.0, _BREATH_S - (monotonic() - now)))

    def _look_ahead(self) -> None:
        """Have nodes fetch what comes next, beside the dispatching and never in its way."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        try:
            await asyncio.to_thread(self._ahead.look)
        except Exception:
            log.exception("nothing is fetched ahead for now")
        await asyncio.sleep(_LOOK_S)

    def _errand_done(self) -> None:
        assert self._loop is not None  # no errand is sent before `begin`
        self._loop.call_soon_threadsafe(self._wake.set)

    async def _until_leading(self) -> None:
        """Stand by while another dispatcher works on this database."""
        told = False
        while not await asyncio.to_thread(self._lead.take):
            if not told:
                log.warning("another dispatcher leads, or the database is away; this one stands by")
                told = True
            await asyncio.sleep(_DB_BACK_S)
        if self._traces is not None:
            self._traces.follow()
        if self._listener is None:
            loop = asyncio.get_running_loop()

            def heard() -> None:
                loop.call_soon_threadsafe(self._heard)

            self._listener = listen(self._core.db, heard)

    def _feed_cohorts(self) -> bool:
        try:
            return self._core.cohorts.step()
        except Exception:
            log.exception("cohorts could not be gone on with; it is tried again")  # other jobs go on meanwhile
            return True

    def _heard(self) -> None:
        self._wake.set()
        if self._courier is not None:
            self._courier.wake()

    def _pause(self) -> float:
        due = self._core.jobs.jobs.next_due()
        if due is None:
            return _RECONCILE_S
        wait = (due - datetime.now(UTC)).total_seconds()
        # Due already, yet not taken: as many wait for a node as may; an end will wake us.
        return wait + 0.01 if wait > 0 else _RECONCILE_S

    async def _mind_nodes(self) -> None:
        while True:
            await asyncio.sleep(_MIND_S)
            try:
                if await asyncio.to_thread(self._give_back):
                    self._wake.set()  # what was given back is not wanted any more: its container is stopped
            except Exception:
                log.exception("nodes that go could not be looked for; it is tried again")

    def _give_back(self) -> bool:
        """Give back what runs on nodes that are about to go; returns whether there was any."""
        going = self._cluster.draining() if self._placed else {}
        margin = self._core.settings.cluster.give_back.total_seconds()
        doomed = [(k, going[n]) for k, n in list(self._placed.items()) if n in going and going[n] - margin <= time()]
        for key, end in doomed:
            log.warning("attempt %s of job %s is given back: its node goes", key[1], key[0])
            self._dispatcher.preempted(key, datetime.fromtimestamp(end, UTC))
        return bool(doomed)

    def _stop_unwanted(self) -> None:
        wanted = {(j.id, j.attempt) for j in self._core.jobs.jobs.active()}
        for key in self._waiting.keys() - wanted:
            self._cluster.stop(key)

    def _launched(self, key: AttemptKey, actor: Any) -> None:
        assert self._loop is not None  # nothing is launched before `begin`
        self._loop.call_soon_threadsafe(self._watch, key, actor)

    def _watch(self, key: AttemptKey, actor: Any) -> None:
        if key not in self._waiting:
            self._waiting[key] = asyncio.create_task(self._settle(key, actor))

    async def _settle(self, key: AttemptKey, actor: Any) -> None:
        """See an attempt through: give it its order, take in its start and its end."""
        try:
            while True:
                try:
                    node_id, node = await actor.ready.remote()
                    self._placed[key] = node_id
                    self._clean.discard(node_id)
                    order = await self._stored(self._dispatcher.order, key, node)
                    self._wake.set()  # one fewer waits for a node: the next one may
                    if order is not None:
                        starting = asyncio.create_task(self._start(key, actor, node_id, order.instance_type))
                        outcome: Outcome | None = await actor.run.remote(order)
                        starting.cancel()
                        if outcome is not None:
                            self._tell_removals(node, outcome)
                            await self._stored(self._dispatcher.settle, key, outcome)
                    break
                except ray.exceptions.ActorUnavailableError:
                    await asyncio.sleep(2)  # not to be reached is not dead
                except ray.exceptions.RayActorError:
                    await self._stored(self._dispatcher.lost, key, "the worker process or its node died")
                    # Its container may still hold the GPU that the next attempt will be given.
                    self._sweep_now = True
                    break
            await asyncio.to_thread(self._cluster.forget, key)
        finally:
            self._clean.discard(self._placed.pop(key, ""))
            self._waiting.pop(key, None)
            self._wake.set()

    def _tell_removals(self, node: str, outcome: Outcome) -> None:
        for image, why in outcome.resources.get("images_removed", ()):
            log.info("node %s removed image %s (%s)", node, image, why)
            self._count_removal(why)

    async def _start(self, key: AttemptKey, actor: Any, node_id: str, instance_type: str) -> None:
        """Take in that the container runs; the node then has time to make a worker ready for the next attempt."""
        with contextlib.suppress(ray.exceptions.RayActorError):  # `run` tells of the actor's death
            if await actor.started.remote():
                await self._stored(self._dispatcher.started, key)
                self._count_start(instance_type)
                await asyncio.to_thread(self._ahead.started, key, node_id)
                await asyncio.to_thread(self._warm, node_id)

    async def _stored(self, work: Callable[..., T], *args: Any) -> T:
        """Do `work` until the database takes it: what was seen is not forgotten."""
        while True:
            try:
                return await asyncio.to_thread(work, *args)
            except Exception:
                log.exception("what an attempt told could not be stored; it is tried again")
                await asyncio.sleep(_DB_BACK_S)

    @staticmethod
    def _warm(node_id: str) -> None:
        for node in nodes():
            if node["NodeID"] == node_id:
                prestart_worker(node)

    def _look_for_nodes(self) -> None:
        """Have a node swept that just came: its machine may have been one before, and hold what ran there."""
        alive = {node["NodeID"] for node in nodes() if node["Alive"]}
        self._sweep_now = self._sweep_now or not alive <= self._seen
        self._seen = alive
        self._clean &= alive

    def _sweep(self) -> None:
        """Have each node look for what nobody owns; on a cluster only where something may be.

        A task, also one that asks for nothing, makes the autoscaler count a node's idle time from its end.
        """
        single = self._core.settings.cluster.placement == "single"
        for node in nodes():
            node_id = node["NodeID"]
            if not node["Alive"] or not (single or (node_id not in self._clean and LABEL in node["Labels"])):
                continue
            busy = node_id in self._placed.values()
            swept = _on(node_id, _sweep).remote(self._core.keys.platform)
            if not single and not busy:
                self._clean.add(node_id)
                swept.future().add_done_callback(functools.partial(self._swept, node_id))

    def _swept(self, node_id: str, sweep: Future[list[str]]) -> None:
        if sweep.exception() is not None or sweep.result():
            self._clean.discard(node_id)  # look again: not all of it may have gone


def _on(node_id: str, task: Any) -> Any:
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))


@ray.remote(num_cpus=0, max_retries=0)
def _sweep(platform: str) -> list[str]:
    replace_worker()

    def alive() -> list[AttemptKey]:
        keys: list[AttemptKey] = ray.get(ray.get_actor(DISPATCHER, NAMESPACE).active.remote())
        return keys

    return sweep_node(platform, alive)


DispatcherActor = ray.remote(DispatcherShell)


def start_dispatcher() -> None:
    """Start the dispatcher unless it is there."""
    start_on_head(DispatcherActor, DISPATCHER, max_concurrency=1000)
