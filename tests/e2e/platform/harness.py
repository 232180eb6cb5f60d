"""The platform as a user has it: started for real, spoken to over HTTP, looked at from the machine it runs on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.platform.clients import Client

PROJECT = Path(__file__).resolve().parents[3]
ENDED = ("succeeded", "failed", "cancelled", "timed out")
HOST = "ci.techcyte.com"  # the contract's own; inside a container it must lead to our gateway
_CALL = (
    "from mhs_ray.domain.settings import load_settings as settings; "
    "from mhs_ray.platform.up import {0}; {0}(settings(), print)"
)


def eventually(look: Callable[[], Any], what: str, within_s: float = 60, every_s: float = 0.1) -> Any:
    """Return the first true answer of `look`; fail with `what` when there is none in time."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(every_s)
    return found


@dataclass
class Platform:
    """One platform. engine_cli: looks at the containers that its engine has. running: whether it is up."""

    engine: str
    home: Path
    engine_cli: Client
    settings: Mapping[str, str]
    running: bool = False
    api: httpx.Client = field(init=False, repr=False)
    algorithms: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, **self.settings, "MHS_HOME": str(self.home)}

    def up(self) -> None:
        """Start it and sign in."""
        self._call("up")
        self.running = True
        keys = self.home / "keys"
        auth = ((keys / "client-id").read_text().strip(), (keys / "client-secret").read_text().strip())
        self.endpoints: dict[str, str] = json.loads((self.home / "run" / "endpoints.json").read_text())
        self.api = httpx.Client(base_url=self.endpoints["api_url"], auth=auth, timeout=60, trust_env=False)

    def down(self) -> None:
        """Stop it; nothing happens when it does not run."""
        if self.running:
            self.running = False
            self.api.close()
            self._call("down")

    @property
    def release(self) -> Path:
        """Where the platform is started: a version of the code that lies there goes before the installed one."""
        return self.home.parent / "release"

    def upgrade(self) -> None:
        """Put what lies in `release` in the place of what runs."""
        self._call("upgrade")

    def _call(self, name: str) -> None:
        self.release.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", _CALL.format(name)], env=self.env, cwd=self.release, capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"

    # ------------------------------------------------------------ over HTTP

    def get(self, path: str, **params: Any) -> Any:
        answer = self.api.get(path, params=params)
        assert answer.status_code == 200, f"GET {path}: {answer.status_code} {answer.text[:2000]}"
        return answer.json()

    def post(self, path: str, body: Any = None, status: int = 201) -> Any:
        answer = self.api.post(path, json=body)
        assert answer.status_code == status, f"POST {path}: {answer.status_code} {answer.text[:2000]}"
        return answer.json()

    def instructions(self, image_id: int) -> Any:
        return self.get(f"/v1/images/{image_id}/push-instructions")

    def image(self, image_id: int, digest: str | None = None) -> Any:
        """Return the image once its newest push was judged; with `digest` once that push was."""

        def judged() -> Any:
            found = self.get(f"/v1/images/{image_id}")
            if found["status"] == "failed":
                return found
            return found["status"] == "uploaded" and (not digest or found["current"]["digest"] == digest) and found

        return eventually(judged, f"image {image_id} is uploaded or failed")

    def container(self, image_id: int, name: str, **more: Any) -> int:
        env = more.pop("env", [])
        body = {"name": name, "image_id": image_id, "instance_type": "g4dn.xlarge", "env": env, **more}
        return int(self.post("/v1/containers", body)["id"])

    def algorithm(self, image_id: int, name: str, **more: Any) -> str:
        """Make a case algorithm and its container, or return the one of this name that was made before."""
        if name not in self.algorithms:
            container = self.container(image_id, name, **more)
            self.post("/v1/algorithms", {"name": name, "container_id": container})
            self.algorithms[name] = name
        return name

    def scan(self, **body: Any) -> int:
        return int(self.post("/v1/scans", body)["id"])

    def submit(self, algorithm: str, *scans: int, **more: Any) -> list[int]:
        return list(self.post("/v1/tasks", {"algorithm": algorithm, "scan_ids": scans, **more})["job_ids"])

    def webhook(self, **body: Any) -> Any:
        return self.post("/webhook", body)

    def job(self, job_id: int) -> Any:
        return self.get(f"/v1/jobs/{job_id}")

    def wait(self, job_id: int, *states: str, within_s: float = 90) -> Any:
        """Return the job once it is in one of `states` (any ended state when none is given)."""
        wanted = states or ENDED

        def there() -> Any:
            job = self.job(job_id)
            assert job["state"] in wanted or job["state"] not in ENDED, f"{job}\n{self.log(job_id)}"
            return job["state"] in wanted and job

        return eventually(there, f"job {job_id} is {' or '.join(wanted)}", within_s)

    def succeeded(self, job_id: int, within_s: float = 90) -> Any:
        return self.wait(job_id, "succeeded", within_s=within_s)

    def failure(self, job_id: int, within_s: float = 90) -> Any:
        """Return the failure card of a job that must fail."""
        job = self.wait(job_id, "failed", "timed out", within_s=within_s)
        return job["failure"] | {"attempt": job["attempt"], "state": job["state"]}

    def log(self, job_id: int, **params: Any) -> str:
        answer = self.api.get(f"/v1/jobs/{job_id}/log", params=params)
        assert answer.status_code == 200, answer.text
        return answer.text

    def lines(self, job_id: int, **params: Any) -> list[str]:
        """Return the log without times."""
        return self.log(job_id, timestamps=False, **params).splitlines()

    def wait_line(self, job_id: int, line: str) -> None:
        eventually(lambda: line in self.lines(job_id), f"job {job_id} prints {line!r}")

    def events(self, job_id: int) -> list[str]:
        return [e["event"] for e in self.get(f"/v1/jobs/{job_id}/events")]

    def report(self, job_id: int) -> Any:
        """Return `results` of the one scan of a job."""
        [found] = self.get(f"/v1/jobs/{job_id}/results")["scanResults"]
        return found["results"]

    def follow(self, job_id: int, last_event_id: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the server-sent events of a job's log: their data with `id` and `event`."""
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        url = f"/v1/jobs/{job_id}/log"
        with self.api.stream("GET", url, params={"follow": 1}, headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            event: dict[str, Any] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if not line and event:
                    yield event
                    event = {}
                elif name == "data":
                    event |= json.loads(value)
                elif name in {"id", "event"}:
                    event[name] = value

    # ------------------------------------------------------------ on the machine

    @property
    def name(self) -> str:
        return (self.home / "keys" / "platform").read_text().strip()

    def attempt_name(self, job_id: int, attempt: int = 1) -> str:
        return f"mhs-{self.name}-{job_id}-{attempt}"

    def containers(self, beginning: str = "mhs-") -> list[str]:
        """Return the names of all containers of the engine that begin so."""
        names = self.engine_cli.ok("ps", "--all", "--format", "{{.Names}}").split()
        return [n for n in names if n.startswith(beginning)]

    def inside(self, job_id: int, path: str, attempt: int = 1) -> Path:
        """Return a path inside the job's running container as this machine sees it."""
        pid = self.engine_cli.ok("inspect", "--format", "{{.State.Pid}}", self.attempt_name(job_id, attempt)).strip()
        return Path(f"/proc/{pid}/root{path}")

    def go(self, job_id: int, attempt: int = 1) -> None:
        """Let a container that waits for it go on."""
        self.inside(job_id, "/tmp/go", attempt).touch()

    def ray(self, path: str, **params: Any) -> httpx.Response:
        """Ask Ray's dashboard, as a person's browser does."""
        token = (self.home / "keys" / "ray-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        url = self.endpoints["dashboard_url"] + path
        return httpx.get(url, params=params, headers=headers, timeout=60, trust_env=False)

    def actor(self, name: str) -> Any:
        """Return what Ray knows of the living actor whose name, or class, begins so; None while there is none."""
        answer = self.ray("/api/v0/actors", detail=1, limit=1000)
        assert answer.status_code == 200, answer.text[:1000]
        found = [
            a
            for a in answer.json()["data"]["result"]["result"]
            if a["state"] == "ALIVE" and (str(a["name"]).startswith(name) or str(a["class_name"]).startswith(name))
        ]
        return found[0] if found else None

    def nothing_left(self, job_id: int, attempts: int = 1) -> None:
        """Check that the job has no container, folder or mount on this machine any more."""
        names = [self.attempt_name(job_id, attempt) for attempt in range(1, attempts + 1)]
        left: list[str] = []

        def gone() -> bool:
            left[:] = [trace for name in names for trace in self.traces(name)]
            return not left

        eventually(gone, f"nothing is left of job {job_id}", 75)

    def traces(self, name: str) -> list[str]:
        node = self.home / "node"
        folders = [str(p) for part in ("sandboxes", "work") for p in (node / part).glob(f"{name}*")]
        mounts = [m for m in mounts_below(self.home) if f"/{name}" in m]
        return [*(c for c in self.containers(name)), *folders, *mounts]


def mounts_below(folder: Path) -> list[str]:
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [p for p in points if p.startswith(f"{folder}/")]


def processes(of: Sequence[str]) -> dict[int, str]:
    """Return the processes (pid to command line) whose command line or environment has one of these texts."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            environ = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if state != "Z" and any(text in command or text in environ for text in of):
            found[int(entry.name)] = command or entry.name
    return found
