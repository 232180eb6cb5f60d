from __future__ import annotations

import json
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from mhs_ray.attempt.prepare import failure_of
from mhs_ray.domain.errors import SandboxError, WeakSandboxError
from mhs_ray.domain.failures import FailureClass, FailureCode
from mhs_ray.ports import ContainerEngine, EngineInfo
from mhs_ray.sandbox.audit.gate import Gate
from mhs_ray.sandbox.audit.run import Check

GOOD = [Check("capabilities", True, "none")]
BAD = [*GOOD, Check("seccomp", False, "Seccomp is 0"), Check("bpf", False, "done")]


@dataclass
class Node:
    """An engine that only has a name, and audits that are counted."""

    folder: Path
    checks: list[Check] = field(default_factory=lambda: GOOD)
    version: str = "1"
    audits: int = 0

    def info(self) -> EngineInfo:
        return EngineInfo("podman", self.version, "runc", False, 2, True)

    def audit(self) -> list[Check]:
        self.audits += 1
        return self.checks

    def gate(self, *, allow_weak: bool = False, runtime: str | None = None) -> Gate:
        engine = cast(ContainerEngine, self)
        return Gate(engine, allow_weak=allow_weak, runtime=runtime, folder=self.folder, make=self.audit)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_node_is_audited_once_not_once_per_job(node: Node) -> None:
    gate = node.gate()
    for _ in range(3):
        gate()
    node.gate()()  # another process
    assert node.audits == 1


def test_another_engine_version_or_runtime_is_another_audit(node: Node) -> None:
    node.gate()()
    node.version = "2"
    node.gate()()
    node.gate(runtime="runsc")()
    assert node.audits == 3


def test_a_node_that_does_not_hold_takes_no_job_and_says_why(node: Node) -> None:
    node.checks = BAD
    with pytest.raises(WeakSandboxError, match="seccomp, bpf"):
        node.gate()()
    with pytest.raises(WeakSandboxError):
        node.gate()()
    assert node.audits == 1


def test_a_setting_lets_jobs_run_all_the_same(node: Node) -> None:
    node.checks = BAD
    node.gate(allow_weak=True)()
    assert node.audits == 0


def test_a_bad_verdict_is_looked_into_again_later(node: Node) -> None:
    node.checks = BAD
    with pytest.raises(WeakSandboxError):
        node.gate()()
    (kept,) = node.folder.glob("audit-*.json")
    kept.write_text(json.dumps({"faults": ["seccomp"], "at": time.time() - 3600}))
    node.checks = GOOD
    node.gate()()
    assert node.audits == 2


def test_a_damaged_verdict_is_made_again(node: Node) -> None:
    node.gate()()
    (kept,) = node.folder.glob("audit-*.json")
    kept.write_text("{")
    node.gate()()
    assert node.audits == 2


def test_an_audit_that_cannot_be_made_is_not_remembered(node: Node) -> None:
    def broken() -> list[Check]:
        raise SandboxError("no container to be had")

    engine = cast(ContainerEngine, node)
    with pytest.raises(SandboxError, match="no container"):
        Gate(engine, folder=node.folder, make=broken)()
    node.gate()()
    assert node.audits == 1


def test_the_job_fails_as_the_platforms_fault_with_something_to_do() -> None:
    error = pickle.loads(pickle.dumps(WeakSandboxError(["seccomp"])))
    failure = failure_of(error)
    assert failure.code is FailureCode.SANDBOX_FAILED
    assert failure.failure_class is FailureClass.PLATFORM
    assert "seccomp" in failure.cause
    assert "audit-sandbox" in failure.mend
    assert "MHS_SANDBOX__ALLOW_WEAK" in failure.mend
