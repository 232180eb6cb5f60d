"""The head and a node of `cluster/aws.yaml`, started on this machine by the file's own commands.

What must differ here is changed in their text: ports, addresses, folders. `sudo` is left out, `ray stop` is not called
(it would end everybody's Ray), the machine's roles are keys in the environment, and no autoscaler has nodes to start.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from ray._private import ray_constants

from mhs_ray.client.client import Client
from mhs_ray.domain.settings import Settings, load_settings, settings_with
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.haproxy import haproxy_environment
from mhs_ray.platform.keys import Keys, load_keys
from mhs_ray.platform.local_cloud import LocalCloud
from mhs_ray.platform.supervisor import registry_server
from mhs_ray.platform.up import MARK, end_ray, remove_containers
from mhs_ray.registry.server import RegistryServer
from tests.e2e.platform.harness import ENDED, eventually, processes
from tests.s3_fixtures import S3Server, free_ports

ROOT = Path(__file__).resolve().parents[3]
AWS: dict[str, Any] = yaml.safe_load((ROOT / "cluster/aws.yaml").read_text())
NODE_TYPE = "g4dn.xlarge"
_PORTS = ("gcs", "api", "dashboard", "objects", "agent", "node-objects", "node-agent", "registry", "metrics", "stats")


@dataclass
class Head:
    """A head that was started, and how to do it again. folder: short; everything of it lies there."""

    folder: Path
    ports: Mapping[str, int]
    s3: S3Server
    settings: Settings
    client: Client
    keys: Keys

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['api']}"

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=10, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def wait(self, job_id: int, *states: str) -> Any:
        def there() -> Any:
            job = self.client.job(job_id)
            log = "\n".join(line.text for line in self.client.log(job_id))
            assert job["state"] in states or job["state"] not in ENDED, f"{job}\n{log}"
            return job["state"] in states and job

        return eventually(there, f"job {job_id} is {' or '.join(states)}", 120, every_s=0.3)

    def replicas(self) -> set[int]:
        """Return the processes of the API's replicas."""
        ours = processes([f"{MARK}={self.folder / 'r'}"])
        return {pid for pid, command in ours.items() if command.startswith("ray::ServeReplica:mhs:api")}

    def deploy(self) -> None:
        """Deploy `serve.yaml` of the folder by the last of the head's commands."""
        start(AWS["head_start_ray_commands"][2], self)


