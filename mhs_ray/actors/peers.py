"""How an API replica reaches the dispatcher and the registrar: messages that do not wait for an answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import ray

from mhs_ray.actors.cluster import nodes
from mhs_ray.actors.names import DISPATCHER, NAMESPACE, REGISTRAR
from mhs_ray.domain.instances import LABEL

log = logging.getLogger(__name__)


class _Peer:
    """A named actor, looked up once: Ray keeps the handle good through the actor's restarts."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle: Any = None

    def get(self) -> Any:
        if self._handle is None:
            self._handle = ray.get_actor(self._name, NAMESPACE)
        return self._handle

    def tell(self, method: str, *args: Any) -> None:
        """Send and forget. What is not heard is found by the receiver's own look at the rows."""
        try:
            getattr(self.get(), method).remote(*args)
        except Exception as error:
            self._handle = None
            log.warning("%s could not be told of %s: %s", self._name, method, type(error).__name__)


def ray_nodes() -> list[dict[str, Any]]:
    """Return the cluster's nodes in plain words; it waits for Ray's control service."""
    return [
        {
            "name": node.get("NodeName") or node["NodeManagerHostname"], "id": node["NodeID"], "alive": node["Alive"],
            "instance_type": node.get("Labels", {}).get(LABEL, ""), "address": node["NodeManagerAddress"],
            "gpus": node["Resources"].get("GPU", 0), "cpus": node["Resources"].get("CPU", 0),
            "memory_bytes": node["Resources"].get("memory", 0), "metrics_port": node.get("MetricsExportPort", 0),
        }
        for node in nodes()
    ]  # fmt: skip


def ray_peers() -> tuple[Callable[[], None], Callable[[list[int]], None], Callable[[], Awaitable[str]]]:
    """Return (wake the dispatcher, tell the registrar of pushes, ping the dispatcher)."""
    dispatcher, registrar = _Peer(DISPATCHER), _Peer(REGISTRAR)

    async def ping() -> str:
        handle = await asyncio.to_thread(dispatcher.get)
        answer: str = await handle.ping.remote()
        return answer

    return lambda: dispatcher.tell("wake"), lambda ids: registrar.tell("pushed", ids), ping
