"""The table of a job's life."""

from __future__ import annotations

import itertools

import pytest

from mhs_ray.domain.errors import TransitionError
from mhs_ray.domain.states import ACTIVE, SAID_BY_ATTEMPTS, TERMINAL, TRANSITIONS, JobEvent, JobState, advance, mermaid

S, E = JobState, JobEvent


def _run(*events: JobEvent) -> JobState:
    state = S.QUEUED
    for event in events:
        state = advance(state, event)
    return state


def test_a_good_job_passes_through_every_active_state_and_succeeds() -> None:
    path = [S.QUEUED]
    for event in (E.DISPATCHED, E.PLACED, E.STARTED, E.EXITED, E.SUCCEEDED):
        path.append(advance(path[-1], event))
    assert path == [S.QUEUED, S.WAITING, S.PREPARING, S.RUNNING, S.COLLECTING, S.SUCCEEDED]


@pytest.mark.parametrize(("state", "event"), list(itertools.product(sorted(TERMINAL), sorted(SAID_BY_ATTEMPTS))))
def test_nothing_an_attempt_says_moves_an_ended_job(state: JobState, event: JobEvent) -> None:
    assert advance(state, event) is state


@pytest.mark.parametrize("event", sorted(SAID_BY_ATTEMPTS))
def test_the_word_of_a_given_up_attempt_leaves_its_requeued_job_in_the_queue(event: JobEvent) -> None:
    assert _run(E.DISPATCHED, E.PLACED, E.RETRIED, event) is S.QUEUED


@pytest.mark.parametrize("state", [S.QUEUED, *sorted(ACTIVE)])
def test_a_person_can_cancel_in_every_state_that_is_not_final(state: JobState) -> None:
    assert advance(state, E.CANCELLED) is S.CANCELLED


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_an_active_job_can_fail_or_be_tried_again_in_every_state(state: JobState) -> None:
    assert advance(state, E.FAILED) is S.FAILED
    assert advance(state, E.RETRIED) is S.QUEUED


@pytest.mark.parametrize("state", [S.SUCCEEDED, S.FAILED, S.TIMED_OUT])
def test_an_ended_job_cannot_be_cancelled_and_the_error_says_what_it_is(state: JobState) -> None:
    with pytest.raises(TransitionError, match=f"a job that is {state} cannot take the event cancelled"):
        advance(state, E.CANCELLED)


def test_cancelling_twice_is_as_good_as_once() -> None:
    assert _run(E.CANCELLED, E.CANCELLED) is S.CANCELLED


@pytest.mark.parametrize("state", sorted(set(S) - {S.QUEUED}))
def test_only_a_queued_job_is_dispatched(state: JobState) -> None:
    with pytest.raises(TransitionError):
        advance(state, E.DISPATCHED)


@pytest.mark.parametrize(
    "events",
    [
        (E.DISPATCHED, E.PLACED, E.PLACED),
        (E.DISPATCHED, E.PLACED, E.STARTED, E.PLACED, E.STARTED),
        (E.DISPATCHED, E.PLACED, E.STARTED, E.EXITED, E.PLACED, E.STARTED, E.EXITED),
    ],
)
def test_an_attempt_that_came_back_may_say_again_what_it_said(events: tuple[JobEvent, ...]) -> None:
    assert _run(*events).is_active


def test_a_job_never_jumps_over_its_run_to_success() -> None:
    for state in (S.WAITING, S.PREPARING, S.RUNNING):
        with pytest.raises(TransitionError):
            advance(state, E.SUCCEEDED)


def test_every_state_can_be_reached_and_every_way_ends() -> None:
    reached, new = {S.QUEUED}, {S.QUEUED}
    while new:
        new = {after for (before, _), after in TRANSITIONS.items() if before in new} - reached
        reached |= new
    assert reached == set(S)
    for state in set(S) - TERMINAL:
        assert any(before is state and after is not state for (before, _), after in TRANSITIONS.items())


def test_terminal_active_and_queued_are_all_states_and_share_none() -> None:
    assert TERMINAL | ACTIVE | {S.QUEUED} == set(S)
    assert not TERMINAL & ACTIVE
    assert all(s.is_terminal for s in TERMINAL)
    assert all(s.is_active for s in ACTIVE)


def test_the_diagram_has_each_change_of_state_once_and_no_row_that_stays() -> None:
    lines = mermaid().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> queued"]
    assert "    running --> timed_out: timed out" in lines
    assert "    waiting: waiting for a node" in lines
    arrows = [line for line in lines if "-->" in line and "[*]" not in line]
    assert len(arrows) == len(set(arrows)) == sum(before is not after for (before, _), after in TRANSITIONS.items())
    assert {line.strip() for line in lines if line.endswith("--> [*]")} == {
        f"{s} --> [*]" for s in ("succeeded", "failed", "cancelled", "timed_out")
    }
