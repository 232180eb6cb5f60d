"""One container in one sandbox as an attempt has them, everything tried from inside and seen from outside."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Final

from mhs_ray.domain.errors import EngineError, SandboxError
from mhs_ray.engines import labels
from mhs_ray.engines.pause import ensure_pause_image
from mhs_ray.ports import ContainerEngine, ContainerSpec, ContainerStatus, Limits, Stream
from mhs_ray.sandbox.audit import image, outside
from mhs_ray.sandbox.sandbox import Sandbox, SandboxSpec
from mhs_ray.sandbox.scratch import TARGETS, mounts_below

_HOST: Final = "audit.example.com"
_LIMITS: Final = Limits(cpus=0.9, memory_bytes=192 << 20, pids=48, shm_bytes=8 << 20, open_files=1024)
_SCRATCH: Final = 32 << 20
_SLIDE: Final = "the slide of the audit"
_ENGINES_OWN: Final = (
    "PATH",
    "HOSTNAME",
    "TERM",
    "container",
    "HOME",
    "LD_PRELOAD",
    "NVIDIA_VISIBLE_DEVICES",
    "LC_CTYPE",
)
_PATIENCE_S: Final = 120.0
_DIES_WITHIN_S: Final = 15.0
_GONE_WITHIN_S: Final = 30.0
"""For the runtime's own end on a busy node; a process that outlived its container would stay longer than that."""

