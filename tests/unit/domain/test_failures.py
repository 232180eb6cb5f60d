"""Whose failure it is, and whether it is tried again."""

from __future__ import annotations

import pytest

from mhs_ray.domain.failures import Failure, FailureClass, FailureCode, RetryPolicy, decide_retry


def _delay(
    code: FailureCode, policy: RetryPolicy | None = None, *, exit_code: int | None = None, **counts: int
) -> float | None:
    failure = Failure(code, "it broke", "mend it", exit_code=exit_code)
    seen = {"platform_failures": 0, "model_failures": 0, "seed": 7, **counts}
    return decide_retry(failure, policy or RetryPolicy(), **seen).delay_s


@pytest.mark.parametrize("code", list(FailureCode))
def test_each_code_has_the_class_that_its_name_says(code: FailureCode) -> None:
    ours = {
        "node-lost",
        "preempted",
        "pull-failed",
        "fetch-failed",
        "engine-failed",
        "sandbox-failed",
        "no-such-instance-type",
        "internal",
    }
    expected = (
        FailureClass.PLATFORM if code in ours
        else FailureClass.INPUT if code.startswith("slide-") or code == "token-expired"
        else FailureClass.MODEL
    )  # fmt: skip
    assert Failure(code, "", "").failure_class is expected


def test_a_preempted_attempt_is_always_followed_by_another_and_soon() -> None:
    policy = RetryPolicy(max_platform_attempts=2, backoff_s=2, backoff_max_s=300)
    delay = _delay(FailureCode.PREEMPTED, policy, platform_failures=50)
    assert delay is not None
    assert delay <= 2.5


def test_platform_failures_are_tried_again_with_doubling_pauses_until_the_limit() -> None:
    policy = RetryPolicy(max_platform_attempts=4, backoff_s=2, backoff_max_s=300)
    for count, base in ((1, 2), (2, 4), (3, 8)):
        delay = _delay(FailureCode.NODE_LOST, policy, platform_failures=count)
        assert delay is not None
        assert 0.75 * base <= delay <= 1.25 * base
    assert _delay(FailureCode.NODE_LOST, policy, platform_failures=4) is None


def test_the_pause_is_capped_however_often_it_failed() -> None:
    policy = RetryPolicy(max_platform_attempts=100_000, backoff_s=2, backoff_max_s=300)
    delay = _delay(FailureCode.PULL_FAILED, policy, platform_failures=50_000)
    assert delay is not None
    assert delay <= 375


def test_the_same_attempt_gets_the_same_pause_and_another_one_another() -> None:
    first, again, other = (_delay(FailureCode.INTERNAL, platform_failures=1, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_an_instance_type_that_is_not_there_is_not_tried_again() -> None:
    assert _delay(FailureCode.NO_SUCH_INSTANCE_TYPE, platform_failures=1) is None


@pytest.mark.parametrize("code", [c for c in FailureCode if c.startswith("slide-")])
def test_a_bad_slide_is_never_tried_again(code: FailureCode) -> None:
    assert _delay(code, platform_failures=1) is None


def test_a_model_is_tried_again_only_for_the_exit_codes_it_asked_for() -> None:
    policy = RetryPolicy(model_exit_codes=frozenset({75}), max_model_retries=2)
    assert _delay(FailureCode.EXIT_CODE, policy, exit_code=75, model_failures=1) is not None
    assert _delay(FailureCode.EXIT_CODE, policy, exit_code=75, model_failures=2) is not None
    assert _delay(FailureCode.EXIT_CODE, policy, exit_code=75, model_failures=3) is None
    assert _delay(FailureCode.EXIT_CODE, policy, exit_code=1, model_failures=1) is None
    assert _delay(FailureCode.OUT_OF_MEMORY, policy, exit_code=75, model_failures=1) is None


def test_earlier_platform_failures_do_not_count_against_the_model() -> None:
    policy = RetryPolicy(model_exit_codes=frozenset({75}), max_model_retries=1, max_platform_attempts=4)
    delay = _delay(FailureCode.EXIT_CODE, policy, exit_code=75, model_failures=1, platform_failures=3)
    assert delay is not None
    assert delay <= 2.5
