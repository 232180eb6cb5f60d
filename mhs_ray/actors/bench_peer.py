"""Deploys the bare peer of ``mhs bench api`` beside our application, with the same options."""

from __future__ import annotations

import sys
from typing import Any

import ray
from ray import serve

from mhs_ray.actors.names import NAMESPACE
from mhs_ray.bench.echo import app
from mhs_ray.domain.settings import load_settings
from mhs_ray.platform.endpoints import Endpoints


@serve.deployment(name="echo", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
@serve.ingress(app)
class Echo:
    """The bare endpoint."""


def main() -> int:
    """Deploy and return."""
    ray.init(Endpoints.load(load_settings().home).ray_address, namespace=NAMESPACE, log_to_driver=False)
    bare: Any = Echo
    serve.run(bare.bind(), name="bench", route_prefix="/bench")
    return 0


if __name__ == "__main__":
    sys.exit(main())
