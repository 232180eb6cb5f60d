"""The results gateway alone, without Ray and Serve: what a container meets when it is tried on one machine."""

from __future__ import annotations

from fastapi import FastAPI

from api import database_errors, errors
from api.limits import BodyLimit
from api.routes import gateway
from mhs_ray.auth.buckets import Buckets
from mhs_ray.services.core import Core
from mhs_ray.telemetry.traces import Traces


def build(core: Core) -> FastAPI:
    """Return the application; its routes, limits and answers are those of the whole API."""
    app = FastAPI(title="mhs-ray results gateway", redoc_url=None, docs_url=None, openapi_url=None)
    app.add_middleware(BodyLimit)
    errors.install(app)
    database_errors.install(app)
    serve_core(app, core, None)
    app.include_router(gateway.router)
    return app


def serve_core(app: FastAPI, core: Core, traces: Traces | None) -> None:
    """Give an application what the gateway's routes look for in its state."""
    auth = core.settings.auth
    app.state.core, app.state.traces = core, traces
    # Each replica counts for itself, and Serve spreads a client's requests over all of them.
    app.state.rates = Buckets(auth.rate / core.settings.api.replicas, auth.burst)
