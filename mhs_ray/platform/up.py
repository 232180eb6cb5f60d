"""Starting and stopping the platform: Ray (one of its own, or the head part on a cluster's), Serve, registry, blobs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from mhs_ray.domain.errors import ConflictError, MhsError
from mhs_ray.domain.settings import Settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.haproxy import haproxy_environment
from mhs_ray.platform.keys import Keys, write_private
from mhs_ray.platform.ports import choose_ports
from mhs_ray.platform.processes import alive, end, end_all
from mhs_ray.platform.secrets import keys_of

log = logging.getLogger(__name__)

_READY_S: Final = 180.0
_END_ROUNDS: Final = 5
NODE_HEALTH: Final = {
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "4",
}
"""For the environment of Ray's head: a node that went silent is given up after 24 s; Ray's own values make it 65."""

MARK: Final = "RAY_MHS_TEMP"  # in the environment of every process that Ray starts
Say = Callable[[str], None]


class StartError(MhsError):
    """A part of the platform did not start; the message names it and its log."""


@dataclass(frozen=True, slots=True)
class Running:
    """What `up` started, as it is kept in ``run/platform.json``. pids: of the processes to end at `down`.

    temp_dir: of our own Ray; empty where the Ray is a cluster's, which we do not end.
    """

    supervisor: int
    ray: tuple[int, ...]
    temp_dir: str

    def save(self, home: Path) -> None:
        """Write it to the home folder."""
        data = {"supervisor": self.supervisor, "ray": list(self.ray), "temp_dir": self.temp_dir}
        write_private(home / "run" / "platform.json", json.dumps(data).encode())

    @classmethod
    def load(cls, home: Path) -> Running | None:
        """Read it; None when nothing was started."""
        try:
            data = json.loads((home / "run" / "platform.json").read_text())
        except FileNotFoundError:
            return None
        return cls(data["supervisor"], tuple(data["ray"]), data["temp_dir"])


def up(settings: Settings, say: Say) -> Endpoints:
    """Start what does not run yet and return once the platform is ready. Raises StartError, ConflictError."""
    # Others may pass through, not look: what is mounted into containers lies below. All else is made private.
    os.umask(0o077)
    for folder in (settings.home, settings.node_dir):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)
    with _only_one(settings.home):
        known = Running.load(settings.home)
        if known is not None and _is_supervisor(known.supervisor) and (not known.temp_dir or ray_pids(known.temp_dir)):
            endpoints = Endpoints.load(settings.home)
            _wait_ready(settings, endpoints, say)
            return endpoints
        if known is not None:
            down(settings, say, locked=True)
        return _start(settings, keys_of(settings), say)


def _start(settings: Settings, keys: Keys, say: Say) -> Endpoints:
    joins = settings.cluster.ray_address
    if joins is not None:
        _fit_for_cluster(settings)
    ports = choose_ports(settings)
    here = settings.cluster.address
    api_host = settings.api.host if joins is None or "host" in settings.api.model_fields_set else here
    endpoints = Endpoints(
        api_url=f"http://{api_host}:{ports['api']}",
        blobs_url=f"http://{here}:{ports['blobs']}",
        registry=f"{here}:{ports['registry']}",
        ray_address=joins or f"127.0.0.1:{ports['gcs']}",
        dashboard_url=f"http://127.0.0.1:{settings.cluster.dashboard_port if joins else ports['dashboard']}",
    )
    endpoints.save(settings.home)
    logs = settings.home / "logs"
    logs.mkdir(exist_ok=True, mode=0o700)
    temp_dir = ""
    environment = ray_environment(settings.home, os.environ, joins=joins)
    if joins is None:
        temp_dir = f"/tmp/mhs-{keys.platform}"  # noqa: S108  unix sockets need a short path
        Path(temp_dir).mkdir(mode=0o700, exist_ok=True)
        environment |= haproxy_environment(Path(temp_dir) / "haproxy", ports["haproxy-metrics"], ports["haproxy-stats"])
    say("starting the registry and the blob server")
    with (logs / "supervisor.log").open("ab") as out:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "mhs_ray.platform.supervisor"], env=environment, stdin=subprocess.DEVNULL,
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    Running(supervisor.pid, (), temp_dir).save(settings.home)
    try:
        if joins is None:
            say("starting Ray")
            _ray_start(settings, environment, temp_dir, ports)
            Running(supervisor.pid, tuple(ray_pids(temp_dir)), temp_dir).save(settings.home)
        say("starting the API")
        _python(environment, logs / "deploy.log", "-m", "mhs_ray.actors.deploy")
        _wait_ready(settings, endpoints, say)
    except BaseException:
        down(settings, say, locked=True)
        raise
    return endpoints


def upgrade(settings: Settings, say: Say) -> Endpoints:
    """Put this version's API, dispatcher and registrar in the place of the running ones; jobs go on meanwhile.

    Ray itself, the registry and the blob server stay as they are. Raises StartError, ConflictError.
    """
    with _only_one(settings.home):
        known = Running.load(settings.home)
        if known is None or not _is_supervisor(known.supervisor) or (known.temp_dir and not ray_pids(known.temp_dir)):
            raise ConflictError(f"no platform runs in {settings.home}: `mhs up` starts this version")
        endpoints = Endpoints.load(settings.home)
        environment = ray_environment(settings.home, os.environ, joins=settings.cluster.ray_address)
        say("replacing the dispatcher, the registrar and the API")
        _python(environment, settings.home / "logs" / "deploy.log", "-m", "mhs_ray.actors.deploy", "--upgrade")
        _wait_ready(settings, endpoints, say)
        return endpoints


def _fit_for_cluster(settings: Settings) -> None:
    """Raise ConflictError when nodes on other machines could not work with these settings."""
    if settings.cluster.placement != "label":
        raise ConflictError(
            "MHS_CLUSTER__RAY_ADDRESS is set, so set MHS_CLUSTER__PLACEMENT=label too: jobs go by labels"
        )
    if settings.blobs.kind == "local" and settings.blobs.folder is None:
        raise ConflictError(
            "a cluster's nodes cannot see blobs in this machine's home: set MHS_BLOBS__KIND=s3, or MHS_BLOBS__FOLDER "
            "to a folder that every node has mounted at the same path"
        )


def ray_environment(home: Path, own: Mapping[str, str], *, joins: str | None = None) -> dict[str, str]:
    """Return the environment of every process of the platform: Ray asks for a token and listens on loopback only.

    own: what it adds to. joins: address of a Ray that runs already; its token counts where `own` names it.
    """
    ray = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "keys" / "ray-token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    if joins is not None:
        if "RAY_AUTH_MODE" in own:
            del ray["RAY_AUTH_MODE"], ray["RAY_AUTH_TOKEN_PATH"]
        if not joins.startswith("127."):
            del ray["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]
    return {
        **own,
        **ray,
        "MHS_HOME": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_preload_python_modules": "mhs_ray.actors.preload",
        "RAY_ENABLE_RECORD_ACTOR_TASK_LOGGING": "1",
        **{name: own.get(name, value) for name, value in NODE_HEALTH.items()},
        "PATH": f"{Path(sys.executable).parent}:{own.get('PATH', os.defpath)}",
    }


def _ray_start(settings: Settings, environment: dict[str, str], temp_dir: str, ports: dict[str, int]) -> None:
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*"))) or settings.cluster.declared_gpus
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--node-ip-address=127.0.0.1",
        f"--port={ports['gcs']}", f"--dashboard-port={ports['dashboard']}", "--dashboard-host=127.0.0.1",
        f"--dashboard-agent-listen-port={ports['dashboard-agent']}", f"--num-gpus={gpus}", f"--temp-dir={temp_dir}",
        "--disable-usage-stats", f"--num-cpus={max(4, os.cpu_count() or 1)}", "--object-store-memory=268435456",
    ]  # fmt: skip
    told = environment | {MARK: temp_dir}
    done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise StartError(f"Ray did not start: {(done.stderr or done.stdout).strip()[-2000:]}")


def _python(environment: dict[str, str], log_file: Path, *arguments: str, within_s: float = 300) -> None:
    with log_file.open("wb") as out:
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, stdout=out, stderr=out, timeout=within_s, check=False
        )
    if done.returncode:
        raise StartError(f"the API was not deployed; the end of {log_file}:\n{log_file.read_text()[-3000:]}")


def _wait_ready(settings: Settings, endpoints: Endpoints, say: Say) -> None:
    deadline = time.monotonic() + _READY_S
    last, told = "no answer", ""
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{endpoints.api_url}/readyz", timeout=10, trust_env=False)
            if answer.status_code == 200:
                return
            last = str(answer.json().get("parts", answer.text))
        except (httpx.HTTPError, ValueError) as error:
            last = type(error).__name__
        if last != told and time.monotonic() > deadline - _READY_S + 20:
            say(f"waiting: {last}")
            told = last
        time.sleep(0.25)
    raise StartError(
        f"the platform was not ready within {_READY_S:.0f} s ({last}); its logs are in {settings.home}/logs"
    )


def down(settings: Settings, say: Say, *, locked: bool = False) -> bool:
    """End everything that `up` started; returns whether anything ran. Containers of jobs are removed too."""
    with contextlib.nullcontext() if locked else _only_one(settings.home):
        known = Running.load(settings.home)
        if known is None:
            return False
        if known.temp_dir:
            say("stopping Ray")
            end_ray(known.temp_dir)
        else:
            _leave_cluster(settings, say)
        say("stopping the registry and the blob server")
        if _is_supervisor(known.supervisor):
            end(known.supervisor)
        remove_containers(settings)
        if known.temp_dir:
            shutil.rmtree(known.temp_dir, ignore_errors=True)
        (settings.home / "run" / "platform.json").unlink(missing_ok=True)
        return True


def _leave_cluster(settings: Settings, say: Say) -> None:
    """Take what is ours off a cluster's Ray, which goes on; one that does not answer has nothing of ours."""
    say("taking the platform off the cluster")
    environment = ray_environment(settings.home, os.environ, joins=settings.cluster.ray_address)
    try:
        _python(
            environment, settings.home / "logs" / "undeploy.log", "-m", "mhs_ray.actors.deploy", "--undo", within_s=60
        )
    except (StartError, subprocess.TimeoutExpired) as error:
        log.warning("the cluster's Ray could not be asked to end the platform's actors: %s", error)


