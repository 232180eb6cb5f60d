"""What a container's exit means for its job."""

from __future__ import annotations

from typing import Any

import pytest

from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.verdict import excerpt, judge

GIB = 1 << 30


def _judge(**facts: Any) -> Failure | None:
    defaults: dict[str, Any] = {
        "exit_code": 0, "oom_killed": False, "timed_out": False, "has_results": True, "rejection": None,
        "log_tail": ["last words"], "instance_type": "g4dn.xlarge", "memory_limit_bytes": 16 * GIB,
        "memory_peak_bytes": 15 * GIB, "time_limit_s": 5400,
    }  # fmt: skip
    return judge(**{**defaults, **facts})


REJECTION = [
    {"path": "$.scanResults[0].scanId", "message": "is not a scan of this task"},
    {"path": "$", "message": "x"},
]


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({}, None),
        ({"oom_killed": True}, None),
        ({"rejection": REJECTION}, None),
        ({"has_results": False}, FailureCode.NO_RESULTS),
        ({"has_results": False, "oom_killed": True}, FailureCode.NO_RESULTS),
        ({"has_results": False, "rejection": REJECTION}, FailureCode.INVALID_RESULTS),
        ({"has_results": False, "rejection": []}, FailureCode.NO_RESULTS),
        ({"exit_code": 1}, FailureCode.EXIT_CODE),
        ({"exit_code": 1, "has_results": False, "rejection": REJECTION}, FailureCode.EXIT_CODE),
        ({"exit_code": 137, "oom_killed": True}, FailureCode.OUT_OF_MEMORY),
        ({"exit_code": 1, "oom_killed": True, "has_results": False}, FailureCode.OUT_OF_MEMORY),
        ({"exit_code": 137, "timed_out": True}, FailureCode.TIME_LIMIT),
        ({"exit_code": 137, "timed_out": True, "oom_killed": True}, FailureCode.TIME_LIMIT),
        ({"exit_code": 0, "timed_out": True, "has_results": False}, FailureCode.TIME_LIMIT),
    ],
)
def test_exit_code_and_results_decide_together(facts: dict[str, Any], code: FailureCode | None) -> None:
    failure = _judge(**facts)
    assert (failure.code if failure else None) == code
    if failure:
        assert failure.cause
        assert failure.mend
        assert failure.exit_code == facts.get("exit_code", 0)


def test_out_of_memory_names_the_next_larger_type() -> None:
    failure = _judge(exit_code=137, oom_killed=True)
    assert failure is not None
    assert "out of memory at 15.0 of 16.0 GB on g4dn.xlarge" in failure.cause
    assert failure.mend == "choose g4dn.2xlarge (32 GB)"


def test_out_of_memory_on_the_largest_type_advises_something_possible() -> None:
    failure = _judge(exit_code=137, oom_killed=True, instance_type="g4dn.4xlarge", memory_peak_bytes=None)
    assert failure is not None
    assert failure.mend == "use less memory: no larger type is offered"
    assert "out of memory at ? of" in failure.cause


def test_refused_results_name_the_first_fault_and_the_number_of_others() -> None:
    failure = _judge(has_results=False, rejection=REJECTION)
    assert failure is not None
    assert failure.cause == "the results were refused: $.scanResults[0].scanId: is not a scan of this task (and 1 more)"


def test_kept_results_are_mentioned_when_the_container_failed_after_it_posted() -> None:
    for facts in ({"exit_code": 3}, {"exit_code": 137, "oom_killed": True}, {"timed_out": True}):
        failure = _judge(**facts)
        assert failure is not None
        assert failure.cause.endswith("the results that it had posted were kept")


@pytest.mark.parametrize(("seconds", "said"), [(5400, "90 minutes"), (60, "60 seconds"), (150, "150 seconds")])
def test_the_time_limit_is_said_in_a_readable_unit(seconds: int, said: str) -> None:
    failure = _judge(timed_out=True, time_limit_s=seconds)
    assert failure is not None
    assert f"its time limit of {said}" in failure.cause


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("OSError: [Errno 30] Read-only file system: '/app/x'", "write to /tmp"),
        ("OSError: [Errno 28] No space left on device", "scratch space is full"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "smaller batches"),
        ("ValueError: x", "read the last lines"),
    ],
)
def test_a_known_last_line_leads_to_its_advice(line: str, advice: str) -> None:
    failure = _judge(exit_code=1, log_tail=["a", line])
    assert failure is not None
    assert advice in failure.mend


def test_a_crash_in_native_code_is_named() -> None:
    failure = _judge(exit_code=139)
    assert failure is not None
    assert "139 (SIGSEGV, a crash in native code)" in failure.cause


TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "main.py", line 3, in <module>',
    "    f()",
    "ValueError: boom",
]


def test_the_excerpt_is_the_last_traceback() -> None:
    log = ["start", *TRACEBACK, "recovered", *TRACEBACK[:-1], "KeyError: 'second'"]
    assert excerpt(log).splitlines() == [*TRACEBACK[:-1], "KeyError: 'second'"]


def test_words_of_the_shutdown_do_not_push_the_traceback_out_of_the_excerpt() -> None:
    lines = excerpt([*TRACEBACK, *(f"closing {i}" for i in range(150))]).splitlines()
    assert lines[: len(TRACEBACK)] == TRACEBACK
    assert len(lines) <= 90


def test_of_a_deep_traceback_the_end_is_kept() -> None:
    frames = [f'  File "main.py", line {i}, in f' for i in range(180)]
    lines = excerpt([TRACEBACK[0], *frames, "RecursionError: too deep"]).splitlines()
    assert lines[-1] == "RecursionError: too deep"
    assert len(lines) == 90


def test_without_a_traceback_the_excerpt_is_the_last_lines() -> None:
    assert excerpt([str(i) for i in range(100)]).splitlines() == [str(i) for i in range(70, 100)]
    assert excerpt([]) == ""
