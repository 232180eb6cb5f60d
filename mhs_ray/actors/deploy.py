"""Starts the dispatcher, the registrar and the Serve application on the running Ray: `mhs up` runs it once.

``--upgrade`` (`mhs upgrade`) puts those of this version in the place of running ones. Attempts that run go on: they
call nobody, and the new dispatcher takes over from the rows and from their actors' names.
"""

from __future__ import annotations

import sys
from urllib.parse import urlsplit

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from mhs_ray.actors.dispatcher import start_dispatcher
from mhs_ray.actors.names import DISPATCHER, NAMESPACE, REGISTRAR, retire
from mhs_ray.actors.registrar import start_registrar
from mhs_ray.domain.settings import load_settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.keys import load_keys
from mhs_ray.services.core import open_database


def main() -> int:
    """Deploy and return; everything started is detached."""
    import importlib

    upgrade = "--upgrade" in sys.argv[1:]
    settings = load_settings()
    endpoints = Endpoints.load(settings.home)
    open_database(settings, load_keys(settings.home / "keys")).close()
    ray.init(endpoints.ray_address, namespace=NAMESPACE, log_to_driver=False)
    for name, start in ((DISPATCHER, start_dispatcher), (REGISTRAR, start_registrar)):
        if upgrade:
            retire(name)
        start()
    url = urlsplit(endpoints.api_url)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=url.hostname or "127.0.0.1", port=url.port or 80, request_timeout_s=None),
    )
    build = importlib.import_module("api.app").build  # by name: mhs_ray stands below api
    serve.run(
        build({"num_replicas": settings.api.replicas, "ray_actor_options": {"num_cpus": 0}}),
        name="mhs",
        route_prefix="/",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