def end_ray(temp_dir: str) -> None:
    """End every process of the Ray that lives in `temp_dir`; by what they say of themselves, for ids are used again."""
    parents_first = ("raylet/raylet", "dashboard/dashboard.py")  # they start again what is ended below them
    for _ in range(_END_ROUNDS):
        pids = ray_pids(temp_dir)
        if not pids:
            return
        parents = [p for p in pids if any(name in _command(p) for name in parents_first)]
        end_all(parents, grace_s=5)
        end_all(pids, grace_s=5)
    log.warning("processes of Ray do not end: %s", ray_pids(temp_dir))


def _is_supervisor(pid: int) -> bool:
    return alive(pid) and "mhs_ray.platform.supervisor" in _command(pid)


def remove_containers(settings: Settings) -> None:
    """Remove what attempts left on this machine; only called when nothing of the platform runs."""
    from mhs_ray.engines import labels
    from mhs_ray.engines.reaper import reap
    from mhs_ray.engines.select import pick_engine
    from mhs_ray.sandbox.scratch import sweep

    platform = keys_of(settings).platform
    try:
        engine = pick_engine(settings.engine, docker_host=settings.docker_host)
        reap(engine, f"{labels.PLATFORM}={platform}", keep=lambda _container: False)
    except MhsError as error:
        log.warning("containers could not be looked for: %s", error)
    for name in ("sandboxes", "work", "warm"):
        if (settings.node_dir / name).is_dir():
            sweep(settings.node_dir / name, ())


def platform_pids(settings: Settings) -> list[int]:
    """Return every process of the running platform: what `up` started and all their descendants."""
    known = Running.load(settings.home)
    if known is None:
        return []
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    ray = ray_pids(known.temp_dir) if known.temp_dir else []
    found = {known.supervisor, *known.ray, *ray} & parents.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def ray_pids(temp_dir: str) -> list[int]:
    """Return the processes of the Ray that lives in `temp_dir`: they name it on their command line or were told it."""
    found = []
    mark = f"\0{MARK}={temp_dir}\0".encode()
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        # What names no folder on its command line has inherited its environment.
        if pid != os.getpid() and (temp_dir in _command(pid) or mark in _environment(pid)):
            found.append(pid)
    return found


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    (home / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / "run" / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"another `mhs up` or `mhs down` is at work in {home}; wait for it") from None
        yield
