"""Files of /proc and /sys that tell of the node, and so are covered in every container, on both engines.

Not covered, since CUDA needs them: /proc/driver/nvidia, /sys/bus/pci, /sys/devices/pci…, /sys/devices/system,
/sys/class/drm, /sys/module. Nor what no kernel namespace hides and programs need: /proc/cpuinfo, meminfo, stat,
loadavg, uptime, version, and the paths in a container's own mountinfo.
"""

from __future__ import annotations

from typing import Final

_DEFAULTS: Final = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
    "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
)  # fmt: skip
"""What engines cover by themselves; Docker forgets these once it is given a list."""

_NODE: Final = (
    "/proc/cmdline", "/proc/config.gz", "/proc/consoles", "/proc/diskstats", "/proc/interrupts", "/proc/iomem",
    "/proc/ioports", "/proc/kallsyms", "/proc/key-users", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount",
    "/proc/kpageflags", "/proc/locks", "/proc/mdstat", "/proc/modules", "/proc/mtrr", "/proc/pagetypeinfo",
    "/proc/partitions", "/proc/pressure", "/proc/schedstat", "/proc/slabinfo", "/proc/softirqs", "/proc/swaps",
    "/proc/vmallocinfo", "/proc/zoneinfo", "/sys/block", "/sys/class/block", "/sys/class/bdi", "/sys/class/dmi",
    "/sys/class/tpm", "/sys/dev/block", "/sys/devices/virtual/bdi", "/sys/devices/virtual/block",
    "/sys/devices/virtual/dmi", "/sys/devices/virtual/powercap", "/sys/fs/bpf", "/sys/fs/btrfs", "/sys/fs/ext4",
    "/sys/fs/fuse", "/sys/fs/pstore", "/sys/fs/xfs", "/sys/hypervisor", "/sys/kernel/boot_params", "/sys/kernel/debug",
    "/sys/kernel/notes", "/sys/kernel/security", "/sys/kernel/slab", "/sys/kernel/tracing", "/sys/kernel/vmcoreinfo",
    "/sys/power",
)  # fmt: skip
"""Disks, serial numbers (an EC2 instance's id is one), boot parameters, addresses, counters of other people's work."""

OF_NODE_SYS: Final = ("/sys/class/net", "/sys/devices/virtual/net", "/sys/fs/cgroup")
"""What to cover besides where the node's own /sys is mounted: its networks and its control groups.

podman does that for a container in a user namespace that joins another's network: only the owner of a network
namespace may mount a /sys of it. Where we are root the sandbox therefore brings one (`Sandbox.mounts`).
"""


def everywhere() -> tuple[str, ...]:
    """Return the paths to cover in a container that has a /sys of its own network namespace."""
    return (*_DEFAULTS, *_NODE)
