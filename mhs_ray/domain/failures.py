"""Why a job failed, and what follows from it. Pure.

A failure's *class* decides the retry: **platform** failures are ours and are tried again with backoff,
**model** failures are the container's, **input** failures are the slide's. Codes are stable words that
people filter and alert by.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum


class FailureClass(StrEnum):
    """Whose failure it is."""

    PLATFORM = "platform"
    MODEL = "model"
    INPUT = "input"


class FailureCode(StrEnum):
    """What happened, as one stable word."""

    # platform
    NODE_LOST = "node-lost"
    PREEMPTED = "preempted"  # its node was taken away with notice, as spot nodes are
    PULL_FAILED = "pull-failed"
    FETCH_FAILED = "fetch-failed"  # the slide's host failed in a way that may pass
    ENGINE_FAILED = "engine-failed"
    SANDBOX_FAILED = "sandbox-failed"
    NO_SUCH_INSTANCE_TYPE = "no-such-instance-type"
    INTERNAL = "internal"
    # model
    EXIT_CODE = "exit-code"
    OUT_OF_MEMORY = "out-of-memory"
    NO_RESULTS = "no-results"
    INVALID_RESULTS = "invalid-results"
    TIME_LIMIT = "time-limit"
    NOT_EXECUTABLE = "not-executable"
    # input
    SLIDE_UNREADABLE = "slide-unreadable"
    SLIDE_TRUNCATED = "slide-truncated"
    SLIDE_FORBIDDEN = "slide-forbidden"
    SLIDE_NOT_FOUND = "slide-not-found"
    SLIDE_EXPIRED = "slide-expired"
    SLIDE_TOO_LARGE = "slide-too-large"
    TOKEN_EXPIRED = "token-expired"  # noqa: S105 (a name) Techcyte's, without which no result could be delivered


_PLATFORM = {
    FailureCode.NODE_LOST,
    FailureCode.PREEMPTED,
    FailureCode.PULL_FAILED,
    FailureCode.FETCH_FAILED,
    FailureCode.ENGINE_FAILED,
    FailureCode.SANDBOX_FAILED,
    FailureCode.NO_SUCH_INSTANCE_TYPE,
    FailureCode.INTERNAL,
}
_INPUT = {code for code in FailureCode if code.startswith("slide-")} | {FailureCode.TOKEN_EXPIRED}
_FINAL_PLATFORM = {FailureCode.NO_SUCH_INSTANCE_TYPE}


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure card of an attempt.

    cause: one sentence of what happened. mend: one thing to do. excerpt: the last traceback or log lines.
    """

    code: FailureCode
    cause: str
    mend: str
    excerpt: str = ""
    exit_code: int | None = None

    @property
    def failure_class(self) -> FailureClass:
        """The class follows from the code."""
        if self.code in _PLATFORM:
            return FailureClass.PLATFORM
        return FailureClass.INPUT if self.code in _INPUT else FailureClass.MODEL


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how fast an ended attempt is followed by another."""

    max_platform_attempts: int = 4
    backoff_s: float = 2.0
    backoff_max_s: float = 300.0
    model_exit_codes: frozenset[int] = field(default_factory=frozenset)
    max_model_retries: int = 0


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """Try again after `delay_s`, or not (None)."""

    delay_s: float | None


def decide_retry(
    failure: Failure, policy: RetryPolicy, *, platform_failures: int, model_failures: int, seed: int
) -> RetryDecision:
    """Say whether another attempt follows `failure`.

    platform_failures, model_failures: attempts of this job that ended so, this one included.
    seed: makes the jitter repeatable (the attempt's id). The delay doubles from `backoff_s`, ±25 %.
    """
    match failure.failure_class:
        case FailureClass.INPUT:
            return RetryDecision(None)
        case FailureClass.MODEL:
            asked = failure.exit_code in policy.model_exit_codes and failure.code is FailureCode.EXIT_CODE
            if not asked or model_failures > policy.max_model_retries:
                return RetryDecision(None)
            count = model_failures
        case FailureClass.PLATFORM if failure.code is FailureCode.PREEMPTED:
            count = 1  # nobody's fault, and no sign that the next node fails too
        case FailureClass.PLATFORM:
            if failure.code in _FINAL_PLATFORM or platform_failures >= policy.max_platform_attempts:
                return RetryDecision(None)
            count = platform_failures
    delay = min(policy.backoff_s * 2 ** min(count - 1, 30), policy.backoff_max_s)
    return RetryDecision(delay * random.Random(seed).uniform(0.75, 1.25))
