"""Who is next, against the plainest way to say it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mhs_ray.domain.fairshare import Share, choose

Job = tuple[int, int]  # priority, id
SITES = st.dictionaries(
    st.integers(1, 6),
    st.tuples(st.lists(st.integers(0, 2), max_size=8), st.integers(0, 4), st.none() | st.integers(0, 5)),
    max_size=6,
)


def _reference(
    queues: dict[int, list[Job]], active: dict[int, int], caps: dict[int, int | None], limit: int
) -> list[int]:
    """Take one job after the other: the best class, then the company with the fewest active jobs, then the oldest."""
    queues, active, chosen = {c: sorted(q) for c, q in queues.items()}, dict(active), []
    while len(chosen) < limit:
        heads = [
            (queue[0][0], active[c], c)
            for c, queue in queues.items()
            if queue and ((cap := caps[c]) is None or active[c] < cap)
        ]
        if not heads:
            break
        company = min(heads)[2]
        chosen.append(queues[company].pop(0)[1])
        active[company] += 1
    return chosen


@given(site=SITES, limit=st.integers(0, 20))
def test_the_choice_is_that_of_taking_one_after_the_other(
    site: dict[int, tuple[list[int], int, int | None]], limit: int
) -> None:
    ids = iter(range(1, 1000))
    queues = {c: sorted((p, next(ids)) for p in priorities) for c, (priorities, _, _) in site.items()}
    active, caps = {c: n for c, (_, n, _) in site.items()}, {c: cap for c, (_, _, cap) in site.items()}
    shares = [Share(c, q[0][0], active[c], caps[c]) for c, q in queues.items() if q]
    assert choose(shares, limit, lambda c, n: queues[c][:n]) == _reference(queues, active, caps, limit)


def test_only_companies_that_have_their_turn_are_asked_for_their_queue() -> None:
    asked: list[int] = []

    def queue(company: int, count: int) -> list[Job]:
        asked.append(company)
        return [(0, company * 10 + i) for i in range(count)]

    assert choose([Share(c, 0, c, None) for c in range(100)], 3, queue) == [0, 1, 10]
    assert asked == [0, 1]
