"""The process behind ``mhs up`` on one machine: keeps the image registry and the blob server running."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from urllib.parse import urlsplit

from mhs_ray.domain.settings import load_settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.keys import Keys
from mhs_ray.platform.logs import configure_logging
from mhs_ray.platform.processes import Keeper, Service
from mhs_ray.platform.secrets import keys_of
from mhs_ray.registry.keys import RegistryKeys
from mhs_ray.registry.server import RegistryServer
from mhs_ray.services.policy import REGISTRY_ISSUER, REGISTRY_SERVICE, blob_server_config

log = logging.getLogger(__name__)


def registry_server(home_keys: Keys, endpoints: Endpoints) -> RegistryServer:
    """Return the registry of this platform; its state lies in ``registry/`` of the home folder."""
    home = load_settings().home
    RegistryKeys.load_or_create(home / "keys" / "registry")  # the registry does not start without its certificate
    return RegistryServer(
        home / "registry",
        int(endpoints.registry.rpartition(":")[2]),
        realm_url=f"{endpoints.api_url}/registry/token",
        issuer=REGISTRY_ISSUER,
        service=REGISTRY_SERVICE,
        cert_path=home / "keys" / "registry" / "token.crt",
        notification_url=f"{endpoints.api_url}/registry/events",
        notification_secret=home_keys.registry_events,
        host=endpoints.registry.rpartition(":")[0],
    )


def services() -> list[Service]:
    """Return what runs beside Ray on this machine."""
    settings = load_settings()
    keys, endpoints = keys_of(settings), Endpoints.load(settings.home)
    logs = settings.home / "logs"
    logs.mkdir(exist_ok=True, mode=0o700)
    found: list[Service] = []
    if settings.registry.kind == "distribution":
        server = registry_server(keys, endpoints)
        server.write_config()
        found.append(Service("registry", server.command(), logs / "registry.log", server.environment()))
    if settings.blobs.kind == "local":
        config = blob_server_config(settings, keys, urlsplit(endpoints.blobs_url).port or 80, endpoints.api_url)
        path = settings.home / "run" / "blobs.json"
        config.save(path)
        command = [sys.executable, "-m", "mhs_ray.store.blobs.server", "--config", str(path)]
        found.append(Service("blobs", command, logs / "blobs.log"))
    return found


def main() -> int:
    """Run until TERM."""
    settings = load_settings()
    configure_logging(settings)
    ended = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: ended.set())
    keepers = [Keeper(service) for service in services()]
    for keeper in keepers:
        keeper.start()
    ended.wait()
    for keeper in keepers:
        keeper.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
