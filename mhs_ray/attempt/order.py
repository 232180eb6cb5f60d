"""What a node is told of one attempt, and what it tells back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mhs_ray.domain.failures import Failure
from mhs_ray.domain.models import ImageRef
from mhs_ray.ports import RegistryCredential
from mhs_ray.slides.cache import SlideSource


@dataclass(frozen=True, slots=True)
class AttemptOrder:
    """Everything a node needs for one attempt. It crosses Ray only from the dispatcher to the attempt, on request.

    label: what people know the job by. jwt_token: good for this attempt only. host: HOST of the contract.
    gateway_url: our API's base as the node reaches it. ca_bundles: trust stores inside the image. company_id,
    container_id: whose runnable container it is: a warm container serves no other. image_bytes: unpacked, if known.
    """

    platform: str
    job_id: int
    attempt: int
    task_number: int
    scan_number: int
    label: str
    image: ImageRef
    pull: RegistryCredential = field(repr=False)
    instance_type: str
    time_limit_s: int
    env: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    host: str
    jwt_token: str = field(repr=False)
    slide: SlideSource = field(repr=False)
    slide_name: str
    gateway_url: str
    ca_bundles: tuple[str, ...] = ()
    company_id: int = 0
    container_id: int = 0
    image_bytes: int = 0

    @property
    def container_name(self) -> str:
        """The one name that this attempt's container can have on any node."""
        return f"mhs-{self.platform}-{self.job_id}-{self.attempt}"


@dataclass(frozen=True, slots=True)
class ContainerExit:
    """How a container ended. log_tail: its last lines, secrets redacted."""

    exit_code: int
    oom_killed: bool
    timed_out: bool
    stopped: bool
    log_tail: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended on its node: a failure of its own, or a container's exit that is yet to be judged."""

    exit: ContainerExit | None
    failure: Failure | None
    resources: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Holding:
    """What a node said that it has. images: digests; slides: keys of its slide cache."""

    images: frozenset[str] = frozenset()
    slides: frozenset[str] = frozenset()

    def __or__(self, other: Holding) -> Holding:
        """Return what is in either."""
        return Holding(self.images | other.images, self.slides | other.slides)
