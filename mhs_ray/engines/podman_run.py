"""One attached ``podman run`` from the first byte to the last, and the adoption of a container that is there."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mhs_ray.domain.errors import EngineError
from mhs_ray.engines import labels, podman_log, process, seccomp
from mhs_ray.engines.envfile import in_memory, split_env
from mhs_ray.engines.execfail import exec_failure, sandbox_env
from mhs_ray.engines.oom import OomWatch
from mhs_ray.engines.podman_args import LOG_CAP_MB, runtime_args, sandbox_args
from mhs_ray.ports import ContainerSpec, ContainerStatus, OnOutput, Stream

if TYPE_CHECKING:
    from mhs_ray.engines.podman import PodmanEngine

log = logging.getLogger(__name__)

OnStarted = Callable[[ContainerStatus], None]

_BLOCK: Final = 1 << 16
_TICK_S: Final = 0.01
_ASK_AFTER_S: Final = 0.3
_START_TIMEOUT_S: Final = 180.0
_PLAIN_RUNTIMES: Final = ("runc", "crun")


def run(engine: PodmanEngine, spec: ContainerSpec, on_output: OnOutput, on_started: OnStarted) -> None:
    """See `PodmanEngine.run`."""
    client = _Client(engine, spec, on_output, on_started)
    if not client.run() or _adopt(engine, spec, on_output, on_started):
        return
    # What had the name was never started: its creator died half way. It is gone now.
    if _Client(engine, spec, on_output, on_started).run():
        raise EngineError(engine.name, f"run container {spec.name}", "somebody else starts one of this name now")


class _Client:
    """One ``podman run`` process and what is known of its container."""

    def __init__(self, engine: PodmanEngine, spec: ContainerSpec, on_output: OnOutput, on_started: OnStarted) -> None:
        self._engine, self._spec, self._on_output, self._on_started = engine, spec, on_output, on_started
        self._operation = f"run container {spec.name}"
        self._env = sandbox_env(spec)
        self._started: ContainerStatus | None = None
        self._early: bytearray = bytearray()  # stderr before it is known whether podman or the container speaks
        self._delivered: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        self._first_words = bytearray()
        self._watch: OomWatch | None = None

    def run(self) -> bool:
        """Return True when a container of this name is there already, False when ours ran and ended."""
        caps = self._engine.capabilities()
        passed = split_env(self._env)
        with (
            tempfile.TemporaryDirectory(prefix="mhs-run-", ignore_cleanup_errors=True) as name,
            seccomp.profile_path() as profile,
            in_memory(passed.lines) as env_fd,
        ):
            folder = Path(name)
            argv = [*self._engine.base, *runtime_args(self._spec.runtime, caps), "run"]
            argv += [
                f"--cidfile={folder}/cid",
                f"--pidfile={folder}/pid",
                "--sig-proxy=false",
                f"--env-file=/proc/self/fd/{env_fd}",
            ]
            for variable in passed.names:
                argv += ["--env", variable]
            argv += [*sandbox_args(self._spec, caps, profile), str(self._spec.image), *self._spec.command]
            try:
                client = subprocess.Popen(
                    argv,
                    cwd=folder,  # conmon leaves a file named `oom` where it was started
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=self._engine.environment(self._spec, passed.client),
                    pass_fds=(env_fd,),
                    start_new_session=True,
                    bufsize=0,
                )
            except OSError as exc:
                raise EngineError(self._engine.name, self._operation, str(exc.strerror)) from None
            try:
                self._pump(client, folder)
                code = client.wait()
            except BaseException:
                # The caller's callback failed: the container goes on and can be adopted.
                client.kill()
                client.wait()
                raise
            finally:
                for pipe in (client.stdout, client.stderr):
                    if pipe is not None:
                        pipe.close()
                if self._watch is not None:
                    self._watch.close()
            return self._finish(code)

    def _pump(self, client: subprocess.Popen[bytes], folder: Path) -> None:
        assert client.stdout is not None
        assert client.stderr is not None
        streams: dict[int, Stream] = {client.stdout.fileno(): "stdout", client.stderr.fileno(): "stderr"}
        poll = select.poll()
        for fd in streams:
            poll.register(fd, select.POLLIN | select.POLLHUP)
        begun = asked = time.monotonic()
        stub: str | None = None
        while streams:
            ready = poll.poll(None if self._started else _TICK_S * 1000)
            for fd, _ in ready:
                data = os.read(fd, _BLOCK)
                if not data:
                    poll.unregister(fd)
                    del streams[fd]
                else:
                    self._take(streams[fd], data, folder)
            if self._started is None and streams:
                pid = _pid(folder)
                exe = _executable(pid)
                stub = stub or exe
                now = time.monotonic()
                if _is_program(exe, stub, self._spec.runtime or self._engine.capabilities().runtime_name):
                    self._note_start(folder)
                elif pid and now - asked > _ASK_AFTER_S:
                    asked = now
                    status = self._engine.inspect(self._spec.name)
                    if status is not None and status.started_at is not None:
                        self._note_start(folder)
                elif now - begun > _START_TIMEOUT_S:
                    client.kill()
                    raise EngineError(self._engine.name, self._operation, f"not started in {_START_TIMEOUT_S:.0f} s")

    def _take(self, stream: Stream, data: bytes, folder: Path) -> None:
        if self._started is None:
            if stream == "stderr" and len(self._early) + len(data) <= _BLOCK:
                self._early += data
                return
            # podman itself writes nothing to stdout, nor this much to stderr.
            self._note_start(folder)
        self._deliver(stream, data)

    def _deliver(self, stream: Stream, data: bytes) -> None:
        if len(self._first_words) < 512:
            self._first_words += data[:512]
        self._delivered[stream] += len(data)
        self._on_output(stream, data)

    def _note_start(self, folder: Path) -> None:
        if self._started is not None:
            return
        pid = _pid(folder)
        container_id = ""
        with contextlib.suppress(OSError):
            container_id = (folder / "cid").read_text().strip()
        shutil.rmtree(folder, ignore_errors=True)  # nothing of it is left should we be killed from here on
        self._started = ContainerStatus(
            id=container_id,
            name=self._spec.name,
            running=True,
            exit_code=None,
            oom_killed=False,
            pid=pid,
            labels=labels.enforced(self._spec.labels),
            started_at=datetime.now(UTC),
        )
        if pid:
            self._watch = OomWatch(pid)
        self._on_started(self._started)
        if self._early:
            early, self._early = bytes(self._early), bytearray()
            self._deliver("stderr", early)

    def _finish(self, code: int) -> bool:
        if self._started is None and code == 125 and b"is already in use" in self._early:
            return True
        facts = self._engine.inspect_raw(self._spec.name)
        status = None if facts is None else self._engine.status(facts)
        if status is not None and status.started_at is None:
            self._engine.remove(self._spec.name)
            raise self._failure(code, bytes(self._early))
        if status is None:
            if self._started is None:
                raise self._failure(code, bytes(self._early))
            return False  # removed by somebody: ended all the same
        if self._started is None:  # so short that it was over before it was seen
            self._started = status
            self._on_started(status)
            if self._early:
                self._deliver("stderr", bytes(self._early))
        if self._watch is not None and self._watch.seen:
            self._engine.note_oom(status.id)
        if status.running:
            log.warning(
                "the podman client of container %s ended with %s before it did; reading on", self._spec.name, code
            )
            whole = sum(self._delivered.values()) < LOG_CAP_MB * 500_000
            _follow(facts or {}, self._on_output, self._delivered if whole else {}, self._engine)
        elif self._engine.capabilities().init and sum(self._delivered.values()) == len(self._first_words):
            failure = exec_failure(self._engine.name, self._operation, bytes(self._first_words), by_init=True)
            if failure is not None and status.exit_code:
                raise failure
        return False

    def _failure(self, code: int, words: bytes) -> EngineError:
        detail = process.last_words(words, self._env.values())
        if code in (126, 127) and (failure := exec_failure(self._engine.name, self._operation, words, by_init=False)):
            return failure
        return EngineError(self._engine.name, self._operation, detail)


def _adopt(engine: PodmanEngine, spec: ContainerSpec, on_output: OnOutput, on_started: OnStarted) -> bool:
    """Deliver the output of the container that is there to its end; False when it never ran and is removed now."""
    operation = f"adopt container {spec.name}"
    facts = engine.inspect_raw(spec.name)
    if facts is None:
        return False
    status = engine.status(facts)
    if not labels.carried(spec.labels, status.labels):
        raise EngineError(engine.name, operation, "it carries other labels, so it is not ours; remove it by hand")
    if status.started_at is None:
        engine.remove(spec.name)
        return False
    log.info("container %s is there already and is adopted", spec.name)
    watch = OomWatch(status.pid) if status.pid else None
    try:
        on_started(status)
        _follow(facts, on_output, {}, engine)
    finally:
        if watch is not None:
            watch.close()
            if watch.seen:
                engine.note_oom(status.id)
    return True


def _follow(facts: dict[str, Any], on_output: OnOutput, done: dict[Stream, int], engine: PodmanEngine) -> None:
    path = Path(facts["HostConfig"]["LogConfig"]["Path"])
    state = facts["State"]
    alive = podman_log.Alive(state.get("Pid"), state.get("ConmonPid"))
    for stream, data in podman_log.skipping(podman_log.follow(path, alive), done):
        on_output(stream, data)
    # conmon is gone; its clean-up process tells podman the exit code in a moment.
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        status = engine.inspect(str(facts["Id"]))
        if status is None or not status.running:
            return
        time.sleep(0.1)


def _pid(folder: Path) -> int | None:
    try:
        return int((folder / "pid").read_text())
    except (OSError, ValueError):
        return None


def _is_program(exe: str | None, stub: str | None, runtime: str) -> bool:
    """Say whether the container's first process has become its own program: until then it is the OCI runtime's."""
    # runc and crun run from a copy of themselves: a sealed memory file, or a mount that has no path but "/".
    if exe is None or exe == "/" or "memfd:" in exe:
        return False
    return exe != stub or (runtime in _PLAIN_RUNTIMES and Path(exe).name not in _PLAIN_RUNTIMES)


def _executable(pid: int | None) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/exe").readlink()) if pid else None
    except OSError:
        return None
