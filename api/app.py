"""The application: FastAPI on Ray Serve, or on any ASGI server in tests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI
from ray import serve

from api import database_errors, errors, gateway_app, openapi
from api.console import mount as console
from api.http_watch import HttpWatch, Observe
from api.intake import Intake
from api.limits import BodyLimit
from api.routes import (
    access,
    catalog,
    cohorts,
    deliveries,
    gateway,
    jobs,
    logs,
    metrics,
    platform,
    replay,
    results,
    scans,
    tasks,
    usage,
)
from mhs_ray import __version__
from mhs_ray.domain.capacity import Capacity
from mhs_ray.domain.errors import MhsError
from mhs_ray.domain.settings import load_settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.logs import configure_logging
from mhs_ray.services.core import Core, build_core_patiently
from mhs_ray.telemetry.metrics import PlatformMetrics
from mhs_ray.telemetry.traces import open_traces

log = logging.getLogger(__name__)

_ROUTES = (
    tasks,  # the first that fits is taken: what comes most often stands first
    gateway,
    access,
    catalog,
    scans,
    jobs,
    replay,
    logs,
    results,
    cohorts,
    deliveries,
    usage,
    platform,
    metrics,
)

_DESCRIPTION = """
Run your own model containers on whole slide images.

Sign in with `Authorization: Basic` (a client's id and secret) or with a bearer token from `POST /api/v3/token`.
Errors are [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problem documents with a stable `type`.
"""


@dataclass(frozen=True)
class Peers:
    """The platform's other parts as the API calls them; none of these may block."""

    wake: Callable[[], None]
    pushed: Callable[[list[int]], None]
    ping: Callable[[], Awaitable[str]]
    nodes: Callable[[], list[dict[str, Any]]] = list
    """The cluster's nodes as Ray lists them; this one may block."""
    observe_http: Observe | None = None
    """Told of each request that was answered."""
    capacity: Callable[[], Mapping[str, Capacity]] = dict
    """What there is of each instance type, where an autoscaler knows; this one may block."""


def build_app(make: Callable[[], tuple[Core, Peers]] | None = None) -> FastAPI:
    """Return the application. make: builds the services when it starts; None: from the settings, on Ray."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        core, peers = await asyncio.to_thread(make or _on_ray)
        app.state.pushed = peers.pushed
        app.state.intake = Intake(core.db, core.tasks, peers.wake)
        app.state.nodes = peers.nodes
        app.state.metrics = PlatformMetrics(core)
        threading.Thread(target=app.state.metrics.prime, name="metrics", daemon=True).start()
        telemetry = core.settings.telemetry
        traces = await asyncio.to_thread(open_traces, telemetry, core.keys.platform, "api", core.db)
        gateway_app.serve_core(app, core, traces)
        app.state.observe_http = peers.observe_http
        app.state.capacity = peers.capacity
        app.state.readiness = lambda: _readiness(core, peers)
        yield
        await app.state.intake.close()
        if app.state.traces is not None:
            await asyncio.to_thread(app.state.traces.close)
        if hasattr(app.state, "slide_views"):
            await asyncio.to_thread(app.state.slide_views.close)
        core.db.close()

    app = FastAPI(
        title="mhs-ray", version=__version__, description=_DESCRIPTION, lifespan=lifespan, redoc_url=None,
        openapi_url="/openapi.json", docs_url="/docs",
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours tell what a job is (mhs_ray.telemetry)
    )  # fmt: skip
    app.add_middleware(BodyLimit)
    app.add_middleware(HttpWatch)
    errors.install(app)
    database_errors.install(app)
    openapi.install(app)
    for module in _ROUTES:
        app.include_router(module.router)
    app.include_router(console.router)
    return app


def _on_ray() -> tuple[Core, Peers]:
    from mhs_ray.actors.capacity import CapacityView
    from mhs_ray.actors.loopback import keep_replica_at
    from mhs_ray.actors.metrics import http_observer
    from mhs_ray.actors.peers import ray_nodes, ray_peers

    settings = load_settings()
    configure_logging(settings)
    keep_replica_at(settings.cluster.address)
    if settings.api.internal_url is not None:
        _start_actors()
    wake, pushed, ping = ray_peers()
    # On one machine nothing is started for a job: there is nobody to ask.
    capacity = CapacityView() if settings.cluster.placement == "label" else dict[str, Capacity]
    core = build_core_patiently(settings, Endpoints.of(settings), wake)
    return core, Peers(wake, pushed, ping, ray_nodes, http_observer(), capacity)


def _start_actors() -> None:
    """On a cluster `serve deploy` is all that is called: whichever replica is first starts what stands beside them."""
    from mhs_ray.actors.dispatcher import start_dispatcher
    from mhs_ray.actors.registrar import start_registrar

    start_dispatcher()
    start_registrar()


async def _readiness(core: Core, peers: Peers) -> dict[str, str]:
    """Ask every part; a part that does not answer within 3 s is named with its error's kind."""

    def database() -> str:
        with core.db.read() as conn:
            conn.execute(sa.text("SELECT id FROM companies LIMIT 1"))  # SQLite answers SELECT 1 without its file
        return "ok"

    def blobs() -> str:
        core.blobs.put("health/ready", b"ok")  # looking for a blob works in a store that takes nothing any more
        return "ok"

    def registry() -> str:
        core.registry.pushed(0)
        return "ok"

    async def ask(check: Awaitable[str]) -> str:
        try:
            return await asyncio.wait_for(check, 3)
        except TimeoutError:
            return "no answer within 3 s"
        except MhsError as error:
            return str(error)
        except Exception as error:
            log.warning("readiness: %s", error)
            return type(error).__name__

    names = ("database", "blobs", "registry", "dispatcher")
    checks = (asyncio.to_thread(database), asyncio.to_thread(blobs), asyncio.to_thread(registry), peers.ping())
    return dict(zip(names, await asyncio.gather(*(ask(c) for c in checks)), strict=True))


@serve.deployment(
    name="api",
    max_ongoing_requests=1000,
    max_queued_requests=2000,
    graceful_shutdown_timeout_s=20,
    max_surge_percent=100,
)
@serve.ingress(build_app)
class Api:
    """The Serve deployment; the routes are FastAPI's."""


def build(args: dict[str, Any] | None = None) -> serve.Application:
    """Return the Serve application; the import path of Serve configs is ``api.app:build``."""
    return Api.options(**(args or {})).bind()  # type: ignore[no-any-return, attr-defined]
