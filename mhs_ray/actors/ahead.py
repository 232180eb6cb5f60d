"""Ray's nodes for `Ahead`: errands are tasks bound to their node, warm nodes a request to Ray's autoscaler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mhs_ray.actors.cluster import nodes
from mhs_ray.actors.node import open_node
from mhs_ray.actors.warm import replace_worker
from mhs_ray.attempt.ahead import Errand, Report, run_errand
from mhs_ray.dispatch.locality import NodeView
from mhs_ray.domain.instances import LABEL
from mhs_ray.domain.sections import ClusterSettings

log = logging.getLogger(__name__)


class RayNodes:
    """The nodes of this Ray cluster that have GPUs."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._said = ""

    def views(self) -> list[NodeView]:
        """Return the nodes that are alive and have GPUs."""
        free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
        labelled = self._settings.placement == "label"
        return [
            NodeView(
                id=node["NodeID"],
                instance_type=node.get("Labels", {}).get(LABEL, "unlabelled") if labelled else "",
                gpus=int(node["Resources"].get("GPU", 0)),
                free=int(free.get(node["NodeID"], {}).get("GPU", 0)),
            )
            for node in nodes()
            if node["Alive"] and node["Resources"].get("GPU", 0) >= 1
        ]

    def send(self, node_id: str, errand: Errand, done: Callable[[Report | None], None]) -> None:
        """Run `errand` in a worker of that node, beside whatever computes there."""
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        reference = _errand.options(name=errand.what, scheduling_strategy=there).remote(errand)

        def ended(future: Any) -> None:
            try:
                report: Report | None = future.result()
            except Exception:
                log.info("%s: its node or its worker died", errand.what)
                report = None
            done(report)

        reference.future().add_done_callback(ended)

    def keep_warm(self, wanted: Mapping[str, int]) -> None:
        """Ask the autoscaler for nodes with a GPU and these labels; it counts those that are there already."""
        if self._settings.placement != "label" or not is_autoscaler_v2():
            self._say("MHS_CLUSTER__WARM has no effect: there is no autoscaler here that could start nodes")
            return
        kinds = [kind for kind, count in sorted(wanted.items()) for _ in range(count)]
        request_resources(bundles=[{"GPU": 1} for _ in kinds], bundle_label_selectors=[{LABEL: kind} for kind in kinds])
        self._say(f"nodes to be warm now: {', '.join(f'{n} of {k}' for k, n in sorted(wanted.items())) or 'none'}")

    def _say(self, text: str) -> None:
        """Log what is new; the request itself is made again and again."""
        if text != self._said:
            log.warning("%s", text)
            self._said = text


@ray.remote(num_cpus=0, max_retries=0)
def _errand(errand: Errand) -> Report:
    replace_worker()
    return run_errand(errand, open_node())
