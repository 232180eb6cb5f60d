"""From what went wrong with a slide to the job's failure code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mhs_ray.domain.errors import SlideError, SlideFetchError
from mhs_ray.domain.failures import FailureCode

_CODES: Final[Mapping[str, FailureCode]] = {
    "truncated": FailureCode.SLIDE_TRUNCATED,
    "short-body": FailureCode.SLIDE_TRUNCATED,
    "too-large": FailureCode.SLIDE_TOO_LARGE,
    "bomb": FailureCode.SLIDE_TOO_LARGE,
    "forbidden": FailureCode.SLIDE_FORBIDDEN,
    "refused": FailureCode.SLIDE_FORBIDDEN,
    "expired": FailureCode.SLIDE_EXPIRED,
    "not-found": FailureCode.SLIDE_NOT_FOUND,
    "no-space": FailureCode.FETCH_FAILED,
    "unreachable": FailureCode.FETCH_FAILED,
    "stalled": FailureCode.FETCH_FAILED,
    "changed": FailureCode.FETCH_FAILED,
    "deadline": FailureCode.FETCH_FAILED,
    "cancelled": FailureCode.FETCH_FAILED,
}


def failure_code(error: SlideError) -> FailureCode:
    """Return the code of `error`; what may pass on another try is ``fetch-failed``, which is not the model's fault."""
    if isinstance(error, SlideFetchError) and error.transient:
        return FailureCode.FETCH_FAILED
    return _CODES.get(error.reason, FailureCode.SLIDE_UNREADABLE)
