"""Ray as the dispatcher's cluster: one detached, named actor per attempt."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection
from time import monotonic
from typing import Any, Final

import ray
from ray._private.state import actors, state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mhs_ray.actors.attempt import AttemptActor
from mhs_ray.actors.names import NAMESPACE, attempt_key, attempt_name
from mhs_ray.dispatch.dispatcher import AttemptKey
from mhs_ray.domain.instances import INSTANCE_TYPES, LABEL
from mhs_ray.domain.sections import ClusterSettings

log = logging.getLogger(__name__)

_NEVER_MS: Final = 1 << 60  # Ray's way to say that a drain has no deadline


def nodes() -> list[dict[str, Any]]:
    """Return what Ray knows of its nodes, dead ones too."""
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return known


class RayCluster:
    """on_launched: told of each attempt's actor, to wait for its end."""

    def __init__(self, settings: ClusterSettings, on_launched: Callable[[AttemptKey, Any], None]) -> None:
        self._settings, self._on_launched = settings, on_launched

    def offers(self, instance_type: str) -> bool:
        """Every type of the contract on a single machine; else one that a node has or that the autoscaler knows."""
        if self._settings.placement == "single":
            return instance_type in INSTANCE_TYPES
        here = {node["Labels"].get(LABEL) for node in nodes() if node["Alive"]}
        return instance_type in here or instance_type in self._settings.instance_types

    def launch(self, key: AttemptKey, label: str, instance_type: str, prefer: str | None = None) -> None:
        """Create the attempt's actor; Ray queues it until a GPU on a fitting node is free.

        prefer: given only while a GPU is free there. Attempts that wait are to be alike for Ray, which keeps the
        order only of those that are.
        """
        options: dict[str, Any] = {}
        if prefer is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                prefer, soft=True, _spill_on_unavailable=True
            )
        if self._settings.placement == "label":
            options["label_selector"] = {LABEL: instance_type}
        actor = AttemptActor.options(
            name=attempt_name(key, label),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_gpus=1,
            num_cpus=0,
            max_restarts=0,
            max_concurrency=16,
            **options,
        ).remote(key)
        self._on_launched(key, actor)

    def adopt(self) -> None:
        """Hand on every attempt that an earlier dispatcher launched."""
        for name, key in self._names().items():
            try:
                self._on_launched(key, ray.get_actor(name, NAMESPACE))
            except ValueError:
                log.info("attempt %s of job %s ended just now", key[1], key[0])

    def stop(self, key: AttemptKey) -> None:
        """Ask the actor to end its container; one that still waits for a node is removed at once."""
        for name, known in self._names().items():
            if known != key:
                continue
            try:
                actor = ray.get_actor(name, NAMESPACE)
            except ValueError:
                return
            # A call to an actor that waits for a GPU would wait with it. The public state API needs the dashboard.
            if actors(actor._actor_id.hex()).get("State") in {"PENDING_CREATION", "DEPENDENCIES_UNREADY"}:
                ray.kill(actor)
            else:
                actor.stop.remote()

    def forget(self, key: AttemptKey) -> None:
        """Remove the actor of a settled attempt, which gives its GPU back."""
        for name, known in self._names().items():
            if known == key:
                try:
                    ray.kill(ray.get_actor(name, NAMESPACE))
                except ValueError:
                    return

    def end_all(self, within_s: float) -> None:
        """End every attempt, its container too, and remove its actor."""
        keys = self.attempts()
        for key in keys:
            self.stop(key)
        deadline = monotonic() + within_s
        for name, key in self._names().items():
            with contextlib.suppress(ValueError, ray.exceptions.RayError):
                ray.get(ray.get_actor(name, NAMESPACE).ended.remote(), timeout=max(0.1, deadline - monotonic()))
            self.forget(key)

    def draining(self) -> dict[str, float]:
        """Return Ray's id of each node that is about to go, and when (seconds since 1970); idle ones are left out."""
        going: dict[str, int] = state.get_draining_nodes()
        return {node: deadline_ms / 1000 for node, deadline_ms in going.items() if 0 < deadline_ms < _NEVER_MS}

    def attempts(self) -> Collection[AttemptKey]:
        """Return the attempts whose actors wait or live."""
        return set(self._names().values())

    @staticmethod
    def _names() -> dict[str, AttemptKey]:
        names = (
            entry["name"]
            for entry in ray.util.list_named_actors(all_namespaces=True)
            if entry["namespace"] == NAMESPACE
        )
        return {name: key for name in names if (key := attempt_key(name)) is not None}
