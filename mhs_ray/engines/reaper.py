"""Remove containers of ours that nobody owns any more: those of a worker that died."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mhs_ray.domain.errors import EngineError
from mhs_ray.engines import labels
from mhs_ray.ports import ContainerEngine, ContainerStatus

log = logging.getLogger(__name__)


def reap(engine: ContainerEngine, label: str, keep: Callable[[ContainerStatus], bool]) -> list[str]:
    """Remove every container with `label` that `keep` does not want; return the names of those removed.

    Containers that share another's network go before it. One that cannot be removed is logged and left for next time.
    """
    removed = []
    doomed = [status for status in engine.containers(label) if not keep(status)]
    # An engine refuses to remove a container whose network namespace another one uses.
    for status in sorted(doomed, key=lambda s: s.labels.get(labels.ROLE) == labels.ROLE_PAUSE):
        try:
            engine.remove(status.name)
        except EngineError as exc:
            log.warning("container %s is not removed: %s", status.name, exc)
        else:
            log.info("removed container %s, which nobody owns", status.name)
            removed.append(status.name)
    return removed
