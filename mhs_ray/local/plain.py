"""What a container needs that is run by hand, by a plain ``docker run``: TLS for its hosts, and its slide.

The names of the contract lead to a server on loopback that this process runs: ``api.{HOST}`` to the platform's results
gateway, ``files.mhs.internal`` to the slide. It is what an attempt's sandbox has, without the sandbox.
"""

from __future__ import annotations

import asyncio
import secrets
import shlex
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from mhs_ray.local.serve import bind_loopback
from mhs_ray.platform.keys import write_private
from mhs_ray.sandbox.files import FileServer
from mhs_ray.sandbox.http import HttpServer
from mhs_ray.sandbox.local import LocalHosts
from mhs_ray.sandbox.routes import FILES_HOST, LocalRoute, RouteTable, results_route
from mhs_ray.sandbox.sandbox import TRUST_TARGET, TRUST_VARIABLES
from mhs_ray.sandbox.state import private_folder
from mhs_ray.sandbox.tls import AttemptCa, trust_bundle

_LIFE_S: Final = 24 * 3600.0
_MAX_DEBUG: Final = 2 << 30


@dataclass(frozen=True, slots=True)
class PlainTask:
    """What the container is to work on. slide: a file on this machine, or a URL that it can reach itself."""

    task_id: str
    scan_id: str
    slide: Path | str


class PlainHosts:
    """A context manager. host: HOST without a port; one of this server's own is added. gateway: the platform's URL."""

    def __init__(self, folder: Path, host: str, gateway: str, task: PlainTask) -> None:
        self._folder, self._host, self._gateway, self._task = folder, host, gateway, task
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._open(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._undo.close()

    def _open(self, undo: ExitStack) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        home = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="plain-", dir=self._folder)))
        home.chmod(0o711)  # the container's user must get through to the bundle
        listening = undo.enter_context(bind_loopback())
        listening.listen()
        listening.setblocking(False)
        port = listening.getsockname()[1]
        self.host = f"{self._host}:{port}"
        table = RouteTable([results_route(self.host, self._gateway), LocalRoute(FILES_HOST, None, port)])
        files = FileServer(
            secrets.token_bytes(32), private_folder(home / "uploads"), _MAX_DEBUG, f"{FILES_HOST}:{port}"
        )
        ca = AttemptCa.open(private_folder(home / "private"), table.local_hosts)
        self.bundle = home / "trust.pem"
        self.bundle.write_bytes(trust_bundle(ca))
        self.bundle.chmod(0o644)
        self.env_file = home / "run.env"
        variables = self._variables(files)
        write_private(self.env_file, "".join(f"{k}={v}\n" for k, v in variables.items()).encode())
        self._hosts = table.local_hosts
        undo.callback(_serve(listening, LocalHosts(table, files), ca.server_context(table.local_hosts)))

    def _variables(self, files: FileServer) -> Mapping[str, str]:
        until, slide = time.time() + _LIFE_S, self._task.slide
        if isinstance(slide, Path):
            files.publish("slide", slide, slide.name)
            slide = files.url("slide", "GET", until)
        files.accept("debug")
        return {
            "HOST": self.host,
            "TASK_ID": self._task.task_id,
            "SCAN_ID": self._task.scan_id,
            "SCAN_URL": slide,
            "DEBUG_FILE_UPLOAD_URL": files.url("debug", "PUT", until),
            **dict.fromkeys(TRUST_VARIABLES, TRUST_TARGET),
        }

    def command(self, engine: str, image: str, gpus: bool) -> list[str]:
        """Return the words of the command that runs `image`; API keys are named in it and never told."""
        names = [word for host in self._hosts for word in ("--add-host", f"{host}:127.0.0.1")]
        return [
            engine, "run", "--rm", *(("--gpus", "all") if gpus else ()), "--network", "host", *names,
            "--volume", f"{self.bundle}:{TRUST_TARGET}:ro", "--env-file", str(self.env_file),
            "--env", "API_KEY_ID", "--env", "API_KEY_SECRET", image,
        ]  # fmt: skip


def shell(words: list[str]) -> str:
    """Return words as a shell takes them."""
    return shlex.join(words)


def _serve(listening: socket.socket, application: LocalHosts, tls: ssl.SSLContext) -> _Stop:
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def run() -> None:
        async with HttpServer(application) as server:
            ready.set()
            accepting = asyncio.create_task(accept(server))
            await stop.wait()
            accepting.cancel()
            with suppress(asyncio.CancelledError):
                await accepting

    async def accept(server: HttpServer) -> None:
        open_ones: set[asyncio.Task[None]] = set()
        while True:
            conn, _ = await loop.sock_accept(listening)
            one = asyncio.create_task(_one(server, conn, tls))
            open_ones.add(one)
            one.add_done_callback(open_ones.discard)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), name="plain-hosts", daemon=True)
    thread.start()
    ready.wait(30)
    return _Stop(loop, stop, thread)


async def _one(server: HttpServer, conn: socket.socket, tls: ssl.SSLContext) -> None:
    with suppress(OSError):  # such as a client that does not trust us: it says so itself
        await server.serve(conn, tls)


@dataclass(frozen=True)
class _Stop:
    loop: asyncio.AbstractEventLoop
    event: asyncio.Event
    thread: threading.Thread

    def __call__(self) -> None:
        self.loop.call_soon_threadsafe(self.event.set)
        self.thread.join(10)
