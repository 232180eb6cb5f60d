"""The results gateway alone, without Ray and Serve: what a container meets when it is tried on one machine."""

from __future__ import annotations

from fastapi import FastAPI

from api import database_errors, errors
from api.limits import BodyLimit
from api.routes import gateway
from mhs_ray.services.core import Core


def build(core: Core) -> FastAPI:
    """Return the application; its routes, limits and answers are those of the whole API."""
    app = FastAPI(title="mhs-ray results gateway", redoc_url=None, docs_url=None, openapi_url=None)
    app.add_middleware(BodyLimit)
    errors.install(app)
    database_errors.install(app)
    app.state.core = core
    app.include_router(gateway.router)
    return app
