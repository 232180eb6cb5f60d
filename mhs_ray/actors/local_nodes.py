"""The cloud of a `LocalCloud`: each node that the autoscaler asks for is a raylet with a home of its own."""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray._private import ray_constants
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from mhs_ray.domain.settings import load_settings, names_of_settings
from mhs_ray.engines.select import pick_engine
from mhs_ray.sandbox.scratch import remove_folder

log = logging.getLogger(__name__)

_ENGINE = ("MHS_ENGINE", "MHS_DOCKER_HOST")


class LocalNodes(FakeMultiNodeProvider):  # type: ignore[misc, unused-ignore]
    """Runs in Ray's monitor on the head. provider_config: nodes_folder, refusals (see `LocalCloud`)."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: dict[str, Any], labels: dict[str, str]
    ) -> None:
        node_type = tags[TAG_RAY_USER_NODE_TYPE]
        reason = self._refusals().get(node_type)
        if reason:
            raise RuntimeError(reason)
        with self.lock:
            node_id = self._next_hex_node_id()
            home = Path(self.provider_config["nodes_folder"], node_id[:8])
            amounts = dict(resources)
            address = self.provider_config["gcs_address"]
            params = RayParams(
                min_worker_port=0, max_worker_port=0, dashboard_port=None, dashboard_agent_listen_port=0,
                num_cpus=amounts.pop("CPU", 0), num_gpus=amounts.pop("GPU", 0),
                object_store_memory=amounts.pop("object_store_memory", None), resources=amounts, labels=labels,
                redis_address=address, gcs_address=address,
                env_vars={
                    # A machine of its own has none of the head's settings and no way to its database; empty is unset.
                    **{name: "" for name in names_of_settings(os.environ) if name not in _ENGINE},
                    "MHS_HOME": str(home),
                    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id,
                    "RAY_CLOUD_INSTANCE_ID": node_id,
                    "RAY_NODE_TYPE_NAME": node_type,
                    ray_constants.RESOURCES_ENVIRONMENT_VARIABLE: json.dumps(amounts),
                    ray_constants.LABELS_ENVIRONMENT_VARIABLE: json.dumps(labels),
                },
            )  # fmt: skip
            node = Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)
            known: dict[str, Any] = self._nodes
            known[node_id] = {
                "tags": {
                    TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_NODE_NAME: node_id,
                    TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE, **tags,
                },
                "node": node, "home": home,
            }  # fmt: skip

    def _next_hex_node_id(self) -> str:
        """Return an id of its own beginning: people know a node by the first eight digits."""
        return secrets.token_hex(28)

    def _terminate_node(self, node: dict[str, Any]) -> None:
        super()._terminate_node(node)  # type: ignore[no-untyped-call]
        threading.Thread(target=_forget_machine, args=(node["home"],), name="forget-machine", daemon=True).start()

    def _refusals(self) -> dict[str, str]:
        with suppress(OSError, ValueError):
            return dict(json.loads(Path(self.provider_config["refusals"]).read_text()))
        return {}


def _forget_machine(home: Path) -> None:
    """Remove what a machine takes with it when it goes: its containers and its disk."""
    settings = load_settings()
    try:
        engine = pick_engine(settings.engine, docker_host=settings.docker_host)
        for sandbox in (home / "node" / "sandboxes").glob("mhs-*"):
            for name in (sandbox.name, f"{sandbox.name}-net"):
                engine.remove(name)
        remove_folder(home)
    except Exception:
        log.exception("a part of the ended node in %s is left", home)
