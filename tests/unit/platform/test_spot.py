"""The watcher for spot notices, on a server that plays EC2's metadata."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import pytest

from mhs_ray.actors.spot_watch import _own_node
from mhs_ray.domain.errors import ConflictError
from mhs_ray.platform.spot import AwsNotices, watch
from tests.fake_metadata import FakeMetadata, fake_metadata

GOES = "2026-05-01T12:02:00Z"


@pytest.fixture
def metadata() -> Iterator[FakeMetadata]:
    with fake_metadata() as told:
        yield told


def test_fake_metadata_without_a_notice_means_nothing_is_planned(metadata: FakeMetadata) -> None:
    assert AwsNotices(metadata.url).goes_at() is None


@pytest.mark.parametrize("action", ["terminate", "stop"])
def test_fake_metadata_notice_tells_when_the_machine_goes(metadata: FakeMetadata, action: str) -> None:
    metadata.notice = {"action": action, "time": GOES}
    assert AwsNotices(metadata.url).goes_at() == datetime(2026, 5, 1, 12, 2, tzinfo=UTC)


def test_fake_metadata_token_that_ended_is_asked_for_anew(metadata: FakeMetadata) -> None:
    notices = AwsNotices(metadata.url)
    assert notices.goes_at() is None
    metadata.tokens.clear()
    metadata.notice = {"action": "terminate", "time": GOES}
    assert notices.goes_at() is not None


def test_fake_metadata_that_is_down_is_an_error_and_no_notice(metadata: FakeMetadata) -> None:
    metadata.down = True
    with pytest.raises(httpx.HTTPStatusError):
        AwsNotices(metadata.url).goes_at()


def test_a_watcher_outlives_a_metadata_service_that_is_down_and_drains_once(metadata: FakeMetadata) -> None:
    metadata.down = True
    drained: list[datetime] = []
    refused = threading.Event()

    def drain(when: datetime) -> None:
        if not refused.is_set():
            refused.set()
            raise RuntimeError("Ray does not answer")
        drained.append(when)

    watching = threading.Thread(
        target=watch, args=(AwsNotices(metadata.url), drain, threading.Event()), kwargs={"every_s": 0.02}
    )
    watching.start()
    metadata.notice = {"action": "terminate", "time": GOES}
    metadata.down = False
    watching.join(10)
    assert drained == [datetime(2026, 5, 1, 12, 2, tzinfo=UTC)]
    assert refused.is_set()


class _Gcs:
    """Ray's control service with these nodes: (id, address, alive)."""

    def __init__(self, *nodes: tuple[bytes, str, bool]) -> None:
        self._nodes = nodes

    def get_all_node_info(self) -> dict[bytes, SimpleNamespace]:
        return {n: SimpleNamespace(node_manager_address=a, state=0 if alive else 1) for n, a, alive in self._nodes}


def test_a_watcher_finds_the_one_living_node_of_its_machine() -> None:
    gcs = _Gcs((b"\x01", "127.0.0.1", True), (b"\x02", "127.0.0.1", False), (b"\x03", "203.0.113.9", True))
    assert _own_node(gcs) == "01"


def test_a_watcher_drains_nothing_when_it_cannot_tell_which_node_is_its_own() -> None:
    for gcs in (_Gcs((b"\x01", "127.0.0.1", True), (b"\x02", "127.0.0.1", True)), _Gcs((b"\x03", "203.0.113.9", True))):
        with pytest.raises(ConflictError, match="--node-id"):
            _own_node(gcs)
