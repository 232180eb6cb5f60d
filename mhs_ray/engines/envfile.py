"""Hand environment values to podman without showing them to ``ps``.

Values go through an env file that is only in memory. Its format has no quoting, so a value with a line break
(or quotes, which podman 4.4 strips) goes through the podman process's own environment and ``--env NAME``; names
that such a process, its helpers or the loader would itself obey are refused there, for a job must not steer them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mhs_ray.domain.errors import EngineError

_OBEYED: Final = re.compile(
    r"(LD_|GO|GLIBC_|GCONV_|MALLOC_|NVIDIA_|CUDA_|XDG_|LC_|_CONTAINERS|CONTAINERS?_|PODMAN_|BUILDAH_|STORAGE_|"
    r"REGISTRY_|REGISTRIES_|DOCKER_|SSL_CERT_|SSH_|DBUS_|NOTIFY_|LISTEN_|SYSTEMD_|_OCI|_LIBCONTAINER|_CRUN|OCI_).*|"
    r"PATH|HOME|USER|TMPDIR|SHELL|IFS|ENV|BASH_ENV|LANG|LANGUAGE|LOCPATH|NLSPATH|TZ|TZDIR|RES_OPTIONS|LOCALDOMAIN|"
    r"HOSTALIASES|TERM|HTTPS?_PROXY|NO_PROXY|ALL_PROXY|https?_proxy|no_proxy|all_proxy",
)
_KEPT: Final = (
    "PATH", "HOME", "USER", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "CONTAINERS_CONF",
    "CONTAINERS_STORAGE_CONF", "CONTAINERS_REGISTRIES_CONF", "DBUS_SESSION_BUS_ADDRESS", "SSL_CERT_FILE",
    "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
_NOT_IN_A_FILE: Final = re.compile(r"[\r\n]|^[\"']|[\"']$|^.{60000}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PassedEnv:
    """lines: content of the env file. names: what ``--env NAME`` takes from `client`, the client's own environment."""

    lines: str = field(repr=False)
    names: tuple[str, ...]
    client: Mapping[str, str] = field(repr=False)


def split_env(env: Mapping[str, str]) -> PassedEnv:
    """Choose for each variable the way that keeps every byte. Raises EngineError naming one that has no way."""
    lines: list[str] = []
    direct: dict[str, str] = {}
    for name, value in env.items():
        if not _NOT_IN_A_FILE.search(value):
            lines.append(f"{name}={value}\n")
        elif _OBEYED.fullmatch(name):
            raise EngineError("podman", "pass the environment", f"{name} cannot hold line breaks or quotes around it")
        else:
            direct[name] = value
    return PassedEnv("".join(lines), tuple(direct), direct)


def client_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what a podman process needs of our environment and nothing more, with `extra` over it."""
    # Not configuration of ours: these say who we are, and how to reach the world, to a child process.
    return {**{name: value for name in _KEPT if (value := os.environ.get(name)) is not None}, **(extra or {})}


@contextmanager
def in_memory(text: str) -> Iterator[int]:
    """Yield a descriptor of a file that holds `text` and is on no disk: nothing stays if we are killed."""
    fd = os.memfd_create("mhs-env")
    try:
        with os.fdopen(os.dup(fd), "w", newline="") as file:
            file.write(text)
        yield fd
    finally:
        os.close(fd)


def write_private(path: Path, text: str) -> None:
    """Write `text` to a new file that only we can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", newline="") as file:
        file.write(text)
