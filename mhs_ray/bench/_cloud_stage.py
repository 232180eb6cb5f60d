"""A platform on an autoscaled cluster of this machine: what `stage` is to one machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from mhs_ray.bench import Say
from mhs_ray.bench._posting_image import ensure_posting_image
from mhs_ray.client.client import Client
from mhs_ray.domain.instances import LABEL
from mhs_ray.domain.settings import Settings, use
from mhs_ray.engines.build import image_tools
from mhs_ray.engines.select import pick_engine
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.keys import load_keys
from mhs_ray.platform.local_cloud import LocalCloud, NodeType
from mhs_ray.platform.up import down, up
from mhs_ray.ports import ContainerEngine
from mhs_ray.sandbox.scratch import unmount_below

ENDED: Final = frozenset({"succeeded", "failed", "cancelled", "timed out"})


@dataclass
class CloudStage:
    """A running platform with one scan. image: of a model that works WORK_S seconds and posts a result."""

    cloud: LocalCloud
    settings: Settings
    endpoints: Endpoints
    client: Client
    engine: ContainerEngine
    image_id: int
    scan_id: int
    _algorithms: dict[tuple[str, float], int] = field(default_factory=dict)

    def submit(self, instance_type: str, work_s: float) -> int:
        """Ask for one job on a node of this type; return its id."""
        key = (instance_type, work_s)
        if key not in self._algorithms:
            env = [{"name": "WORK_S", "value": str(work_s)}]
            asked = {"image_id": self.image_id, "instance_type": instance_type, "env": env}
            container = self.client.create_container(asked)["id"]
            named = {"name": f"{instance_type} {work_s}", "container_id": container}
            self._algorithms[key] = self.client.create_algorithm(named)["id"]
        return self.client.submit(algorithm_id=self._algorithms[key], scan_ids=[self.scan_id])["job_ids"][0]

    def nodes(self, *, alive: bool = True) -> list[dict[str, Any]]:
        """Return what Ray's dashboard says of the nodes that have an instance type."""
        token = (self.settings.home / "keys" / "ray-token").read_text().strip()
        answer = httpx.get(
            f"{self.endpoints.dashboard_url}/api/v0/nodes",
            params={"detail": 1, "limit": 1000},
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
            trust_env=False,
        )
        found = answer.raise_for_status().json()["data"]["result"]["result"]
        return [n for n in found if LABEL in (n["labels"] or {}) and (not alive or n["state"] == "ALIVE")]

    def counts(self) -> Counter[str]:
        """Return how many nodes of each type live."""
        return Counter(node["labels"][LABEL] for node in self.nodes())


@contextmanager
def cloud_stage(
    types: Sequence[NodeType], say: Say, variables: Mapping[str, str] | None = None
) -> Iterator[CloudStage]:
    """Yield a platform on a cluster without nodes; nothing of it is left afterwards.

    variables: more settings, which stay set in this process.
    """
    folder = Path(tempfile.mkdtemp(prefix="mc-", dir="/tmp"))
    folder.chmod(0o711)
    cloud = LocalCloud(folder, types)
    settings = use({**(variables or {}), **cloud.variables})
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(unmount_below, folder)
        say("starting Ray and its autoscaler")
        stack.callback(cloud.stop)
        cloud.start(os.environ)
        stack.callback(down, settings, say)
        endpoints = up(settings, say)
        keys = load_keys(settings.home / "keys")
        client = stack.enter_context(Client(endpoints.api_url, keys.client_id, keys.client_secret))
        engine = pick_engine(settings.engine, docker_host=settings.docker_host, folder=settings.node_dir / "engine")
        say("pushing the smallest model")
        image = push_posting_image(client, engine)
        scan = client.add_scan({"path": str(_slide(folder))})
        yield CloudStage(cloud, settings, endpoints, client, engine, image, scan["id"])


def push_posting_image(client: Client, engine: ContainerEngine) -> int:
    """Push the smallest model that succeeds and return its image definition, once it may run."""
    tools, local = image_tools(engine), ensure_posting_image(engine)
    image = client.create_image("posting")
    push = client.push_instructions(image["id"])
    reference = f"{push['registry']}/{push['repository']}:{push['tag']}"
    tools.tag(local, reference)
    digest = tools.push(reference, push["username"], push["password"], tls=push["tls"])
    client.wait_for_image(image, digest, on_status=lambda _status: None)
    return int(image["id"])


def _slide(folder: Path) -> Path:
    from mhs_ray.slides.demo import make_demo_slide

    path = folder / "slide.svs"
    make_demo_slide(path, 1024, 1024)
    return path
