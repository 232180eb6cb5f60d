"""The real dispatcher on a virtual clock: nodes, workers, messages, databases and people that fail by a seed.

``python -m tests.simulation.simulate --schedules 10000`` tries that many fault schedules, then one of 100,000 jobs on
1,000 nodes; its last line is one JSON object.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from mhs_ray.attempt.order import ContainerExit, Outcome
from mhs_ray.dispatch.dispatcher import AttemptKey, Dispatcher
from mhs_ray.domain.errors import ConflictError
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.sections import JobSettings
from mhs_ray.domain.states import JobEvent, JobState
from tests.simulation.stores import MemoryJob, MemoryJobs, MemoryResults

START = datetime(2026, 1, 1, tzinfo=UTC)
KIND = "g4dn.xlarge"


class Crash(BaseException):
    """The dispatcher's process dies here."""


class Down(Exception):  # noqa: N818 (a state of the world)
    """The database does not answer, or not in time: what was asked may be done all the same."""


@dataclass(frozen=True)
class Plan:
    """How large and how bad a schedule is. Rates: per call, per message, or per hour of virtual time."""

    jobs: int = 30
    nodes: int = 6
    companies: int = 3
    caps: bool = True
    max_waiting: int = 8
    crash: float = 0.0  # per call of the dispatcher into store or cluster
    down: float = 0.0  # the same
    lost: float = 0.0  # per message between dispatcher and attempt
    twice: float = 0.0
    late: float = 0.0
    worker_deaths: float = 0.0  # per attempt
    splits: float = 0.0  # per attempt: given up for dead, and works on
    platform: float = 0.0  # per attempt: the node fails it
    node_losses_h: float = 0.0  # per hour
    cancels: float = 0.0  # per job
    faults_end_s: float = 7200.0

    @classmethod
    def random(cls, rng: random.Random) -> Plan:
        """Return a small and bad one: each kind of fault is there or not, mildly or hard."""

        def rate(hard: float) -> float:
            return rng.choice([0.0, 0.0, hard / 10, hard])

        return cls(
            jobs=rng.randint(1, 40), nodes=rng.randint(1, 12), companies=rng.randint(1, 4),
            max_waiting=rng.choice([1, 2, 8]), crash=rate(0.05), down=rate(0.1), lost=rate(0.2), twice=rate(0.3),
            late=rate(0.3), worker_deaths=rate(0.3), splits=rate(0.3), platform=rate(0.3), node_losses_h=rate(60),
            cancels=rate(0.5),
        )  # fmt: skip


@dataclass(eq=False)
class Actor:
    """An attempt on the cluster, as Ray knows it. node: None while it waits for one."""

    key: AttemptKey
    node: int | None = None
    dead: bool = False
    stopped: bool = False
    began: bool = False
    running: bool = False
    outcome: Outcome | None = None
    on_placed: list[Callable[[], None]] = field(default_factory=list)
    on_ended: list[Callable[[], None]] = field(default_factory=list)


