"""The host of one warm container: a process of its own, which outlives the attempts that use the container.

It holds what must live as long as the container does: the sandbox with its proxy, the container's output, and the
socket by which it is given its next scan. Attempts come one after another by a second socket, which only the platform
sees. An attempt that goes away in the middle of a scan takes the container with it: nobody could tell what it would
post next.

The container's side (a line of JSON each, see docs/how-to/warm-containers.md)::

    container: {"ready": 1}                                   once, when its model is loaded
    host:      {"scan": "7", "env": {"SCAN_URL": …}}
    container: {"done": "7"}   or   {"failed": "7", "message": "…", "code": 3}
    host:      {"scan": "8", …}   or   {"end": "…"}
"""

from __future__ import annotations

import base64
import contextlib
import logging
import queue
import shutil
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mhs_ray.attempt.runner import Node
from mhs_ray.attempt.warm_order import HOST_SOCKET, WarmOrder
from mhs_ray.attempt.warm_wire import Wire, listen
from mhs_ray.domain.env import merge_env
from mhs_ray.domain.errors import EngineError, ExecError, MhsError
from mhs_ray.domain.instances import INSTANCE_TYPES
from mhs_ray.domain.warm import SOCKET_VARIABLE
from mhs_ray.engines import labels
from mhs_ray.ports import ContainerSpec, ContainerStatus, Limits, Mount, Stream
from mhs_ray.sandbox.sandbox import Sandbox, SandboxSpec

log = logging.getLogger(__name__)

CONTAINER_SOCKET: Final = "warm.sock"
TARGET: Final = "/run/mhs-warm"
_FIRST_S: Final = 60.0  # for an attempt to come that the host was started for
_QUIET_S: Final = 0.1  # output that is still on its way when a scan ends
_DRAIN_S: Final = 2.0
_EVENTS: Final = 500
_EAR_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class _Event:
    """Something that happened: kind is output, started, exited, container, attempt or denied."""

    kind: str
    value: Any = None
    stream: Stream = "stdout"


