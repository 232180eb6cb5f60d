"""What both engines' run() share: the sandbox's own variables, and telling a bad entrypoint from a bad engine."""

from __future__ import annotations

import re
from typing import Final

from mhs_ray.domain.errors import ExecError
from mhs_ray.ports import ContainerSpec

# Not podman's own "attempted to invoke a command that was not found": it says so of any missing file, a mount's too.
_BY_RUNTIME: Final = re.compile(
    r'exec:? (?:"[^"]*"|container process|`[^`]*`|\S+)[^;\n]*'
    r"(?:not found|no such file|permission denied|exec format error|is a directory|argument list too long)"
    r"|executable file (?:`[^`]*` )?not found",
    re.IGNORECASE,
)
_BY_INIT: Final = re.compile(
    r"\s*(?:ERROR \(catatonit:\d+\): failed to exec pid1: |\[FATAL tini \(\d+\)\] exec .* failed: )([^\n]*)\n?\s*"
)


def exec_failure(engine: str, operation: str, words: bytes, *, by_init: bool) -> ExecError | None:
    """Return the error for `words` that say the program cannot be executed, None if they say something else.

    by_init: they are all that the container's output had, from its init (catatonit or tini), not the OCI runtime's.
    """
    text = words.decode("utf-8", "replace")
    if by_init:
        match = _BY_INIT.fullmatch(text)
        reason = match[1] if match else None
    else:
        match = _BY_RUNTIME.search(text)
        reason = match[0].strip() if match else None
    if reason is None:
        return None
    return ExecError(
        engine,
        operation,
        f"the image's program cannot be executed ({reason[:300]}); "
        "check ENTRYPOINT and CMD: the file must exist, be executable and be built for this node's architecture",
    )


def sandbox_env(spec: ContainerSpec) -> dict[str, str]:
    """Return the variables of `spec` with those that the sandbox must set, whatever the image says.

    LD_PRELOAD reaches hooks that run as root on the node (CVE-2025-23266); NVIDIA_VISIBLE_DEVICES=all would take
    every GPU where the NVIDIA runtime is the default.
    """
    gpus = ",".join(spec.gpus) if spec.gpus else "void"
    return {"HOME": "/tmp", **spec.env, "LD_PRELOAD": "", "NVIDIA_VISIBLE_DEVICES": gpus}  # noqa: S108  the container's
