"""What is fed next, when a canary stops a cohort, and what is forecast."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mhs_ray.domain.cohorts import (
    CohortEvent,
    CohortState,
    Plan,
    Tally,
    advance,
    forecast,
    format_faults,
    plan,
)
from mhs_ray.domain.errors import ConflictError

S, E = CohortState, CohortEvent
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def test_the_canary_goes_first_and_nothing_else_with_it() -> None:
    assert plan(S.CANARY, 3, 200, Tally(pending=100), "") == Plan(feed=3)
    assert plan(S.CANARY, 3, 200, Tally(pending=97, under_way=3), "") == Plan(feed=0)
    assert plan(S.CANARY, 3, 200, Tally(pending=97, under_way=1, succeeded=2), "") == Plan(feed=0)


def test_a_good_canary_lets_the_rest_run_in_a_window() -> None:
    assert plan(S.CANARY, 3, 10, Tally(pending=97, succeeded=3), "") == Plan(feed=10, event=E.CANARY_PASSED)
    assert plan(S.RUNNING, 3, 10, Tally(pending=90, under_way=4, succeeded=6), "") == Plan(feed=6)
    assert plan(S.RUNNING, 3, 10, Tally(pending=2, under_way=4, succeeded=6), "") == Plan(feed=2)


def test_a_canary_that_fails_for_the_models_sake_stops_it_with_the_reason() -> None:
    made = plan(S.CANARY, 3, 200, Tally(pending=97, under_way=2, failed=1), "exit-code: the container exited with 1")
    assert made.event is E.CANARY_FAILED
    assert made.feed == 0
    assert "exit-code: the container exited with 1" in made.reason


def test_a_bad_slide_in_the_canary_is_replaced_and_stops_nothing() -> None:
    assert plan(S.CANARY, 3, 200, Tally(pending=97, under_way=2, failed=1, unread=1), "x") == Plan(feed=1)
    # After the canary no failure stops it, whatever it is.
    assert plan(S.RUNNING, 3, 200, Tally(pending=9, failed=80, unread=2, succeeded=3), "x") == Plan(feed=9)


def test_a_cohort_none_of_whose_slides_can_be_read_is_stopped() -> None:
    made = plan(S.CANARY, 2, 200, Tally(pending=90, failed=7, unread=7), "slide-forbidden: 403")
    assert made.event is E.CANARY_FAILED
    assert "none of the first 7 slides" in made.reason


def test_it_is_done_when_nothing_is_left_even_within_the_canary() -> None:
    assert plan(S.RUNNING, 3, 200, Tally(succeeded=8, failed=2), "").event is E.FINISHED
    assert plan(S.CANARY, 3, 200, Tally(succeeded=1, failed=1, unread=1), "").event is E.FINISHED
    assert plan(S.RUNNING, 3, 200, Tally(under_way=1, succeeded=9), "").event is None


@pytest.mark.parametrize("state", [S.DRAFT, S.STOPPED, S.DONE, S.CANCELLED])
def test_a_cohort_that_is_not_open_is_left_alone(state: CohortState) -> None:
    assert plan(state, 3, 200, Tally(pending=5), "") == Plan()


def test_what_cannot_happen_is_refused_with_a_hint() -> None:
    assert advance(S.STOPPED, E.RESUMED) is S.CANARY
    assert advance(S.DONE, E.RERUN) is S.RUNNING
    assert advance(S.CANARY, E.STARTED) is S.CANARY
    for state, event in ((S.DONE, E.CANCELLED), (S.RUNNING, E.RESUMED), (S.CANCELLED, E.RERUN), (S.STOPPED, E.STARTED)):
        with pytest.raises(ConflictError, match=f"the cohort is {state}"):
            advance(state, event)


def test_cost_and_time_follow_from_what_was_seen() -> None:
    ends = [NOW - timedelta(seconds=10 * i) for i in range(11)]  # one each 10 s
    made = forecast(
        Tally(pending=95, under_way=5, succeeded=11), gpu_s=440.0, ran=11, ends=ends, now=NOW, running=True,
        price_per_hour=3.6, currency="USD",
    )  # fmt: skip
    assert made.gpu_s_per_slide == 40
    assert made.gpu_s_left == 4000
    assert made.eta_s == pytest.approx(1000)
    assert (made.spent, made.left, made.total) == pytest.approx((0.44, 4.0, 4.44))


def test_what_has_been_silent_is_expected_to_take_longer() -> None:
    ends = [NOW - timedelta(seconds=10 * i) for i in range(11)]
    values = {"gpu_s": 440.0, "ran": 11, "ends": ends, "running": True, "price_per_hour": None, "currency": "USD"}
    soon = forecast(Tally(pending=100), now=NOW, **values)  # type: ignore[arg-type]
    late = forecast(Tally(pending=100), now=NOW + timedelta(seconds=100), **values)  # type: ignore[arg-type]
    assert soon.eta_s is not None
    assert late.eta_s == pytest.approx(2 * soon.eta_s)
    assert (late.spent, late.total) == (None, None)


def test_nothing_is_forecast_from_nothing() -> None:
    made = forecast(
        Tally(pending=5), gpu_s=0, ran=0, ends=(), now=NOW, running=True, price_per_hour=1.0, currency="USD"
    )
    assert (made.eta_s, made.left, made.gpu_s_per_slide, made.spent) == (None, None, None, 0.0)


def test_every_slide_of_the_rarer_formats_is_named() -> None:
    rows = [(1, "svs"), (2, "ndpi"), (3, "svs"), (4, "dicom")]
    faults = format_faults({"svs": 2, "ndpi": 1, "dicom": 1}, rows)
    assert [(f.row, f.column) for f in faults] == [(2, "slide"), (4, "slide")]
    assert "it is ndpi while 2 of 4 slides are svs" in faults[0].reason
    assert format_faults({"svs": 2}, rows[:1]) == []
