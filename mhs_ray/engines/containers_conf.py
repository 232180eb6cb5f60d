"""podman's own configuration without the default sysctls: for containers in a network namespace of the node's.

podman sets ``net.ipv4.ping_group_range`` in every network namespace it is given as a path, and cannot be told not to;
from a container's user namespace that is refused when the node owns the network. Nobody pings from a sandbox.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from mhs_ray.domain.errors import EngineError


def without_sysctls(folder: Path, environment: Mapping[str, str]) -> Path:
    """Write into `folder` what podman would read, less its sysctls, and return the file for ``CONTAINERS_CONF``.

    It stays: podman's clean-up of the container reads it again. Source: containers.conf(5). Raises EngineError.
    """
    merged: dict[str, Any] = {}
    for file in _files(environment):
        try:
            _merge(merged, tomllib.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise EngineError("podman", f"read its configuration {file}", str(error)) from None
    merged["containers"] = {**merged.get("containers", {}), "default_sysctls": []}
    content = tomli_w.dumps(merged).encode()
    target = folder / f"containers-{hashlib.sha256(content).hexdigest()[:16]}.conf"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        part.write_bytes(content)
        part.replace(target)
    return target


def _files(environment: Mapping[str, str]) -> list[Path]:
    own = environment.get("CONTAINERS_CONF")
    if own:
        return [Path(own)]
    home = Path(environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME", "/root"), ".config"))
    roots = (Path("/usr/share/containers"), Path("/etc/containers"), home / "containers")
    return [
        f
        for r in roots
        for f in (r / "containers.conf", *sorted((r / "containers.conf.d").glob("*.conf")))
        if f.is_file()
    ]


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Lay `more` over `into` as podman does: table by table, and a list replaces one unless it says ``append``."""
    for key, value in more.items():
        before = into.get(key)
        if isinstance(value, dict):
            table = before if isinstance(before, dict) else {}
            _merge(table, value)
            into[key] = table
        elif isinstance(value, list):
            appended = {"append": True} in value
            items = [v for v in value if not (isinstance(v, dict) and "append" in v)]
            into[key] = [*(before if appended and isinstance(before, list) else []), *items]
        else:
            into[key] = value