NAMES: Final = (
    "user-on-the-node", "namespaces", "cpu-limit", "memory-and-swap-limit", "process-count-limit", "platform-labels",
)  # fmt: skip
"""Checks made from outside while it runs; then come those from inside, then stopping and cleaning up."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried. name: stable. detail: for people; holds nothing secret."""

    name: str
    ok: bool
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Return it for a program."""
        return asdict(self)


@dataclass
class _Seen:
    checks: list[Check] = field(default_factory=list)
    started: ContainerStatus | None = None
    pid_namespace: str = ""
    stop_asked: float | None = None
    words: bytearray = field(default_factory=bytearray)


def audit(engine: ContainerEngine, *, runtime: str | None = None, folder: Path | None = None) -> list[Check]:
    """Try everything on this node with `engine`; returns the checks in their order, about ten seconds later.

    runtime: OCI runtime of models, as jobs get it. folder: where sandboxes of this node live.
    Raises EngineError or SandboxError when not even a container can be had.
    """
    tag, pause = image.ensure_image(engine), ensure_pause_image(engine)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mhs-audit-", dir=folder)))
        home.chmod(0o711)  # a runtime in a user namespace passes through
        name = f"mhs-audit-{secrets.token_hex(5)}"
        seen = _Seen()
        port, unix = stack.enter_context(outside.witness())
        sandbox = Sandbox(engine, _sandbox_spec(name, pause, port), home / "sandboxes", lambda _target: None)
        with sandbox:
            stack.callback(engine.remove, name)
            try:
                spec = _container(name, tag, sandbox, home, port, unix, runtime)
                _run(engine, spec, seen)
                _after_stop(engine, name, seen)
            finally:
                engine.remove(name)
        seen.checks.append(_left(engine, name, home))
    return seen.checks


def _sandbox_spec(name: str, pause: str, witness_port: int) -> SandboxSpec:
    own = {labels.PLATFORM: "audit", labels.JOB: "0", labels.ATTEMPT: "0"}
    # The gateway of the audit is the witness: a request that gets as far as it is not refused.
    gateway = f"http://127.0.0.1:{witness_port}"
    return SandboxSpec(name, own, pause, _HOST, gateway, _SCRATCH)


def _container(
    name: str, tag: str, sandbox: Sandbox, home: Path, port: int, unix: str, runtime: str | None
) -> ContainerSpec:
    slide = home / "slide"
    slide.write_text(_SLIDE)
    own = {**image.VARIABLES, "MHS_PROBE": ""}
    given = {
        "setuid_program": image.SETUID_PROGRAM,
        "setuid_arguments": [*image.LOADER[1:], "-S", "-s", "-c", "import os; print(os.geteuid())"],
        "device_nodes": list(image.DEVICE_NODES) if os.geteuid() == 0 else [],
        "open_files": _LIMITS.open_files, "pids": _LIMITS.pids, "memory_bytes": _LIMITS.memory_bytes,
        "shm_bytes": _LIMITS.shm_bytes, "scratch_bytes": _SCRATCH, "writable": [*TARGETS, "/run", "/volume"],
        "variables": [*own, *sandbox.env, *_ENGINES_OWN], "node_ports": outside.node_ports()[:300],
        "node_addresses": outside.node_addresses()[:10], "witness_port": port, "abstract_socket": unix,
        "results_host": f"api.{_HOST}", "slide": _SLIDE, "slide_url": sandbox.slide_url(slide, "slide.svs", 600),
    }  # fmt: skip
    return ContainerSpec(
        name=name,
        image=tag,
        env={**own, **sandbox.env, "MHS_PROBE": json.dumps(given)},
        labels={labels.PLATFORM: "audit", labels.JOB: "0", labels.ROLE: labels.ROLE_MODEL},
        limits=_LIMITS,
        mounts=sandbox.mounts,
        tmpfs=sandbox.tmpfs,
        command=image.COMMAND,
        network=sandbox.network,
        runtime=runtime,
    )


def _run(engine: ContainerEngine, spec: ContainerSpec, seen: _Seen) -> None:
    lines = bytearray()

    def on_started(status: ContainerStatus) -> None:
        seen.started = status
        if status.pid is None:
            return
        with suppress(FileNotFoundError, ProcessLookupError):  # ended already: what it said tells why
            seen.pid_namespace = outside.pid_namespace(status.pid)
            seen.checks += _from_outside(engine, status.pid, spec)

    def on_output(stream: Stream, data: bytes) -> None:
        if stream == "stderr":
            seen.words += data[: max(0, 2000 - len(seen.words))]
            return
        lines.extend(data)
        *whole, rest = lines.split(b"\n")
        lines[:] = rest
        for line in whole:
            told = json.loads(line)
            if told.get("done"):
                stop()
            else:
                seen.checks.append(Check(str(told["name"]), bool(told["ok"]), str(told["detail"])))

    def stop() -> None:
        if seen.stop_asked is None:
            seen.stop_asked = time.monotonic()
            Thread(target=engine.stop, args=(spec.name, 1), name="audit-stop", daemon=True).start()

    done = Thread(target=_stop_late, args=(seen, stop), name="audit-deadline", daemon=True)
    done.start()
    engine.run(spec, on_output, on_started)
    if not any(check.name == "memory-limit" for check in seen.checks):
        words = bytes(seen.words).decode("utf-8", "replace").strip()[-500:]
        raise SandboxError(f"the audit's container on {engine.name} ended before all was tried; it said: {words}")


def _stop_late(seen: _Seen, stop: Callable[[], None]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while seen.stop_asked is None and time.monotonic() < deadline:
        time.sleep(0.2)
    stop()


def _from_outside(engine: ContainerEngine, pid: int, spec: ContainerSpec) -> list[Check]:
    checks = [Check("user-on-the-node", *outside.identity(pid)), Check("namespaces", *outside.namespaces(pid))]
    limits = outside.kernel_limits(pid)
    checks.append(_limit("cpu-limit", limits["cpus"], spec.limits.cpus, "cores"))
    memory = _limit("memory-and-swap-limit", limits["memory"], spec.limits.memory_bytes, "bytes")
    if memory.ok and outside.swap_is_there():
        memory = _limit("memory-and-swap-limit", limits["memory_swap"], spec.limits.memory_bytes, "bytes with swap")
    checks += [memory, _limit("process-count-limit", limits["pids"], spec.limits.pids, "processes")]
    status = engine.inspect(spec.name)
    held = status is not None and labels.carried(spec.labels, status.labels)
    checks.append(
        Check("platform-labels", held, "the image's own labels do not count" if held else "an image can set them")
    )
    return checks


def _limit(name: str, found: float | None, wanted: float, unit: str) -> Check:
    if found is None:
        return Check(name, False, "the kernel knows of no limit")
    return Check(name, found <= wanted * 1.01, f"{found:g} {unit}")


def _after_stop(engine: ContainerEngine, name: str, seen: _Seen) -> None:
    took = time.monotonic() - (seen.stop_asked or time.monotonic())
    status = engine.inspect(name)
    dead = status is not None and not status.running and took < _DIES_WITHIN_S
    seen.checks.append(Check("stop", dead, f"a program that ignores TERM ended {took:.1f} s after it was asked to"))
    # The runtime itself may be among them for a moment.
    deadline = time.monotonic() + _GONE_WITHIN_S
    while (left := outside.processes_in(seen.pid_namespace)) and time.monotonic() < deadline:
        time.sleep(0.05)
    said = f"processes {left} outlived it" if left else "one that detached itself ended with the container"
    seen.checks.append(Check("detached-processes", not left, said))


def _left(engine: ContainerEngine, name: str, home: Path) -> Check:
    left: list[str] = [n for n in (name, f"{name}-net") if _exists(engine, n)]
    left += [str(p) for p in (home / "sandboxes").iterdir()]
    left += mounts_below(home)
    return Check("nothing-left", not left, f"left: {left}" if left else "no container, folder or mount is left")


def _exists(engine: ContainerEngine, name: str) -> bool:
    try:
        return engine.inspect(name) is not None
    except EngineError:
        return True


def summary(checks: list[Check], engine: ContainerEngine) -> Mapping[str, Any]:
    """Return the document of ``mhs audit-sandbox --json``."""
    info = engine.info()
    return {
        "ok": all(check.ok for check in checks),
        "engine": {"name": info.name, "version": info.version, "runtime": info.runtime, "rootless": info.rootless},
        "checks": [check.to_json() for check in checks],
    }
