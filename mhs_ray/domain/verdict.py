"""What a container's exit means for its job. Pure: exit code *and* results decide.

The public template swallows posting errors and exits 0, so "exit 0 without results" is a failure with a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.instances import larger_memory_than

EXCERPT_LINES = 30
_TRACEBACK = "Traceback (most recent call last)"


def excerpt(log_tail: Sequence[str]) -> str:
    """Return the last Python traceback of a log with what follows its error line, else the log's last lines.

    At most 90 lines; of a deep traceback the end, where the error is. What a program prints while it shuts down
    does not push the traceback out.
    """
    start = next((i for i in range(len(log_tail) - 1, -1, -1) if _TRACEBACK in log_tail[i]), None)
    if start is None:
        return "\n".join(log_tail[-EXCERPT_LINES:])
    error = next((i for i in range(start + 1, len(log_tail)) if log_tail[i][:1] not in ("", " ")), len(log_tail) - 1)
    return "\n".join(log_tail[start : error + EXCERPT_LINES][-3 * EXCERPT_LINES :])


def judge(
    *,
    exit_code: int,
    oom_killed: bool,
    timed_out: bool,
    has_results: bool,
    rejection: Sequence[Mapping[str, str]] | None,
    log_tail: Sequence[str],
    instance_type: str,
    memory_limit_bytes: int | None,
    memory_peak_bytes: int | None,
    time_limit_s: int,
) -> Failure | None:
    """Return why the attempt failed, None when it succeeded.

    has_results: the gateway stored a result for the job's scan. rejection: faults of the newest refused request.
    """
    tail = excerpt(log_tail)
    posted = "; the results that it had posted were kept" if has_results else ""
    if timed_out:
        return Failure(
            FailureCode.TIME_LIMIT,
            f"still running at its time limit of {_minutes(time_limit_s)}, and was stopped{posted}",
            "raise the container's time limit (90 minutes at most), or choose a larger instance type",
            tail,
            exit_code,
        )
    if exit_code != 0 and oom_killed:
        more = larger_memory_than(instance_type)
        mend = f"choose {more.name} ({more.memory_gb} GB)" if more else "use less memory: no larger type is offered"
        return Failure(
            FailureCode.OUT_OF_MEMORY,
            f"out of memory at {_gb(memory_peak_bytes)} of {_gb(memory_limit_bytes)} GB on {instance_type}{posted}",
            mend,
            tail,
            exit_code,
        )
    if exit_code != 0:
        return Failure(
            FailureCode.EXIT_CODE,
            f"the container exited with code {exit_code}{_signal(exit_code)}{posted}",
            _mend_for(log_tail) or "read the last lines of the log below; run the image locally on the same slide",
            tail,
            exit_code,
        )
    if has_results:
        return None
    if rejection:
        first = rejection[0]
        more_faults = f" (and {len(rejection) - 1} more)" if len(rejection) > 1 else ""
        return Failure(
            FailureCode.INVALID_RESULTS,
            f"the results were refused: {first.get('path')}: {first.get('message')}{more_faults}",
            "correct what the path names; the answer to the POST lists every fault",
            tail,
            exit_code,
        )
    oom = " (a process in it was killed for want of memory)" if oom_killed else ""
    return Failure(
        FailureCode.NO_RESULTS,
        f"the container exited with code 0 but posted no results for its scan{oom}",
        "POST to https://api.{HOST}/api/v3/external/results/{TASK_ID} and exit non-zero when that fails",
        tail,
        exit_code,
    )


def _mend_for(log_tail: Sequence[str]) -> str | None:
    text = "\n".join(log_tail)
    if "Read-only file system" in text:
        return "write to /tmp, /input, /output or /scratch: the rest of the image is read-only here"
    if "No space left on device" in text:
        return "the scratch space is full: write less, or delete what is not needed any more"
    if "CUDA out of memory" in text:
        return "the GPU's memory is full: use smaller batches, or an instance type with more VRAM"
    return None


def _signal(code: int) -> str:
    names = {130: "SIGINT", 134: "SIGABRT", 137: "SIGKILL", 139: "SIGSEGV, a crash in native code", 143: "SIGTERM"}
    return f" ({names[code]})" if code in names else ""


def _gb(size: int | None) -> str:
    return "?" if size is None else f"{size / (1 << 30):.1f}"


def _minutes(seconds: int) -> str:
    return f"{seconds // 60} minutes" if seconds >= 120 and seconds % 60 == 0 else f"{seconds} seconds"
