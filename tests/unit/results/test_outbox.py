"""What may be sent to Techcyte, and when again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from mhs_ray.results.outbox import (
    DeliveryState,
    Kind,
    Looked,
    Pace,
    Reach,
    Sent,
    after_looking,
    after_sending,
    details_of,
    of_task,
    same_json,
    token_ends,
)

D = DeliveryState
PACE = Pace(settle=timedelta(seconds=60))
MINE = details_of({"score": 1}, None, None)
MY_EVALUATION = {"id": 9, "task_id": 5, "details": {"report": {"score": 1.0}}}


@pytest.mark.parametrize(
    ("sent", "state"),
    [
        (Sent(Reach.NOT_SENT, detail="refused"), D.PENDING),
        (Sent(Reach.UNKNOWN, detail="timeout"), D.UNKNOWN),
        (Sent(Reach.ANSWERED, 201), D.DELIVERED),
        (Sent(Reach.ANSWERED, 302), D.REFUSED),
        (Sent(Reach.ANSWERED, 401), D.REFUSED),
        (Sent(Reach.ANSWERED, 422), D.REFUSED),
        (Sent(Reach.ANSWERED, 408), D.PENDING),
        (Sent(Reach.ANSWERED, 429), D.PENDING),
        (Sent(Reach.ANSWERED, 500), D.UNKNOWN),
        (Sent(Reach.ANSWERED, 503), D.UNKNOWN),
    ],
)
def test_a_result_is_sent_again_only_when_nothing_can_have_arrived(sent: Sent, state: DeliveryState) -> None:
    assert after_sending(Kind.RESULT, sent, 1, PACE, 1).state is state
    assert after_sending(Kind.CASE, sent, 1, PACE, 1).state is state


def test_triage_is_simply_set_again() -> None:
    for sent in (Sent(Reach.UNKNOWN), Sent(Reach.ANSWERED, 500)):
        assert after_sending(Kind.TRIAGE, sent, 1, PACE, 1).state is D.PENDING


def test_the_pause_grows_and_keeps_to_what_techcyte_asks() -> None:
    pauses = [after_sending(Kind.RESULT, Sent(Reach.NOT_SENT), n, PACE, 1).retry_in_s or 0 for n in range(1, 40)]
    assert 1.5 <= pauses[0] <= 2.5
    assert 225 <= pauses[-1] <= 375
    assert (after_sending(Kind.RESULT, Sent(Reach.ANSWERED, 429, "", 900), 1, PACE, 1).retry_in_s or 0) >= 900


def _look(evaluations: Any, *, wanted: Any = MINE, known: int = 0, doubtful: int = 0, since_s: float = 3600) -> Any:
    looked = Looked(tuple(evaluations) if evaluations is not None else None, 200)
    since = timedelta(seconds=since_s)
    return after_looking(looked, wanted, known=known, doubtful=doubtful, since_sent=since, looks=1, pace=PACE, seed=1)


def test_what_techcyte_has_is_delivered() -> None:
    assert _look([MY_EVALUATION]).state is D.DELIVERED
    assert _look([MY_EVALUATION, MY_EVALUATION], known=1).state is D.DELIVERED


def test_what_techcyte_does_not_have_is_sent_again_but_not_too_soon() -> None:
    assert _look([]).state is D.PENDING
    assert _look([MY_EVALUATION], known=1).state is D.PENDING
    early = _look([], since_s=5)
    assert early.state is D.UNKNOWN
    assert early.retry_in_s <= 55


def test_what_cannot_be_told_waits_for_a_person() -> None:
    nothing = details_of(None, None, None)
    assert _look([], wanted=nothing).state is D.PARKED  # nothing to recognise it by
    assert _look([], known=1).state is D.PARKED  # an evaluation was removed there
    assert _look([MY_EVALUATION], doubtful=1).state is D.PARKED  # another's of the same content may be it
    refused = Looked(None, 403)
    decision = after_looking(
        refused, MINE, known=0, doubtful=0, since_sent=timedelta(1), looks=1, pace=PACE, seed=1
    )  # fmt: skip
    assert decision.state is D.PARKED


def test_no_answer_to_the_question_is_asked_again() -> None:
    for status in (None, 500, 429):
        looked = Looked(None, status, "down")
        decision = after_looking(looked, MINE, known=0, doubtful=0, since_sent=timedelta(1), looks=3, pace=PACE, seed=1)
        assert decision.state is D.UNKNOWN
        assert decision.retry_in_s is not None


def test_only_the_tasks_own_evaluations_count_under_either_form_of_its_id() -> None:
    rows = [{"task_id": 5}, {"task_id": "5"}, {"task_id": "dGFzazo1"}, {"task_id": 55}, "?", {}]
    assert len(of_task(rows, frozenset({"5", "dGFzazo1"}))) == 3


def test_json_is_compared_as_another_program_may_keep_it() -> None:
    assert same_json({"a": [1, 2.0, None], "b": "x"}, {"b": "x", "a": [1.0, 2, None]})
    for a, b in (({"a": 1}, {"a": True}), ([1], [1, 1]), ({"a": None}, {}), ("1", 1), (None, False)):
        assert not same_json(a, b)


def test_a_tokens_end_is_read_without_its_key() -> None:
    end = datetime(2030, 1, 2, tzinfo=UTC)
    assert token_ends(jwt.encode({"exp": end}, "k" * 32, "HS256")) == end
    for text in ("", "opaque", "a.b.c", jwt.encode({"sub": "x"}, "k" * 32, "HS256")):
        assert token_ends(text) is None
