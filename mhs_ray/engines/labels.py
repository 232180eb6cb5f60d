"""Names of the labels that our containers carry.

An image's own ``LABEL`` becomes a label of its container, so an engine always sets every one of these itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

JOB: Final = "mhs.job"
ATTEMPT: Final = "mhs.attempt"
ROLE: Final = "mhs.role"
PLATFORM: Final = "mhs.platform"

ROLE_PAUSE: Final = "pause"
ROLE_MODEL: Final = "model"

ALL: Final = (JOB, ATTEMPT, ROLE, PLATFORM)


def enforced(labels: Mapping[str, str]) -> dict[str, str]:
    """Return `labels` with every platform label in it; one that was not given is empty, whatever the image says."""
    return {**dict.fromkeys(ALL, ""), **labels}


def carried(wanted: Mapping[str, str], actual: Mapping[str, str]) -> bool:
    """Say whether a container with labels `actual` is the one that was started with labels `wanted`."""
    return all(actual.get(key) == value for key, value in enforced(wanted).items())
