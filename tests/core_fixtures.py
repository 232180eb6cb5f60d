"""The platform's services over a real SQLite database and a real folder of blobs, without any process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from mhs_ray.domain.settings import Settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.services.core import Core, build_core
from tests.store_fixtures import World, migrated_sqlite

ENDPOINTS = Endpoints(
    api_url="http://127.0.0.1:18080",
    blobs_url="http://127.0.0.1:18081",
    registry="127.0.0.1:15000",
    ray_address="127.0.0.1:16379",
    dashboard_url="http://127.0.0.1:18265",
)


@cache
def _started_home() -> Path:
    """Return a home in which the services were built once: copying its keys and database takes a tenth of that."""
    home = Path(tempfile.mkdtemp(prefix="mhs-home-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    (home / "mhs.db").write_bytes(migrated_sqlite())
    build_core(Settings(home=home), ENDPOINTS).db.close()
    return home


@contextmanager
def core_in(home: Path, **settings: Any) -> Iterator[Core]:
    """Build the services in `home`; settings: sections of `Settings`."""
    if not (home / "keys").exists():
        shutil.copytree(_started_home(), home, dirs_exist_ok=True)
    values: dict[str, Any] = {"home": home, "blobs": {"min_free": 0}, **settings}
    core = build_core(Settings(**values), ENDPOINTS)
    try:
        yield core
    finally:
        core.db.close()


def world_of(core: Core) -> World:
    """Return the short ways to fill the core's database."""
    return World(core.db)