class Simulation:
    """One schedule. `run` returns what happened and raises AssertionError where an invariant breaks."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.rng, self.t = plan, random.Random(seed), 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        caps = {c: self.rng.choice([None, 1, 3]) if plan.caps else None for c in range(plan.companies)}
        self.jobs = MemoryJobs(caps, self.now)
        self.results = MemoryResults(self.jobs)
        self.free = set(range(plan.nodes))
        self.known: dict[AttemptKey, Actor] = {}
        self.pending: dict[AttemptKey, Actor] = {}
        self.counts: Counter[str] = Counter()
        self.cancelled: set[int] = set()
        self._epoch = 0
        self._watched: set[AttemptKey] = set()
        self._tick_at = float("inf")
        self._next_reconcile = 0.0
        self._calls_fail = plan.crash + plan.down > 0
        self._begin()

    # ------------------------------------------------------------ time

    def now(self) -> datetime:
        return START + timedelta(seconds=self.t)

    def at(self, delay: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.t + delay, next(self._order), work))

    def chance(self, rate: float) -> bool:
        return rate > 0 and self.t < self.plan.faults_end_s and self.rng.random() < rate

    # ------------------------------------------------------------ the dispatcher's process

    def _begin(self) -> None:
        self._watched.clear()
        core = SimpleNamespace(
            jobs=SimpleNamespace(jobs=_Failing(self, self.jobs), results=_Failing(self, self.results)),
            settings=SimpleNamespace(
                jobs=JobSettings(), cluster=SimpleNamespace(max_waiting=self.plan.max_waiting, placement="single")
            ),
        )
        self.dispatcher = Dispatcher(core, _Failing(self, _Cluster(self)), self.now)  # type: ignore[arg-type]
        self._next_reconcile = self.t
        for key in list(self.known):  # adopt
            self.watch(key)
        self.wake()

    def _crash(self) -> None:
        self.counts["dispatcher crash"] += 1
        self._epoch += 1
        self._tick_at = float("inf")
        epoch = self._epoch
        self.at(self.rng.uniform(0.5, 5), lambda: self._begin() if epoch == self._epoch else None)

    def mine(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return `work` as done by today's dispatcher: nothing after it died, a crash ends it."""
        epoch = self._epoch

        def run() -> None:
            if epoch != self._epoch:
                return
            try:
                work()
            except Crash:
                self._crash()

        return run

    def stored(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return `work` done until the database takes it."""

        def run() -> None:
            try:
                work()
            except Down:
                self.at(2, again)

        again = self.mine(run)
        return again

    def wake(self) -> None:
        self._tick_in(0.0)

    def _tick_in(self, delay: float) -> None:
        if self.t + delay < self._tick_at:
            self._tick_at = self.t + delay
            self.at(delay, self.mine(self._tick))

    def _tick(self) -> None:
        if self.t < self._tick_at:
            return
        self._tick_at = float("inf")
        try:
            if self.t >= self._next_reconcile:
                self.dispatcher.reconcile()
                self._next_reconcile = self.t + 10
            while self.dispatcher.dispatch():
                pass
            wanted = {(j.id, j.attempt) for j in self.jobs.active()}
            for key in self._watched - wanted:
                self.stop(key)
            due = self.jobs.next_due()
            wait = 10.0 if due is None else (due - self.now()).total_seconds()
            pause = wait + 0.01 if wait > 0 else 10.0
        except Down:
            pause = 2.0
        self._tick_in(min(pause, max(0.05, self._next_reconcile - self.t)))

    def watch(self, key: AttemptKey) -> None:
        if key in self._watched:
            return
        self._watched.add(key)
        actor = self.known.get(key)
        if actor is None:
            self._gone(key)
        elif actor.node is None:
            actor.on_placed.append(self.mine(lambda: self._placed(key)))
        else:
            self.message(lambda: self._placed(key))

    def message(self, work: Callable[[], None]) -> None:
        """Have something heard: soon, late, twice, or only when it is asked for again."""
        delay = self.rng.uniform(0.001, 0.05)
        if self.chance(self.plan.lost):
            self.counts["message lost"] += 1
            delay += 2
        if self.chance(self.plan.late):
            self.counts["message late"] += 1
            delay += self.rng.uniform(1, 120)
        self.at(delay, self.mine(work))
        if self.chance(self.plan.twice):
            self.counts["message twice"] += 1
            self.at(delay + self.rng.uniform(0, 60), self.mine(work))

    def _placed(self, key: AttemptKey) -> None:
        actor = self.known.get(key)
        if actor is None or actor.dead:
            self._gone(key)
            return

        def order() -> None:
            wanted = self.dispatcher.order(key, f"node-{actor.node}")
            if wanted is None:
                self._forget(key)
            else:
                actor.on_ended.append(self.mine(lambda: self.message(lambda: self._ended(key))))
                self.begin(actor)

        self.stored(order)()

    def _ended(self, key: AttemptKey) -> None:
        actor = self.known.get(key)
        if actor is None or actor.dead or actor.outcome is None:
            self._gone(key)
            return
        outcome = actor.outcome

        def settle() -> None:
            self.dispatcher.settle(key, outcome)
            self._forget(key)

        self.stored(settle)()

    def _gone(self, key: AttemptKey) -> None:
        def lost() -> None:
            self.dispatcher.lost(key, "its node or its process died")
            self._watched.discard(key)
            self.wake()

        self.at(self.rng.uniform(0.5, 15), self.stored(lost))

    def _forget(self, key: AttemptKey) -> None:
        self.kill(key)
        self._watched.discard(key)
        self.wake()

    # ------------------------------------------------------------ the cluster

    def launch(self, key: AttemptKey) -> None:
        if key not in self.known:
            self.known[key] = self.pending[key] = Actor(key)
        self.watch(key)
        self.place()

    def place(self) -> None:
        while self.free and self.pending:
            key = next(iter(self.pending))
            actor = self.pending.pop(key)
            actor.node = self.free.pop()
            for told in actor.on_placed:
                self.at(self.rng.uniform(0.1, 1), told)

    def kill(self, key: AttemptKey, *, node_lives: bool = True) -> None:
        actor = self.known.pop(key, None)
        if actor is None:
            return
        actor.dead = True
        self.pending.pop(key, None)
        if actor.node is not None and node_lives:
            self.free.add(actor.node)
            self.place()
        for told in (*actor.on_placed, *actor.on_ended):
            self.at(self.rng.uniform(0.5, 15), told)  # whoever waits for it hears of its death

    def stop(self, key: AttemptKey) -> None:
        actor = self.known.get(key)
        if actor is None:
            return
        if actor.node is None:
            self.kill(key)
        else:
            actor.stopped = True
            self.at(self.rng.uniform(0.1, 10), lambda: self.end(actor, self._exit(137, stopped=True)))

    def begin(self, actor: Actor) -> None:
        """The attempt got its order; asked twice it goes on with what it does."""
        if actor.outcome is not None:
            for told in actor.on_ended:
                self.at(0.01, told)
            actor.on_ended.clear()
        if actor.began:
            return
        actor.began = True
        slow = self.rng.choice([1, 1, 1, 20])
        prepare, run = self.rng.uniform(0.5, 20) * slow, self.rng.uniform(1, 300) * slow
        if self.chance(self.plan.platform):
            failure = Failure(FailureCode.PULL_FAILED, "the registry is away", "wait")
            self.at(prepare, lambda: self.end(actor, Outcome(None, failure, {})))
            return
        self.at(prepare, lambda: self._started(actor))
        job_id, attempt = actor.key
        posts, code = self.rng.random() < 0.9, 0 if self.rng.random() < 0.9 else 1
        if self.chance(self.plan.worker_deaths):
            self.at(self.rng.uniform(0, prepare + run), lambda: self._die(actor, "worker death", works_on=False))
        elif self.chance(self.plan.splits):
            self.at(self.rng.uniform(0, prepare + run), lambda: self._die(actor, "network split", works_on=True))
        if posts:
            self.at(prepare + run * 0.9, lambda: self._post(actor, job_id, attempt))
        self.at(prepare + run, lambda: self.end(actor, self._exit(code)))

    def _started(self, actor: Actor) -> None:
        if actor.dead or actor.stopped:
            return
        actor.running = True
        key = actor.key

        def started() -> None:
            self.dispatcher.started(key)

        self.message(self.stored(started))

    def _post(self, actor: Actor, job_id: int, attempt: int) -> None:
        if not actor.running:
            return
        job = self.jobs.rows[job_id]
        for _ in range(self.rng.choice([1, 1, 2])):  # the container's own client tries again
            if self.results.post(job_id, attempt):
                assert job.attempt == attempt, "a stale attempt's result was taken"
                assert job.state.is_active, "a result was taken of a job that is not under way"

    def _die(self, actor: Actor, how: str, *, works_on: bool) -> None:
        if actor.dead or actor.outcome is not None:
            return
        self.counts[how] += 1
        self.kill(actor.key)
        if not works_on:
            actor.running = False

    def end(self, actor: Actor, outcome: Outcome) -> None:
        if actor.dead or actor.outcome is not None:
            return
        actor.outcome, actor.running = outcome, False
        for told in actor.on_ended:
            self.at(0.01, told)
        actor.on_ended.clear()

    @staticmethod
    def _exit(code: int, stopped: bool = False) -> Outcome:
        return Outcome(ContainerExit(code, False, False, stopped, ()), None, {})

    def _lose_node(self) -> None:
        """A node goes with all that is on it, and another comes later."""
        if self.t >= self.plan.faults_end_s:
            return
        self.counts["node loss"] += 1
        node = self.rng.randrange(self.plan.nodes)
        self.free.discard(node)
        for actor in [a for a in self.known.values() if a.node == node]:
            actor.running = False
            self.kill(actor.key, node_lives=False)
        self.at(self.rng.uniform(1, 60), lambda: self._node_back(node))
        self.at(self.rng.expovariate(self.plan.node_losses_h / 3600), self._lose_node)

    def _node_back(self, node: int) -> None:
        if not any(a.node == node for a in self.known.values()):
            self.free.add(node)
            self.place()

    # ------------------------------------------------------------ people

    def _submit(self, job_id: int) -> None:
        company = self.rng.randrange(self.plan.companies)
        now = self.now()
        self.jobs.add(MemoryJob(job_id, company, self.rng.choice([0, 0, 1]), now, now))
        self.wake()
        if self.chance(self.plan.cancels):
            self.at(self.rng.uniform(0, 600), lambda: self._cancel(job_id))

    def _cancel(self, job_id: int) -> None:
        try:
            self.jobs.transition(job_id, JobEvent.CANCELLED)
            self.cancelled.add(job_id)
            self.counts["cancel"] += 1
        except ConflictError:
            return
        self.wake()

    # ------------------------------------------------------------ the run

    def run(self, limit_s: float = 30 * 86400) -> dict[str, Any]:
        plan = self.plan
        for job_id in range(1, plan.jobs + 1):
            self.at(0.0 if plan.jobs > 1000 else self.rng.uniform(0, 600), lambda i=job_id: self._submit(i))  # type: ignore[misc]
        if plan.node_losses_h:
            self.at(self.rng.expovariate(plan.node_losses_h / 3600), self._lose_node)
        ended = 0
        with patch("mhs_ray.dispatch.dispatcher.make_order", lambda _core, job: (job.id, job.attempt)):
            checks = 0
            while self._events:
                self.t, _, work = heapq.heappop(self._events)
                assert self.t < limit_s, f"after {limit_s} s of virtual time jobs still wait"
                work()
                checks += 1
                if checks % 64 == 0:
                    self._check_now()
                    if len(self.jobs.rows) == plan.jobs and not self.known and not self.jobs.active_rows:
                        ended = sum(j.state.is_terminal for j in self.jobs.rows.values())
                        if ended == plan.jobs and self.t > 700:
                            break
        self._check_end()
        return {"accepted": plan.jobs, "ended": sum(j.state.is_terminal for j in self.jobs.rows.values()),
                "virtual_s": round(self.t), "faults": dict(self.counts)}  # fmt: skip

    def _check_now(self) -> None:
        assert self.jobs.waiting <= self.plan.max_waiting
        for company, cap in self.jobs.caps.items():
            assert cap is None or self.jobs.active_of[company] <= cap, f"company {company} is over its cap"

    def _check_end(self) -> None:
        assert not self.known, f"attempts are left on the cluster: {list(self.known)[:3]}"
        for job in self.jobs.rows.values():
            assert job.state.is_terminal, f"job {job.id} is {job.state}: it was lost"
            ends = [after for _, after, _ in job.story if after.is_terminal]
            assert ends == [job.state], f"job {job.id} ended {len(ends)} times"
            attempts = [a for event, _, a in job.story if event is JobEvent.DISPATCHED]
            assert attempts == list(range(1, len(attempts) + 1))
            assert job.platform_failures <= 4
            if job.state is JobState.SUCCEEDED:
                assert self.results.taken.get(job.id) == job.attempt, f"job {job.id} succeeded without its result"
            if job.id in self.cancelled:
                assert job.state is JobState.CANCELLED


class _Cluster:
    """The dispatcher's side of the simulated cluster."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim

    def offers(self, _kind: str) -> bool:
        return True

    def launch(self, key: AttemptKey, _label: str, _kind: str, _prefer: str | None = None) -> None:
        self._sim.launch(key)

    def stop(self, key: AttemptKey) -> None:
        self._sim.stop(key)

    def forget(self, key: AttemptKey) -> None:
        self._sim.kill(key)

    def attempts(self) -> Collection[AttemptKey]:
        return list(self._sim.known)


class _Failing:
    """A port whose every call may find the database away or kill the caller, before or after it did its work."""

    def __init__(self, sim: Simulation, inner: Any) -> None:
        self._sim, self._inner = sim, inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        sim = self._sim
        if not sim._calls_fail:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            fault: type[BaseException] | None = None
            if sim.chance(sim.plan.crash):
                fault = Crash
            elif not isinstance(self._inner, _Cluster) and sim.chance(sim.plan.down):
                fault = Down
                sim.counts["database down"] += 1
            if fault is not None and sim.rng.random() < 0.5:
                raise fault
            done = found(*args, **kwargs)
            if fault is not None:
                raise fault
            return done

        return call


def large(seed: int, jobs: int, nodes: int) -> dict[str, Any]:
    """Run one schedule of a whole site."""
    plan = Plan(
        jobs=jobs, nodes=nodes, companies=50, caps=False, max_waiting=64, crash=1e-5, down=1e-4, lost=0.001,
        twice=0.001, late=0.001, worker_deaths=0.005, splits=0.005, platform=0.005, node_losses_h=30, cancels=0.01,
        faults_end_s=1e9,
    )  # fmt: skip
    return Simulation(plan, seed).run()


def many(schedules: int, seed: int) -> dict[str, Any]:
    """Run random schedules; the seed of one that breaks is in the error."""
    faults: Counter[str] = Counter()
    accepted = 0
    for i in range(seed, seed + schedules):
        plan = Plan.random(random.Random(i))
        try:
            done = Simulation(plan, i).run()
        except AssertionError as error:
            raise AssertionError(f"schedule {i} ({plan}): {error}") from error
        accepted += done["accepted"]
        faults.update(done["faults"])
    return {"schedules": schedules, "accepted": accepted, "ended": accepted, "faults": dict(sorted(faults.items()))}


def main() -> int:
    """Run what the arguments say; the last line is one JSON object."""
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    small = many(args.schedules, args.seed)
    print(json.dumps(small), flush=True)
    site = large(args.seed, args.jobs, args.nodes)
    print(json.dumps({"schedules": small, "site": site, "seconds": round(time.monotonic() - began, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
