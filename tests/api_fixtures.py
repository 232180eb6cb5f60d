"""The API on a real server (uvicorn, loopback), a real SQLite database and a real folder of blobs.

The one thing that is not real is the image registry: `FakeRegistry` says that whatever was "pushed" is good.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from api.app import Peers, build_app
from mhs_ray.attempt.logbook import LogWriter
from mhs_ray.auth.tokens import AttemptIdentity
from mhs_ray.domain.errors import RegistryError
from mhs_ray.domain.models import ImageRef, Job, Principal, Role
from mhs_ray.ports import Admission, PushAccess, RegistryCredential
from mhs_ray.services.core import Core
from mhs_ray.services.images import ImageService
from tests.core_fixtures import core_in, world_of
from tests.store_fixtures import World

HOUR = timedelta(hours=1)


@dataclass
class FakeRegistry:
    """An `ImageRegistry` without a registry behind it."""

    down: bool = False
    removed: list[int] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)

    def push_access(self, image_id: int, company_id: int, expires_at: datetime) -> PushAccess:
        """Return an address nobody listens at."""
        return PushAccess("reg:5000", f"quarantine/{image_id}", "t", "AWS", "push-s3cret", expires_at)

    def pushed(self, image_id: int) -> str | None:
        """Return what a test put there."""
        if self.down:
            raise RegistryError("the registry does not answer")
        return self.digests.get(image_id)

    def admit(self, image_id: int, digest: str) -> Admission:
        """Take everything."""
        return Admission(digest, 1, {})

    def promote(self, image_id: int, digest: str, number: int) -> ImageRef:
        """Name it."""
        return ImageRef("reg:5000", f"trusted/{image_id}", digest)

    def pull_credential(self, image: ImageRef) -> RegistryCredential:
        """Return a login that nobody checks."""
        return RegistryCredential("node", "pull-s3cret")

    def remove(self, image_id: int) -> None:
        """Note it."""
        if self.down:
            raise RegistryError("the registry does not answer")
        self.removed.append(image_id)


@dataclass
class Server:
    """The running API and what stands behind it."""

    url: str
    core: Core
    world: World
    registry: FakeRegistry
    pushed: list[list[int]]
    wakes: list[int]
    ping_error: list[Exception]
    nodes: list[dict[str, Any]]

    def user(self, company_id: int, role: Role = Role.LAB_ADMIN, name: str = "Ada") -> httpx.Client:
        """Return an HTTP client of a company, signed in with a bearer token."""
        client_id = f"mhs-{company_id}-{role.name}-{name}"
        self.core.clients.add(client_id, company_id, name, role, "no secret has this hash")
        token = self.core.tokens.for_client(Principal(company_id, name, role, client_id), HOUR)
        return self.bearer(token)

    def bearer(self, token: str) -> httpx.Client:
        """Return an HTTP client with any token."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=30)

    def container(self, job: Job, attempt: int | None = None) -> httpx.Client:
        """Return an HTTP client with the token of a job's attempt."""
        who = AttemptIdentity(job.company_id, job.task_number, job.id, job.attempt if attempt is None else attempt)
        return self.bearer(self.core.tokens.for_attempt(who, HOUR))

    def write_log(self, job: Job, *lines: str, attempt: int | None = None, first_line: int = 0) -> None:
        """Add lines to an attempt's log."""
        writer = LogWriter(self.core.blobs, job.id, attempt or job.attempt, first_line=first_line)
        writer.output("stdout", "".join(f"{line}\n" for line in lines).encode())
        writer.close()


@contextmanager
def api_server(home: Path, **settings: Any) -> Iterator[Server]:
    """Run the API for as long as the block lasts."""
    with core_in(home, **settings) as core:
        registry = FakeRegistry()
        pushed: list[list[int]] = []
        wakes: list[int] = []
        ping_error: list[Exception] = []
        nodes: list[dict[str, Any]] = []
        images = ImageService(core.images.images, registry, core.settings.registry.credential_life)
        core = replace(core, registry=registry, images=images)

        async def ping() -> str:
            if ping_error:
                raise ping_error[0]
            return "ok"

        app = build_app(lambda: (core, Peers(lambda: wakes.append(1), pushed.append, ping, lambda: nodes)))
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, name="api")
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield Server(f"http://127.0.0.1:{port}", core, world_of(core), registry, pushed, wakes, ping_error, nodes)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