def start(command: str, head: Head, more: str = "", env: Mapping[str, str] | None = None) -> None:
    """Run one of the file's commands with what must differ here."""
    p = head.ports
    for pattern, here in (
        (r"\bsudo -E ", ""),
        (r"/opt/mhs/cluster/serve\.yaml", str(head.folder / "serve.yaml")),
        (r"/opt/mhs/cluster/", f"{ROOT}/cluster/"),
        (r"--port=6379\b", f"--port={p['gcs']}"),
        (r":6379\b", f":{p['gcs']}"),
        (r"127\.0\.0\.1:8265\b", f"127.0.0.1:{p['dashboard']}"),
        (r"\bray start --address=", "python -m tests.e2e.cluster.loopback_node --address="),
    ):
        command = re.sub(pattern, here, command)
    done = subprocess.run(
        ["bash", "-c", f"{command} {more}"], env=environment(head) | dict(env or {}), cwd=head.folder,
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def environment(head: Head) -> dict[str, str]:
    """Return what a machine of the cluster has in its environment before any of the commands."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MHS_", "RAY_", "AWS_"))}
    return {
        **own,
        **haproxy_environment(head.folder / "haproxy", head.ports["metrics"], head.ports["stats"]),
        "PATH": f"{Path(sys.executable).parent}:{own['PATH']}", "HOME": str(head.folder),
        "AWS_ACCESS_KEY_ID": head.s3.access_key, "AWS_SECRET_ACCESS_KEY": head.s3.secret_key,
        "MHS_ENV_FILE": str(head.folder / "head.env"), MARK: str(head.folder / "r"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "PYTHONPATH": str(ROOT),
    }  # fmt: skip


@contextmanager
def started_head(folder: Path, s3: S3Server, variables: Mapping[str, str]) -> Iterator[Head]:
    """Yield a head with one node, all of it ended afterwards. variables: more of the nodes' settings."""
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    _write_files(folder, ports, s3, variables)
    with ExitStack() as stack:
        settings = load_settings().model_copy(update={"home": folder / "h", "engine": "podman"})
        keys = load_keys(folder / "h" / "keys")
        url = f"http://127.0.0.1:{ports['api']}"
        client = stack.enter_context(Client(url, keys.client_id, keys.client_secret))
        head = Head(folder, ports, s3, settings, client, keys)
        stack.callback(remove_containers, settings)
        registry = _registry(head)
        stack.callback(registry.stop)
        registry.start()
        stack.callback(end_ray, str(folder / "r"))
        here, resources = "--node-ip-address=127.0.0.1", ray_constants.RESOURCES_ENVIRONMENT_VARIABLE
        start(AWS["head_setup_commands"][0], head)
        start(
            AWS["head_start_ray_commands"][1].replace("=8076", f"={ports['objects']}").replace("=19999", "=14999"),
            head, f"{here} --temp-dir={folder}/r --dashboard-port={ports['dashboard']} "
            f"--dashboard-agent-listen-port={ports['agent']} --object-store-memory=134217728",
            {resources: json.dumps(AWS["available_node_types"]["head"]["resources"])},
        )  # fmt: skip
        head.deploy()
        kind = AWS["available_node_types"][NODE_TYPE]
        start(
            AWS["worker_start_ray_commands"][1].replace("=8076", f"={ports['node-objects']}")
            .replace("=10100", "=15000").replace("=2000000000", "=134217728"),
            head, f"{here} --dashboard-agent-listen-port={ports['node-agent']}",
            {
                resources: json.dumps(kind["resources"]), "RAY_HEAD_IP": "127.0.0.1",
                ray_constants.LABELS_ENVIRONMENT_VARIABLE: json.dumps(kind["labels"]),
                "MHS_ENV_FILE": str(folder / "node.env"), "RAY_AUTH_TOKEN_PATH": str(folder / "h/keys/ray-token"),
            },
        )  # fmt: skip
        yield head


def _write_files(folder: Path, ports: Mapping[str, int], s3: S3Server, variables: Mapping[str, str]) -> None:
    for part in (folder, folder / "h", folder / "w", folder / "r"):
        part.mkdir(exist_ok=True)
        part.chmod(0o711)
    lines = dict(
        line.split("=", 1)
        for line in (ROOT / "cluster/aws/mhs.env").read_text().splitlines()
        if "=" in line and not line.startswith(("#", "MHS_SECRETS__", "MHS_REGISTRY__"))
    )
    url = f"http://127.0.0.1:{ports['api']}"
    lines |= {
        "MHS_HOME": str(folder / "h"), "MHS_API__PUBLIC_URL": url, "MHS_API__INTERNAL_URL": url,
        "MHS_BLOBS__BUCKET": "mhs", "MHS_BLOBS__REGION": "us-east-1", "MHS_BLOBS__ENDPOINT_URL": s3.endpoint,
        "MHS_REGISTRY__ADDRESS": f"127.0.0.1:{ports['registry']}", "MHS_REGISTRY__TLS": "false",
        "MHS_CLUSTER__ADDRESS": "127.0.0.1", "MHS_CLUSTER__DASHBOARD_PORT": str(ports["dashboard"]), **variables,
    }  # fmt: skip
    for name, home in (("head.env", "h"), ("node.env", "w")):
        told = lines | {"MHS_HOME": str(folder / home)}
        (folder / name).write_text("".join(f"{k}={v}\n" for k, v in told.items()))
    serve = yaml.safe_load((ROOT / "cluster/serve.yaml").read_text())
    serve["http_options"] |= {"host": "127.0.0.1", "port": ports["api"]}
    (folder / "serve.yaml").write_text(yaml.safe_dump(serve))
    cloud = LocalCloud(folder / "cloud", ())._config()
    cloud["provider"]["gcs_address"] = f"127.0.0.1:{ports['gcs']}"
    (folder / "ray_bootstrap_config.yaml").write_text(json.dumps(cloud))


def _registry(head: Head) -> RegistryServer:
    """Return a registry beside the cluster, in place of ECR; its tokens are the API's."""
    endpoints = Endpoints(head.url, "", f"127.0.0.1:{head.ports['registry']}", "", "")
    with settings_with({"MHS_HOME": str(head.folder / "h")}):
        return registry_server(head.keys, endpoints)
