"""The audit of a node's sandbox: everything holds with ours, and the probes do notice when something does not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from mhs_ray.domain.errors import SandboxError
from mhs_ray.engines import podman_args, podman_run
from mhs_ray.engines.docker import DockerEngine
from mhs_ray.engines.podman import PodmanEngine
from mhs_ray.ports import ContainerSpec
from mhs_ray.sandbox.audit import image
from mhs_ray.sandbox.audit.run import audit, summary

pytestmark = pytest.mark.engine


def test_everything_holds_on_this_node(engine: PodmanEngine | DockerEngine, tmp_path: Path) -> None:
    checks = audit(engine, folder=tmp_path)
    assert {check.name: check.detail for check in checks if not check.ok} == {}
    assert len(checks) >= 50
    assert len({check.name for check in checks}) == len(checks)
    assert list(tmp_path.iterdir()) == []
    document = json.loads(json.dumps(summary(checks, engine)))
    assert document["ok"] is True
    assert document["engine"]["name"] == engine.name
    assert set(document["checks"][0]) == {"name", "ok", "detail"}


def test_names_are_the_same_on_every_engine(podman_engine: PodmanEngine, docker_engine: DockerEngine) -> None:
    assert [c.name for c in audit(podman_engine)] == [c.name for c in audit(docker_engine)]


def test_a_hole_in_the_sandbox_is_seen(podman_engine: PodmanEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = podman_args.sandbox_args

    def weak(spec: ContainerSpec, *others: object) -> list[str]:
        args = whole(spec, *others)  # type: ignore[arg-type]
        if "-net" in spec.name:
            return args
        at = args.index(next(a for a in args if a.startswith("seccomp=")))
        args[at] = "seccomp=unconfined"
        for gone in ("--read-only", "no-new-privileges"):
            at = args.index(gone)
            del args[at - (gone == "no-new-privileges") : at + 1]
        for flag, value in (("--oom-score-adj", "0"), ("--shm-size", str(1 << 30))):
            args[args.index(flag) + 1] = value
        masks = args.index(next(a for a in args if a.startswith("mask=")))
        args[masks] = "mask=/proc/acpi"
        limits = args.index("--pids-limit")
        args[limits + 1] = "1000"
        return [*args, "--volume", "/var:/opt", "--cap-add", "SYS_PTRACE,MKNOD,NET_RAW"]

    monkeypatch.setattr(podman_run, "sandbox_args", weak)
    failed = {check.name for check in audit(podman_engine) if not check.ok}
    assert {
        "capabilities", "no-new-privileges", "setuid-files", "seccomp", "new-namespaces", "ptrace", "io-uring",
        "oom-order", "read-only-root", "shared-memory-limit", "node-facts", "raw-sockets",
        "process-limit", "process-count-limit", "writable-places", "image-volumes",
    } <= failed  # fmt: skip
    assert "metadata-address" not in failed
    assert "nothing-left" not in failed


def test_a_container_in_the_nodes_network_is_seen(podman_engine: PodmanEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = podman_args.sandbox_args

    def weak(spec: ContainerSpec, *others: object) -> list[str]:
        args = whole(spec, *others)  # type: ignore[arg-type]
        if "-net" not in spec.name:
            args[args.index("--network") + 1] = "host"
        return args

    monkeypatch.setattr(podman_run, "sandbox_args", weak)
    failed = {check.name for check in audit(podman_engine) if not check.ok}
    assert {"namespaces", "network-interfaces", "node-ports", "loopback-ports", "abstract-sockets"} <= failed


def test_a_container_that_cannot_probe_is_no_good_news(
    podman_engine: PodmanEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "COMMAND", (*image.LOADER, "-c", "raise SystemExit('no probe here')"))
    with pytest.raises(SandboxError, match="no probe here"):
        audit(podman_engine)
    left = subprocess.run(["podman", *podman_engine.args, "ps", "-aq"], capture_output=True, text=True, check=True)
    assert left.stdout == ""
