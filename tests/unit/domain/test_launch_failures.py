"""What a cloud's refusal comes down to."""

from __future__ import annotations

import pytest

from mhs_ray.domain.launch_failures import explain_launch_failure

# As EC2, botocore and the Kubernetes scheduler word them.
WORDS = [
    ("no capacity", "An error occurred (InsufficientInstanceCapacity) when calling RunInstances: We currently "
     "do not have sufficient g5.2xlarge capacity in the Availability Zone you requested (eu-central-1a)."),
    ("no capacity", "(InsufficientInstanceCapacity): There is no Spot capacity available that matches your request."),
    ("no capacity", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
    ("quota", "(VcpuLimitExceeded): You have requested more vCPU capacity than your current vCPU limit of 8 allows "
     "for the instance bucket that the specified instance type belongs to."),
    ("quota", "(MaxSpotInstanceCountExceeded): Max spot instance count exceeded"),
    ("quota", 'pods "gpu-x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1'),
    ("busy", "(RequestLimitExceeded): Request limit exceeded."),
    ("right", "(UnauthorizedOperation): You are not authorized to perform this operation. User: "
     "arn:aws:sts::1:assumed-role/mhs-head/i-1 is not authorized to perform: iam:PassRole "
     "on resource: arn:aws:iam::1:role/mhs-node"),
    ("cluster file", "(InvalidAMIID.NotFound): The image id '[ami-x]' does not exist"),
    ("cluster file", "(InvalidParameterValue): Value (mhs-nod) for parameter iamInstanceProfile.name is invalid."),
    ("credentials", "(ExpiredToken): The security token included in the request is expired"),
    ("unknown", "something new"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "words"), WORDS, ids=[f"{k}-{i}" for i, (k, _) in enumerate(WORDS)])
def test_a_refusal_is_told_by_its_kind_with_one_thing_to_do(kind: str, words: str) -> None:
    found = explain_launch_failure(words)
    assert found.kind == kind
    assert found.mend


def test_a_missing_right_is_named() -> None:
    words = next(w for k, w in WORDS if k == "right")
    assert explain_launch_failure(words).mend.endswith(": iam:PassRole")
