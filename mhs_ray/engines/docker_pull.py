"""A pull by Docker's daemon that ends when the caller hangs up.

The daemon gives a pull up when its client is gone. The SDK's stream cannot be left while the registry is silent, so the
call is made on a socket of our own.
"""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Final
from urllib.parse import urlencode

from mhs_ray.domain.errors import EngineError
from mhs_ray.domain.models import ImageRef
from mhs_ray.engines.docker_attach import connect
from mhs_ray.engines.process import last_words
from mhs_ray.engines.pulling import POLL_S, PULL_TIMEOUT_S, given_up
from mhs_ray.ports import RegistryCredential

_BLOCK: Final = 1 << 16
_ENGINE: Final = "docker"


def pull(
    base_url: str,
    version: str,
    image: ImageRef,
    credential: RegistryCredential | None,
    cancelled: Callable[[], bool],
) -> None:
    """Have the daemon pull `image`; return once it says that it has it. Raises EngineError."""
    operation = f"pull {image}"
    secrets = [credential.password] if credential else []
    auth = {"username": credential.username, "password": credential.password} if credential else {}
    query = urlencode({"fromImage": f"{image.registry}/{image.repository}", "tag": image.digest})
    # HTTP 1.0: the daemon then sends no chunks, but the bytes, and closes.
    request = (
        f"POST /v{version}/images/create?{query} HTTP/1.0\r\nHost: docker\r\nContent-Length: 0\r\n"
        f"X-Registry-Auth: {base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()}\r\n\r\n"
    )
    connection = connect(base_url)
    try:
        connection.sendall(request.encode())
        lines = _lines(connection, image, cancelled)
        status = next(lines, "")
        for line in lines:  # the rest of the head
            if not line:
                break
        fault = None
        for line in lines:
            step = _step(line)
            fault = fault or step.get("error") or step.get("message")
        if status.split(" ")[1:2] != ["200"] or fault:
            raise EngineError(_ENGINE, operation, last_words(str(fault or status).encode(), secrets))
    except OSError as exc:
        raise EngineError(_ENGINE, operation, f"the daemon at {base_url} does not answer ({exc.strerror})") from None
    finally:
        connection.close()


def _lines(connection: socket.socket, image: ImageRef, cancelled: Callable[[], bool]) -> Iterator[str]:
    """Yield the answer's lines as they come, looking up at every pause."""
    connection.settimeout(POLL_S)
    ends = monotonic() + PULL_TIMEOUT_S
    rest = b""
    while True:
        if cancelled():
            raise given_up(_ENGINE, image)
        if monotonic() > ends:
            raise EngineError(_ENGINE, f"pull {image}", f"it did not end within {PULL_TIMEOUT_S:.0f} s")
        try:
            block = connection.recv(_BLOCK)
        except TimeoutError:
            continue
        if not block:
            break
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")


def _step(line: str) -> dict[str, Any]:
    try:
        step = json.loads(line)
    except ValueError:
        return {}
    return step if isinstance(step, dict) else {}
