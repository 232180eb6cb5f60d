"""Names of our actors as people see them in the Ray dashboard."""

from __future__ import annotations

import re
from typing import Final

NAMESPACE: Final = "mhs"
DISPATCHER: Final = "mhs dispatcher"
REGISTRAR: Final = "mhs registrar"
_ATTEMPT: Final = re.compile(r"job (\d+) · attempt (\d+) · ")


def attempt_name(key: tuple[int, int], label: str) -> str:
    """Return ``job 42 · attempt 1 · scan 8946136 · My GPU Container``."""
    _, _, rest = label.partition(" · ")
    return f"job {key[0]} · attempt {key[1]} · {rest}"[:200]


def attempt_key(name: str) -> tuple[int, int] | None:
    """Return (job, attempt) of an attempt's actor name, None for another actor's."""
    match = _ATTEMPT.match(name)
    return (int(match[1]), int(match[2])) if match else None
