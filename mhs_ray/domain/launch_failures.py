"""What a cloud means when it starts no node, in words for an operator. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["no capacity", "quota", "right", "cluster file", "credentials", "busy", "unknown"]


@dataclass(frozen=True, slots=True)
class LaunchFailure:
    """kind: what sort of trouble. mend: one thing to do."""

    kind: Kind
    mend: str


_RULES: Final[tuple[tuple[str, Kind, str], ...]] = (
    (
        r"InsufficientInstanceCapacity|InsufficientHostCapacity|InsufficientCapacity|SpotMaxPriceTooLow|"
        r"no Spot capacity|capacity-not-available|Insufficient (cpu|memory|nvidia\.com/gpu)",
        "no capacity",
        "wait, it is asked for again; or add zones to provider.availability_zone, or an on-demand twin of the type",
    ),
    (
        r"VcpuLimitExceeded|MaxSpotInstanceCountExceeded|(?<!Request)LimitExceeded|"
        r"exceeded quota|VolumeLimitExceeded|quota",
        "quota",
        "ask AWS for a higher quota (Service Quotas: 'Running … G and VT instances', spot has its own), "
        "or lower max_workers",
    ),
    (r"RequestLimitExceeded|Throttl|Rate exceeded", "busy", "nothing: EC2 is asked too often, it is tried again"),
    (
        r"UnauthorizedOperation|AccessDenied|not authorized|forbidden",
        "right",
        "give the head's role the right (cluster/aws/iam/head.json)",
    ),
    (
        r"AuthFailure|ExpiredToken|InvalidClientTokenId|NoCredentials|Unable to locate credentials",
        "credentials",
        "see that the head's instance profile is attached and its clock is right",
    ),
    (
        r"Invalid(AMIID|Subnet|Group|KeyPair|Parameter|Instance)|Unsupported|MissingParameter|ParamValidation|NotFound",
        "cluster file",
        "mend the node type in the cluster file (`mhs doctor --cluster FILE`), then `ray up` again",
    ),
)
_ACTION: Final = re.compile(r"(?:perform(?:ing)?:?|perform this operation)[^a-z]*([a-z0-9]+:[A-Za-z]+)")


def explain_launch_failure(words: str) -> LaunchFailure:
    """Return what `words`, a cloud's own, come down to."""
    for pattern, kind, mend in _RULES:
        if re.search(pattern, words, re.IGNORECASE):
            action = _ACTION.search(words) if kind == "right" else None
            return LaunchFailure(kind, f"{mend}: {action[1]}" if action else mend)
    return LaunchFailure("unknown", "look at monitor.log in Ray's session folder on the head")
