"""Why a job waits for a node, in words for people. Pure: the facts come from whoever starts nodes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from mhs_ray.domain.launch_failures import explain_launch_failure

_WORDS: Final = 300


@dataclass(frozen=True, slots=True)
class Capacity:
    """What there is of one instance type.

    nodes: alive; free: of them with a free GPU; starting: asked for and on their way, the oldest `since`.
    refused: the cloud's words to the newest request that it refused, "" when it gave none, None when it refused none.
    """

    nodes: int = 0
    free: int = 0
    starting: int = 0
    since: datetime | None = None
    refused: str | None = None


def why_waiting(instance_type: str, here: Capacity, now: datetime) -> str:
    """Return one sentence on what a job of this type waits for."""
    if here.free:
        return f"a {instance_type} node is free; the job is about to start there"
    if here.refused is not None and not here.starting:
        words = " ".join(here.refused.split())[:_WORDS]
        said = f": {words}" if words else "; the autoscaler's log on the head says why"
        if explain_launch_failure(words).kind == "quota":
            return f"the account's quota allows no further {instance_type} node{said}"
        return f"no {instance_type} node is to be had now{said}; it is asked for again"
    if here.starting:
        since = f" since {max(0, int((now - here.since).total_seconds()))} s" if here.since else ""
        return f"a {instance_type} node is being started{since}"
    if here.nodes:
        count = "the" if here.nodes == 1 else f"all {here.nodes}"
        nodes, verb = ("node", "is") if here.nodes == 1 else ("nodes", "are")
        return f"{count} {instance_type} {nodes} {verb} busy"
    return f"a {instance_type} node was asked for"
