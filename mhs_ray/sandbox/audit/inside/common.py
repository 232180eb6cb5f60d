"""How a probe says what it found, and how it tries what may end its process."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

Verdict = tuple[bool, str]
"""Whether the sandbox held, and one sentence of what was seen."""
Probe = Callable[[dict[str, Any]], Verdict]
"""Takes what the node told (see `audit.run`)."""

REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})


def tell(document: dict[str, Any]) -> None:
    """Write one line to the node."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def run(probes: dict[str, Probe], given: dict[str, Any]) -> None:
    """Run each probe and tell its verdict; one that breaks has not held."""
    for name, probe in probes.items():
        try:
            ok, detail = probe(given)
        except Exception as error:
            ok, detail = False, f"the probe itself failed: {type(error).__name__}: {error}"
        tell({"name": name, "ok": ok, "detail": detail})


def in_child(work: Callable[[], int]) -> int:
    """Return what `work` (0 to 255) returns in a process of its own; 256 + signal if that was killed."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            code = work()
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return 256 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def system_call(number: int, *arguments: int | bytes | None) -> int:
    """Return the errno (0: it worked) of a raw system call, made in a process of its own."""

    def call() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        made = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
        return ctypes.get_errno() if libc.syscall(ctypes.c_long(number), *made) == -1 else 0

    return in_child(call)


def all_refused(calls: dict[str, Sequence[Any]]) -> Verdict:
    """Try system calls, name → (number, arguments…); hold that each is refused before its arguments are looked at."""
    results = {name: system_call(*call) for name, call in calls.items()}
    open_ = {name: code for name, code in results.items() if code not in REFUSED}
    if open_:
        said = ", ".join(
            f"{name} ({errno.errorcode.get(code, 'done') if code else 'done'})" for name, code in open_.items()
        )
        return False, f"not refused: {said}"
    return True, f"refused: {', '.join(results)}"


def listed(items: Sequence[object], at_most: int = 8) -> str:
    """Return the first of `items` as a sentence's list."""
    more = f" and {len(items) - at_most} more" if len(items) > at_most else ""
    return ", ".join(map(str, items[:at_most])) + more
