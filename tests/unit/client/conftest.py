from __future__ import annotations

from collections.abc import Iterator

import pytest

from mhs_ray.client import Client
from tests.fake_api import FakeApi, fake_api


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with fake_api() as running:
        yield running


@pytest.fixture
def waits() -> list[float]:
    """How long the client would have waited, seconds; it does not."""
    return []


@pytest.fixture
def mhs(api: FakeApi, waits: list[float]) -> Iterator[Client]:
    with Client(api.url, "id", "secret", sleep=waits.append) as client:
        yield client
