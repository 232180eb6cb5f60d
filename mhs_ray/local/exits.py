"""How a trial ended, as an exit code: one per class of failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mhs_ray.domain.failures import FailureClass, FailureCode
from mhs_ray.domain.states import JobState

REFUSED: Final = "refused"
_RESULTS: Final = (FailureCode.NO_RESULTS, FailureCode.INVALID_RESULTS)
EXIT_CODES: Final[Mapping[int, str]] = {
    0: "succeeded, with valid results",
    1: "it could not be tried: no engine, a failed build, no such image or slide, a wrong value",
    2: "wrong use of the command",
    4: "the model failed: its exit code, memory, time, or an entrypoint that cannot be started",
    5: "no results, or results that Techcyte would refuse",
    6: "the slide cannot be had or read",
    7: "this machine failed: engine, sandbox, disk",
    8: "the image would be refused after its push",
    130: "interrupted",
}
"""Exit codes of ``mhs test`` and what they mean: one per class of failure."""


def exit_code(document: Mapping[str, Any]) -> int:
    """Return the exit code for a document of `describe` or `describe_refusal`."""
    if document["state"] == REFUSED:
        return 8
    failure = document["failure"]
    if failure is None:
        return 0 if document["state"] == JobState.SUCCEEDED else 7
    if failure["code"] in _RESULTS:
        return 5
    return {FailureClass.MODEL: 4, FailureClass.INPUT: 6, FailureClass.PLATFORM: 7}[failure["failure_class"]]


DIFFERENT: Final = 9
"""Exit code of ``mhs compare`` and ``mhs replay`` where the difference is more than is allowed."""
