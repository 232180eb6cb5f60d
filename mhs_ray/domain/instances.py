"""The AWS GPU instance types a runnable container can ask for (Techcyte's list, techcyte-contract §4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class InstanceType:
    """One AWS instance type. memory_gb and vram_gb are GiB as AWS counts them."""

    name: str
    vcpu: int
    memory_gb: int
    gpu: str
    vram_gb: int

    @property
    def memory_bytes(self) -> int:
        """RAM in bytes."""
        return self.memory_gb * GIB


INSTANCE_TYPES: Final[Mapping[str, InstanceType]] = {
    t.name: t
    for t in (
        InstanceType("g4dn.xlarge", 4, 16, "T4", 16),
        InstanceType("g4dn.2xlarge", 8, 32, "T4", 16),
        InstanceType("g4dn.4xlarge", 16, 64, "T4", 16),
        InstanceType("g5.2xlarge", 8, 32, "A10G", 24),
        InstanceType("g5.4xlarge", 16, 64, "A10G", 24),
        InstanceType("g6.2xlarge", 8, 32, "L4", 24),
        InstanceType("g6.4xlarge", 16, 64, "L4", 24),
        InstanceType("g6e.2xlarge", 8, 64, "L40S", 48),
    )
}

LABEL: Final = "mhs.io/instance-type"
"""The Ray node label that says which type a node is."""


def larger_memory_than(name: str) -> InstanceType | None:
    """The smallest type with more RAM than `name`, for the advice on a failure card."""
    here = INSTANCE_TYPES[name]
    more = [t for t in INSTANCE_TYPES.values() if t.memory_gb > here.memory_gb]
    return min(more, key=lambda t: (t.memory_gb, t.vcpu), default=None)
