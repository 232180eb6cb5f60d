"""Run an engine's command line with a time limit and turn its failure into EngineError."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Final

from mhs_ray.domain.errors import EngineError

log = logging.getLogger(__name__)

_SHORTEST_SECRET = 6
_POLL_S: Final = 0.2
_TERM_S: Final = 3.0
_NOISE = re.compile(r"^(Error: |time=\S+ level=\w+ msg=)", re.MULTILINE)


def call(
    engine: str,
    operation: str,
    argv: Sequence[str],
    *,
    timeout_s: float = 120.0,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    secrets: Iterable[str] = (),
) -> str:
    """Return what `argv` wrote to stdout. Raises EngineError with its last words, `secrets` blotted out."""
    result = attempt(engine, operation, argv, timeout_s=timeout_s, stdin=stdin, env=env)
    if result.returncode:
        raise EngineError(engine, operation, last_words(result.stderr or result.stdout, secrets))
    return result.stdout.decode("utf-8", "replace")


def attempt(
    engine: str,
    operation: str,
    argv: Sequence[str],
    *,
    timeout_s: float = 120.0,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run `argv` to its end, whatever its exit code. Raises EngineError when it cannot start or hangs."""
    try:
        return subprocess.run(
            argv,
            input=stdin or b"",
            capture_output=True,
            timeout=timeout_s,
            env=env,
            check=False,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise EngineError(engine, operation, f"there is no program {argv[0]}; install it") from None
    except subprocess.TimeoutExpired:
        raise EngineError(engine, operation, f"no answer within {timeout_s:.0f} s") from None
    except OSError as exc:
        raise EngineError(engine, operation, str(exc.strerror)) from None


def until(
    engine: str,
    operation: str,
    argv: Sequence[str],
    cancelled: Callable[[], bool],
    *,
    timeout_s: float,
    env: Mapping[str, str],
) -> subprocess.CompletedProcess[bytes] | None:
    """Run `argv` to its end as `attempt` does, or until `cancelled`: then it is ended with its children; None."""
    try:
        running = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
            start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise EngineError(engine, operation, f"there is no program {argv[0]}; install it") from None
    except OSError as exc:
        raise EngineError(engine, operation, str(exc.strerror)) from None
    ends = monotonic() + timeout_s
    while True:
        try:
            out, err = running.communicate(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            if not (gone := cancelled()) and monotonic() < ends:
                continue
            _end_group(running)
            if gone:
                return None
            raise EngineError(engine, operation, f"no answer within {timeout_s:.0f} s") from None
        except BaseException:
            _end_group(running)
            raise
        return subprocess.CompletedProcess(argv, running.returncode, out, err)


def _end_group(running: subprocess.Popen[bytes]) -> None:
    """End a process and what it started: asked first, so that it lets go of the storage between two of its writes."""
    for number, patience_s in ((signal.SIGTERM, _TERM_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.communicate(timeout=patience_s)
            return


def last_words(output: bytes, secrets: Iterable[str] = ()) -> str:
    """Return the end of an engine's output on one line, with every one of `secrets` blotted out."""
    text = output[-4000:].decode("utf-8", "replace")
    for secret in sorted({s for s in secrets if len(s) >= _SHORTEST_SECRET}, key=len, reverse=True):
        text = text.replace(secret, "***")
    lines = [line.strip() for line in _NOISE.sub("", text).splitlines() if line.strip()]
    return "; ".join(lines[-3:])[-1500:] or "it said nothing"