class WarmHost:
    """Serves attempts until the container's life is over. folder: for the host's socket, in our sight only."""

    def __init__(self, order: WarmOrder, node: Node, folder: Path) -> None:
        self._order, self._node, self._folder = order, node, folder
        self._work = node.folder / "work" / order.name / "warm"
        self._events: queue.Queue[_Event] = queue.Queue(_EVENTS)
        self._scans, self._began = 0, time.monotonic()
        self._container: threading.Thread | None = None
        self._status: ContainerStatus | None = None
        self._client: Wire | None = None
        self._asking = False  # the container waits for a scan
        self._scan_id: str | None = None
        self._scan_env: dict[str, str] = {}
        self._handed = False
        self._left_out = 0
        self._over = ""
        self._lock = threading.Lock()

    def run(self) -> None:
        """Open the sandbox, serve, and leave nothing. Raises SandboxError, EngineError when it cannot be opened."""
        self._work.mkdir(parents=True, exist_ok=True)
        self._work.chmod(0o755)
        node, order = self._node, self._order
        self._sandbox = Sandbox(
            node.engine,
            SandboxSpec(
                name=order.name, labels=self._labels(labels.ROLE_PAUSE), pause_image=node.pause_image, host=order.host,
                gateway_url=order.gateway_url, scratch_bytes=node.jobs.scratch, direct=node.direct,
                ca_bundles=order.ca_bundles, max_debug_bytes=node.jobs.max_debug_file,
                max_results_bytes=node.max_results_bytes,
            ),
            node.folder / "sandboxes",
            lambda target: self._put(_Event("denied", target)),
        )  # fmt: skip
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self._work.parent, ignore_errors=True)
            stack.enter_context(self._sandbox)
            inside = stack.enter_context(listen(self._work, CONTAINER_SOCKET, 0o666))
            threading.Thread(target=self._accept, args=(inside,), name="container", daemon=True).start()
            try:
                with listen(self._folder, HOST_SOCKET, 0o600) as attempts:
                    self._serve(attempts)
            finally:
                if self._client is not None:
                    self._client.send({"end": self._over or "the platform needs it no more"})
                self._remove()

    def _serve(self, attempts: socket.socket) -> None:
        patience = _FIRST_S
        while not self._over:
            attempts.settimeout(0.5)
            try:
                sock, _ = attempts.accept()
            except TimeoutError:
                patience -= 0.5
                if self._ended():
                    self._over = "the container ended between two scans"
                elif patience <= 0:
                    self._over = f"no scan came for {self._order.idle_s} s"
                continue
            wire = Wire(sock)
            try:
                self._attempt(wire)
            finally:
                wire.close()
            patience = float(self._order.idle_s)
            if self._scans >= self._order.scans:
                self._over = f"it took {self._scans} scans"

    # ------------------------------------------------------------ one attempt

    def _attempt(self, wire: Wire) -> None:
        if self._ended():
            self._over = "the container ended between two scans"
            return
        wire.send({"host": self._order.name, "scans": self._scans, "age_s": round(time.monotonic() - self._began, 1)})
        message = wire.receive()
        if message is None:
            return  # it gave up before it had a scan for us
        if "quit" in message:
            self._over = str(message["quit"])
            return
        self._scans += 1
        number = self._scans
        end = None
        try:
            env = self._contract(message, number)
            wire.send({"urls": [urlsplit(v).query for k, v in env.items() if k.endswith(("URL", "URL_ZIP"))]})
            end = self._run_scan(wire, number, env)
        except MhsError as error:
            kind = "exec" if isinstance(error, ExecError) else "engine" if isinstance(error, EngineError) else "other"
            detail = error.detail if isinstance(error, EngineError) else str(error)
            operation = error.operation if isinstance(error, EngineError) else "run a warm container"
            end = {"error": kind, "operation": operation, "detail": detail}
            self._over = "it could not be run"
        finally:
            for name in (f"slide-{number}", f"slide-zip-{number}", f"debug-{number}"):
                self._sandbox.withdraw(name)
        if end is None:
            self._over = "its attempt went away in the middle of a scan"
            return
        debug = self._sandbox.uploaded(f"debug-{number}")
        wire.send({**end, "debug": str(debug) if debug else None, "left_out": self._left_out})
        self._left_out = 0
        with contextlib.suppress(TimeoutError):
            wire.receive(600)  # it has kept the debug file
        if debug is not None:
            debug.unlink(missing_ok=True)

    def _contract(self, message: dict[str, Any], number: int) -> dict[str, str]:
        """Return the contract's variables of one scan; their URLs are good for this scan only."""
        env = {str(k): str(v) for k, v in message["env"].items()}
        life, name = float(message["life_s"]), str(message["name"])
        env["SCAN_URL"] = self._sandbox.slide_url(Path(message["slide"]), name, life, name=f"slide-{number}")
        env["DEBUG_FILE_UPLOAD_URL"] = self._sandbox.debug_url(life, name=f"debug-{number}")
        if message.get("packed"):
            packed = Path(message["packed"])
            env["SCAN_URL_ZIP"] = self._sandbox.slide_url(packed, "slide.zip", life, name=f"slide-zip-{number}")
        return env

    def _run_scan(self, wire: Wire, number: int, env: dict[str, str]) -> dict[str, Any] | None:
        """See one scan through; returns how it ended, None when its attempt went away."""
        self._drop_events()
        with self._lock:
            self._scan_id, self._scan_env, self._handed = str(number), env, False
        ear = threading.Thread(target=self._hear_attempt, args=(wire, str(number)), daemon=True)
        ear.start()
        try:
            if self._container is None:
                self._start(env)
            else:
                assert self._status is not None
                wire.send({"started": self._status.pid})
                self._hand()
            return self._until_end(wire)
        finally:
            with self._lock:
                self._scan_id = None
            ear.join()

    def _until_end(self, wire: Wire) -> dict[str, Any] | None:
        end: dict[str, Any] | None = None
        quiet_at = 0.0
        while True:
            try:
                event = self._events.get(timeout=None if end is None else _QUIET_S)
            except queue.Empty:
                return end
            match event.kind:
                case "output":
                    data = base64.b64encode(event.value).decode()
                    wire.send({"out": event.stream, "data": data})
                    if end is not None and time.monotonic() > quiet_at:
                        return end
                case "started":
                    self._status = event.value
                    wire.send({"started": event.value.pid})
                case "denied":
                    wire.send({"denied": event.value})
                case "exited":
                    return self._exit(event.value)
                case "container" if end is None:
                    end = self._answer(event.value)
                    quiet_at = time.monotonic() + _DRAIN_S
                case "attempt":
                    message = event.value
                    if message is None:
                        return None
                    if "stop" in message:
                        self._over = "its scan was stopped"
                        threading.Thread(target=self._stop, args=(float(message["stop"]),), daemon=True).start()
                case _:
                    pass

    def _answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Return what the container's word for its scan means, None for a word that is none."""
        if str(message.get("done", "")) == self._scan_id:
            return {"exit_code": 0, "oom_killed": False, "warm": True}
        if str(message.get("failed", "")) == self._scan_id:
            code = message.get("code")
            good = isinstance(code, int) and not isinstance(code, bool) and 1 <= code <= 255
            said = str(message.get("message", ""))[:4000]
            return {"exit_code": code if good else 1, "oom_killed": False, "warm": True, "message": said}
        return None

    def _exit(self, error: Exception | None) -> dict[str, Any]:
        self._over = self._over or "the container ended"
        if error is not None:
            raise error if isinstance(error, MhsError) else EngineError(self._engine, "run a container", str(error))
        status = self._node.engine.inspect(self._order.name)
        if status is None or status.exit_code is None:
            raise EngineError(self._engine, "tell how the container ended", "it is gone, or has no exit code")
        return {"exit_code": status.exit_code, "oom_killed": status.oom_killed, "warm": False}

    @property
    def _engine(self) -> str:
        return self._node.engine.name

    # ------------------------------------------------------------ the container

    def _start(self, contract: dict[str, str]) -> None:
        order, sandbox = self._order, self._sandbox
        kind = INSTANCE_TYPES[order.instance_type]
        spec = ContainerSpec(
            name=order.name,
            image=order.image,
            # The first scan's variables are there as the contract has them: a container that never asks has its one.
            env={
                **merge_env(order.env, contract), **sandbox.env,
                SOCKET_VARIABLE: f"{TARGET}/{CONTAINER_SOCKET}",
            },
            labels=self._labels(labels.ROLE_MODEL),
            limits=Limits(cpus=kind.vcpu, memory_bytes=kind.memory_bytes),
            mounts=(*sandbox.mounts, Mount(self._work, TARGET)),
            tmpfs=sandbox.tmpfs,
            network=sandbox.network,
            gpus=order.gpus,
            runtime=self._node.runtime,
        )  # fmt: skip

        def run() -> None:
            error: Exception | None = None
            try:
                self._node.engine.run(spec, self._output, lambda status: self._put(_Event("started", status)))
            except Exception as caught:
                error = caught
            self._put(_Event("exited", error))

        self._container = threading.Thread(target=run, name="engine", daemon=True)
        self._container.start()

    def _ended(self) -> bool:
        return self._container is not None and not self._container.is_alive()

    def _output(self, stream: Stream, data: bytes) -> None:
        """Take output. Between scans it is nobody's: it may hold what only the scan before may see."""
        if self._scan_id is None:
            self._left_out += len(data)
        else:
            self._put(_Event("output", data, stream))

    def _put(self, event: _Event) -> None:
        # Blocks under a flood, which slows the container and not us; between two scans nobody would take it out.
        while True:
            try:
                self._events.put(event, timeout=0.5)
                return
            except queue.Full:
                if self._scan_id is None:
                    return

    def _drop_events(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get_nowait()
                if event.kind == "output":
                    self._left_out += len(event.value)

    def _accept(self, inside: socket.socket) -> None:
        """Take the container's connection; the newest counts."""
        inside.settimeout(None)
        while True:
            try:
                sock, _ = inside.accept()
            except OSError:
                return
            wire = Wire(sock)
            with self._lock:
                before, self._client, self._asking = self._client, wire, False
                self._handed = False  # a program that begins again inside is given its scan again
            if before is not None:
                before.close()
            threading.Thread(target=self._hear_container, args=(wire,), daemon=True).start()

    def _hear_container(self, wire: Wire) -> None:
        while (message := wire.receive()) is not None:
            if "ready" in message:
                with self._lock:
                    self._asking = True
                self._hand()
            elif "done" in message or "failed" in message:
                with self._lock:
                    self._asking = True
                self._put(_Event("container", message))
        wire.close()

    def _hand(self) -> None:
        """Give the container its scan, once, if it waits for one."""
        with self._lock:
            if not self._asking or self._handed or self._scan_id is None or self._client is None:
                return
            self._asking, self._handed = False, True
            client, message = self._client, {"scan": self._scan_id, "env": self._scan_env}
        client.send(message)

    def _hear_attempt(self, wire: Wire, scan: str) -> None:
        while self._scan_id == scan:
            try:
                message = wire.receive(_EAR_S)
            except TimeoutError:
                continue
            if self._scan_id == scan:
                self._put(_Event("attempt", message))
            if message is None:
                return

    def _stop(self, grace_s: float) -> None:
        with contextlib.suppress(EngineError):
            self._node.engine.stop(self._order.name, grace_s)

    def _remove(self) -> None:
        self._scan_id = None
        with contextlib.suppress(EngineError):
            self._node.engine.remove(self._order.name)

    def _labels(self, role: str) -> dict[str, str]:
        return {labels.PLATFORM: self._order.platform, labels.ROLE: role}
