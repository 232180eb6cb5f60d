"""The life of a job: one pure table keyed (state, event).

No clock, no Ray, no database. Races are rows here, not ``if``s elsewhere: an exit that comes after a
cancel is a row that stays cancelled. `mermaid` renders the table for the README, and a test compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from mhs_ray.domain.errors import TransitionError


class JobState(StrEnum):
    """Where a job is. Terminal states have no way out but a rerun, which is a new job."""

    QUEUED = "queued"
    WAITING = "waiting for a node"
    PREPARING = "preparing"
    RUNNING = "running"
    COLLECTING = "collecting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed out"

    @property
    def is_terminal(self) -> bool:
        """True when nothing more will happen to the job."""
        return self in TERMINAL

    @property
    def is_active(self) -> bool:
        """True while an attempt of the job is somewhere on the cluster."""
        return self in ACTIVE


class JobEvent(StrEnum):
    """What can happen to a job."""

    DISPATCHED = "dispatched"  # the dispatcher asked Ray for a node
    PLACED = "placed"  # the attempt is alive on a node
    STARTED = "started"  # the container's process runs
    EXITED = "exited"  # the container's process ended
    SUCCEEDED = "succeeded"  # exit code 0 and valid results
    FAILED = "failed"  # ended for good, with a failure
    RETRIED = "retried"  # this attempt is over, another will follow
    CANCELLED = "cancelled"  # a person said so
    TIMED_OUT = "timed out"  # the limit of running time was reached
    EXPIRED = "expired"  # what it needs ended before it was started


TERMINAL: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.TIMED_OUT})
ACTIVE: Final = frozenset({JobState.WAITING, JobState.PREPARING, JobState.RUNNING, JobState.COLLECTING})

SAID_BY_ATTEMPTS: Final = frozenset(JobEvent) - {JobEvent.DISPATCHED, JobEvent.CANCELLED, JobEvent.EXPIRED}
"""Events that an attempt, or whoever finds it gone, tells; they can come late, and twice."""

_S, _E = JobState, JobEvent


def _table() -> dict[tuple[JobState, JobEvent], JobState]:
    table: dict[tuple[JobState, JobEvent], JobState] = {
        (_S.QUEUED, _E.DISPATCHED): _S.WAITING,
        (_S.WAITING, _E.PLACED): _S.PREPARING,
        (_S.PREPARING, _E.STARTED): _S.RUNNING,
        (_S.RUNNING, _E.EXITED): _S.COLLECTING,
        (_S.COLLECTING, _E.SUCCEEDED): _S.SUCCEEDED,
        (_S.RUNNING, _E.TIMED_OUT): _S.TIMED_OUT,
        # An actor that Ray restarted on its node says again what it already said.
        (_S.PREPARING, _E.PLACED): _S.PREPARING,
        (_S.RUNNING, _E.PLACED): _S.RUNNING,
        (_S.RUNNING, _E.STARTED): _S.RUNNING,
        (_S.COLLECTING, _E.PLACED): _S.COLLECTING,
        (_S.COLLECTING, _E.STARTED): _S.COLLECTING,
        (_S.COLLECTING, _E.EXITED): _S.COLLECTING,
    }
    table[_S.QUEUED, _E.CANCELLED] = _S.CANCELLED
    table[_S.QUEUED, _E.EXPIRED] = _S.FAILED
    for state in sorted(ACTIVE):
        table[state, _E.CANCELLED] = _S.CANCELLED
        table[state, _E.FAILED] = _S.FAILED
        table[state, _E.RETRIED] = _S.QUEUED
    # The first end wins: what an attempt says after it is known to be late and changes nothing. A queued job has no
    # attempt that could speak for it: what comes is from the one that was given up before it was queued again.
    for state in (_S.QUEUED, *sorted(TERMINAL)):
        for event in sorted(SAID_BY_ATTEMPTS):
            table[state, event] = state
    table[_S.CANCELLED, _E.CANCELLED] = _S.CANCELLED
    # It was found in the queue and is somewhere else by now: started in time, or ended.
    for state in (*sorted(ACTIVE), *sorted(TERMINAL)):
        table[state, _E.EXPIRED] = state
    return table


TRANSITIONS: Final[Mapping[tuple[JobState, JobEvent], JobState]] = _table()


def advance(state: JobState, event: JobEvent) -> JobState:
    """Return the state after `event`.

    Raises TransitionError for a pair that the table does not have, such as cancelling a job that succeeded.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise TransitionError(state, event) from None


def mermaid() -> str:
    """Return the table as a Mermaid state diagram, without the rows that stay where they are."""
    names = {s: s.name.lower() for s in JobState}
    lines = ["stateDiagram-v2", f"    [*] --> {names[JobState.QUEUED]}"]
    lines += [f"    {names[s]}: {s}" for s in JobState if names[s] != s]
    lines += [
        f"    {names[before]} --> {names[after]}: {event}"
        for (before, event), after in TRANSITIONS.items()
        if before is not after
    ]
    lines += [f"    {names[s]} --> [*]" for s in JobState if s.is_terminal]
    return "\n".join(lines)
