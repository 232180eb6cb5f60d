"""Work on a stranger's file in a process that can crash, hang or eat memory without harm."""

from __future__ import annotations

import json
import logging
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import mhs_ray
from mhs_ray.domain.errors import SlideError

log = logging.getLogger(__name__)

_MAX_OUTPUT: Final = 4 << 20
_LEAST_MEMORY: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class IsolationLimits:
    """What the process may take. memory_bytes: its address space, at least 1 GiB."""

    timeout_s: float = 120.0
    cpu_s: int = 90
    memory_bytes: int = 6 << 30


def run_isolated(module: str, subject: str, arguments: Sequence[str], limits: IsolationLimits) -> dict[str, Any]:
    """Run ``python -m module arguments`` (see `serve`) with an empty environment and return its answer.

    subject: what messages call the file. Raises the SlideError that the process reported; ``unreadable`` when it
    crashed, hung or outgrew `limits`.
    """
    root = Path(mhs_ray.__file__).resolve().parents[1]
    bounds = json.dumps([limits.cpu_s, max(limits.memory_bytes, _LEAST_MEMORY)])
    with tempfile.TemporaryDirectory(prefix="mhs-slide-") as scratch:
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", module, bounds, *arguments],
                env={"PYTHONPATH": str(root), "LC_ALL": "C.UTF-8", "HOME": scratch, "TMPDIR": scratch},
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=limits.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SlideError(
                "unreadable", f"{subject} could not be read in {limits.timeout_s:g} s; it is damaged or hostile"
            ) from None
    answer = _answer(done.stdout)
    if "answer" in answer:
        return dict(answer["answer"])
    if "reason" in answer:
        raise SlideError(str(answer["reason"]), str(answer["message"]))
    said = done.stderr[-2000:].decode("utf-8", "replace")
    log.warning("reading %s ended with %d: %s", subject, done.returncode, said)
    raise SlideError("unreadable", f"{subject} {_died(done.returncode)}; the file is damaged or hostile")


def serve(arguments: Sequence[str], subject: str, work: Callable[[], dict[str, Any]]) -> int:
    """Bound this process by its first argument, do `work`, and print one JSON object as the last line of output."""
    cpu_s, memory = json.loads(arguments[0])
    for what, amount in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        bound = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(what, (bound, bound))
    try:
        answer: dict[str, Any] = {"answer": work()}
    except SlideError as error:
        answer = {"reason": error.reason, "message": error.message}
    except MemoryError:
        answer = {"reason": "bomb", "message": f"{subject} takes more than {memory >> 30} GiB of memory to read"}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    return 0


def _answer(stdout: bytes) -> dict[str, Any]:
    """The last line is ours; decoders may have written before it."""
    lines = stdout[-_MAX_OUTPUT:].strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _died(code: int) -> str:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "took too much processor time or memory to read"
    if code < 0:
        return f"crashed its decoder ({signal.Signals(-code).name})"
    return "broke its decoder"
