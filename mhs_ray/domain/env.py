"""Environment variables of a container: names, limits, and the ones the contract reserves."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mhs_ray.domain import tile_feed, warm
from mhs_ray.domain.errors import Fault

RESERVED: Final = frozenset(
    {"HOST", "TASK_ID", "SCAN_ID", "SCAN_URL", "SCAN_URL_ZIP", "JWT_TOKEN", "DEBUG_FILE_UPLOAD_URL"}
)
"""Techcyte's own names (techcyte-contract §1): they win and cannot be set."""

PLATFORM: Final = frozenset(
    {
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
        tile_feed.SOCKET_VARIABLE, warm.SOCKET_VARIABLE, "LD_PRELOAD", "NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES",
    }
)  # fmt: skip
"""Names that would break the sandbox's way out or the GPU that was assigned."""

_PARSED: Final[Mapping[str, Callable[[str], object]]] = {
    tile_feed.VARIABLE: tile_feed.parse_tile_feed,
    warm.VARIABLE: warm.parse_warm,
}
MAX_VALUE_BYTES: Final = 32 * 1024
MAX_TOTAL_BYTES: Final = 96 * 1024
MAX_VARIABLES: Final = 200
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


@dataclass(frozen=True, slots=True)
class EnvVar:
    """One variable of a runnable container; a secret one is encrypted at rest and never returned."""

    name: str
    value: str
    secret: bool = False


def check_env(variables: Sequence[EnvVar], path: str = "$.env") -> list[Fault]:
    """Return what is wrong with `variables`, naming ``path[i].name`` or ``path[i].value``; [] when all is well."""
    faults: list[Fault] = []
    seen: dict[str, int] = {}
    if len(variables) > MAX_VARIABLES:
        faults.append(Fault(path, f"{len(variables)} variables; at most {MAX_VARIABLES} are taken"))
    for i, var in enumerate(variables):
        at = f"{path}[{i}]"
        if not _NAME.fullmatch(var.name):
            faults.append(
                Fault(f"{at}.name", f"{var.name[:60]!r} is no variable name: use letters, digits and _, no digit first")
            )
        elif var.name in RESERVED:
            faults.append(Fault(f"{at}.name", f"{var.name} is set by the contract for every task; choose another name"))
        elif var.name in PLATFORM:
            faults.append(Fault(f"{at}.name", f"{var.name} is set by the platform's sandbox; choose another name"))
        elif var.name in seen:
            faults.append(Fault(f"{at}.name", f"{var.name} is given twice (also at {path}[{seen[var.name]}])"))
        if var.name in _PARSED:
            try:
                _PARSED[var.name](var.value)
            except ValueError as error:
                faults.append(Fault(f"{at}.value", str(error)))
        if "\x00" in var.value:
            faults.append(Fault(f"{at}.value", "a value cannot hold a NUL character"))
        if len(var.value.encode()) > MAX_VALUE_BYTES:
            faults.append(Fault(f"{at}.value", f"longer than {MAX_VALUE_BYTES // 1024} KiB"))
        seen.setdefault(var.name, i)
    if sum(len(v.name) + len(v.value.encode()) for v in variables) > MAX_TOTAL_BYTES:
        faults.append(Fault(path, f"longer than {MAX_TOTAL_BYTES // 1024} KiB in all"))
    return faults


def merge_env(own: Mapping[str, str], contract: Mapping[str, str]) -> dict[str, str]:
    """Return the container's variables with the contract's over them."""
    return {**own, **contract}
