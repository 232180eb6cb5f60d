"""Who is next: priority class, then the company with the fewest active jobs, then age. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """A company with something to start. best: the priority of its next job, 0 first; cap: None for no limit."""

    company_id: int
    best: int
    active: int
    cap: int | None = None


def choose(shares: Iterable[Share], limit: int, queue: Callable[[int, int], Sequence[tuple[int, int]]]) -> list[int]:
    """Return the ids of up to `limit` jobs in the order they start.

    queue: (company id, n) → the company's next n jobs as (priority, job id); asked once for each company that has
    its turn.
    """
    heap = [(s.best, s.active, s.company_id, s.cap) for s in shares if s.cap is None or s.active < s.cap]
    heapq.heapify(heap)
    queues: dict[int, Sequence[tuple[int, int]]] = {}
    taken: dict[int, int] = {}
    chosen: list[int] = []
    while heap and len(chosen) < limit:
        priority, active, company, cap = heapq.heappop(heap)
        if company not in queues:
            queues[company], taken[company] = queue(company, limit), 0
        waiting, at = queues[company], taken[company]
        if at >= len(waiting):
            continue
        if waiting[at][0] == priority:
            chosen.append(waiting[at][1])
            taken[company] = at = at + 1
            active += 1
        if at < len(waiting) and (cap is None or active < cap):
            heapq.heappush(heap, (waiting[at][0], active, company, cap))
    return chosen
