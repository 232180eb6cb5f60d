"""What a warm container is started with, and which attempts it may serve."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from mhs_ray.attempt.order import AttemptOrder
from mhs_ray.domain.models import ImageRef
from mhs_ray.domain.tile_feed import VARIABLE as TILES
from mhs_ray.domain.warm import VARIABLE, Warm, parse_warm
from mhs_ray.slides.flock import try_lock

FOLDER: Final = "warm"
"""Below the node's folder: one folder for each host, with its lock, its socket and what it is."""
HOST_SOCKET: Final = "host.sock"
ABOUT: Final = "about.json"
LOCK: Final = "lock"
ERROR: Final = "error"


@dataclass(frozen=True, slots=True)
class WarmOrder:
    """One warm container. name: of the container and its sandbox; key: of the attempts that it may serve.

    slot: the GPUs as Ray counts them, which only one attempt has at a time; gpus: the devices among them.
    """

    name: str
    key: str
    slot: tuple[str, ...]
    gpus: tuple[str, ...]
    platform: str
    image: ImageRef
    instance_type: str
    env: Mapping[str, str] = field(repr=False)
    host: str
    gateway_url: str
    ca_bundles: tuple[str, ...]
    scans: int
    idle_s: int

    def dump(self) -> bytes:
        """Return it for the host's standard input: it holds the container's variables."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Read what `dump` wrote."""
        found: dict[str, Any] = json.loads(data)
        lists = {name: tuple(found[name]) for name in ("slot", "gpus", "ca_bundles")}
        return cls(**{**found, **lists, "image": ImageRef(**found["image"])})


def warm_of(order: AttemptOrder) -> Warm | None:
    """Return how an attempt's container promised to take many scans, None where it did not.

    With the tile feed it is started for one scan: the feed belongs to one slide.
    """
    text = order.env.get(VARIABLE)
    if text is None or TILES in order.env:
        return None
    try:
        return parse_warm(text)
    except ValueError:  # checked when the container was made; an older one may say anything
        return None


def warm_key(order: AttemptOrder) -> str:
    """Return a name for all that must be the same for two attempts to share a container: whose it is and what runs."""
    what = [
        order.platform, order.company_id, order.container_id, str(order.image), order.instance_type, order.host,
        order.gateway_url, sorted(order.env.items()), list(order.ca_bundles), order.time_limit_s,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def make_warm_order(order: AttemptOrder, warm: Warm, slot: Sequence[str], gpus: Sequence[str], mark: str) -> WarmOrder:
    """Return what to start for `order`. mark: makes the name one of its own."""
    return WarmOrder(
        name=f"mhs-{order.platform}-warm-{mark}", key=warm_key(order), slot=tuple(slot), gpus=tuple(gpus),
        platform=order.platform, image=order.image, instance_type=order.instance_type, env=dict(order.env),
        host=order.host, gateway_url=order.gateway_url, ca_bundles=order.ca_bundles, scans=warm.scans,
        idle_s=warm.idle_s,
    )  # fmt: skip


def live_hosts(node_folder: Path) -> list[str]:
    """Return the names of the warm containers on a node whose hosts live."""
    folder = node_folder / FOLDER
    if not folder.is_dir():
        return []
    found = []
    for each in sorted(folder.iterdir()):
        with try_lock(each / LOCK, create=False) as dead:
            if not dead and (each / LOCK).exists():
                found.append(each.name)
    return found
