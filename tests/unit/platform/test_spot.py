"""The watcher for spot notices, on a server that plays EC2's metadata."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest

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
