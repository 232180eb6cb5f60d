"""Where base images outlive the session."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base_cache(request: pytest.FixtureRequest) -> Path:
    """Where the base image's tar outlives the session: making it takes a minute or more."""
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        pytest.skip("the base image needs root and debootstrap: apt-get install debootstrap")
    cache = request.config.cache
    assert cache is not None
    return cache.mkdir("mhs-base-image")
