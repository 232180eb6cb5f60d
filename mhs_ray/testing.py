"""A cluster in memory, for tests of the dispatcher and of whatever stands on it. It does what Ray would, and no more.

Like Ray it queues attempts until a GPU of their instance type is free, starts them in that order, knows each by a name
that exists once, keeps the end of an attempt for whoever asks, and gives its GPU back only when it is forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from mhs_ray.attempt.order import AttemptOrder, Outcome
from mhs_ray.dispatch.dispatcher import AttemptKey, Dispatcher


class Phase(StrEnum):
    """Where an attempt is, as Ray would show its actor."""

    PENDING = "pending"  # waits for a GPU
    ALIVE = "alive"
    ENDED = "ended"  # its outcome waits to be asked for


@dataclass
class MemoryAttempt:
    """One attempt on the cluster. stop_asked: somebody wants it ended; its container is not gone for that."""

    key: AttemptKey
    label: str
    instance_type: str
    phase: Phase = Phase.PENDING
    order: AttemptOrder | None = None
    outcome: Outcome | None = None
    stop_asked: bool = False


@dataclass
class MemoryCluster:
    """gpus: how many there are of each instance type. The dispatcher's `Cluster`, and the levers that a test pulls."""

    gpus: Mapping[str, int]
    known: dict[AttemptKey, MemoryAttempt] = field(default_factory=dict)
    launches: list[AttemptKey] = field(default_factory=list)

    # ------------------------------------------------------------ Cluster

    def offers(self, instance_type: str) -> bool:
        """Say whether there are nodes of this type."""
        return instance_type in self.gpus

    def launch(self, key: AttemptKey, label: str, instance_type: str, prefer: str | None = None) -> None:
        """Queue an attempt; one of this name that is known already stays as it is. There is one node of each type."""
        self.launches.append(key)
        if key not in self.known:
            self.known[key] = MemoryAttempt(key, label, instance_type)

    def stop(self, key: AttemptKey) -> None:
        """Remove an attempt that waits; ask one that lives to end."""
        attempt = self.known.get(key)
        if attempt is None:
            return
        if attempt.phase is Phase.PENDING:
            del self.known[key]
        else:
            attempt.stop_asked = True

    def forget(self, key: AttemptKey) -> None:
        """Remove an attempt, whatever it does, and free its GPU."""
        self.known.pop(key, None)

    def attempts(self) -> Collection[AttemptKey]:
        """Return the attempts that have a name: waiting, alive, or ended and not forgotten."""
        return list(self.known)

    # ------------------------------------------------------------ what happens on nodes

    def place(self, dispatcher: Dispatcher) -> list[AttemptKey]:
        """Start waiting attempts where GPUs are free, oldest first; each asks for its order. Returns those that run."""
        placed = []
        for attempt in list(self.known.values()):
            busy = sum(
                a.phase is not Phase.PENDING and a.instance_type == attempt.instance_type for a in self.known.values()
            )
            if attempt.phase is not Phase.PENDING or busy >= self.gpus.get(attempt.instance_type, 0):
                continue
            attempt.phase = Phase.ALIVE
            attempt.order = dispatcher.order(attempt.key, f"node-{attempt.instance_type}")
            if attempt.order is None:
                del self.known[attempt.key]
            else:
                placed.append(attempt.key)
        return placed

    def end(self, key: AttemptKey, outcome: Outcome) -> None:
        """An attempt ends on its node; nobody was told yet."""
        attempt = self.known[key]
        if attempt.phase is not Phase.ALIVE:
            raise AssertionError(f"attempt {key} is {attempt.phase}: it cannot end")
        attempt.phase, attempt.outcome = Phase.ENDED, outcome

    def collect(self, dispatcher: Dispatcher) -> None:
        """The dispatcher asks for the outcomes that wait, takes them in and forgets their attempts."""
        for attempt in [a for a in self.known.values() if a.phase is Phase.ENDED]:
            assert attempt.outcome is not None
            dispatcher.settle(attempt.key, attempt.outcome)
            self.forget(attempt.key)

    def lose(self, key: AttemptKey) -> None:
        """A node dies with an attempt on it: its name is gone, without a word."""
        del self.known[key]
