from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mhs_ray.domain.errors import SlideFetchError
from mhs_ray.slides.fetch import FetchLimits, FetchResult, fetch, revalidate
from mhs_ray.slides.url_guard import UrlPolicy

DATA = os.urandom(3_000_000)
HERE = UrlPolicy(allow_private=True)
QUICK = FetchLimits(stall_s=0.4, connect_s=2, backoff_s=0.01, retries=3, deadline_s=30)


def get(url: str, dest: Path, limits: FetchLimits = QUICK, policy: UrlPolicy = HERE, **more: Any) -> FetchResult:
    return fetch(url, dest, limits=limits, policy=policy, **more)


def failure(url: str, dest: Path, limits: FetchLimits = QUICK, policy: UrlPolicy = HERE) -> SlideFetchError:
    """The error of a fetch that must fail, after what must hold of each: no signature in it, nothing left on disk."""
    with pytest.raises(SlideFetchError) as caught:
        get(url, dest, limits, policy)
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in repr(caught.value)
    assert not dest.exists()
    return caught.value


def test_a_slide_arrives_whole_with_its_checksum_and_progress(storage: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    result = get(storage.put("/s", DATA), tmp_path / "s", on_progress=lambda done, total: seen.append((done, total)))
    assert (tmp_path / "s").read_bytes() == DATA
    assert result == FetchResult(len(DATA), '"v1"', result.last_modified, hashlib.sha256(DATA).hexdigest())
    assert seen[0] == (0, len(DATA))
    assert seen[-1] == (len(DATA), len(DATA))
    assert seen == sorted(seen)


def test_a_broken_connection_is_resumed_where_it_broke(storage: Any, tmp_path: Path) -> None:
    def cutting(handler: Any) -> None:
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        end = min(start + 800_000, len(DATA))
        facts = {"ETag": '"v1"', "Content_Length": len(DATA) - start}
        if start:
            assert handler.headers["If-Range"] == '"v1"'
            handler.head(206, Content_Range=f"bytes {start}-{len(DATA) - 1}/{len(DATA)}", **facts)
        else:
            handler.head(200, **facts)
        handler.wfile.write(DATA[start:end])
        handler.cut()

    storage.answers["/s"] = cutting
    result = get(storage.url("/s"), tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == DATA
    assert result.sha256 == hashlib.sha256(DATA).hexdigest()
    assert [r for _, r in storage.requests] == [None, "bytes=800000-", "bytes=1600000-", "bytes=2400000-"]


def test_a_storage_without_ranges_is_read_again_from_the_start(storage: Any, tmp_path: Path) -> None:
    tries = iter([True, False])

    def whole(handler: Any) -> None:
        handler.head(200, ETag='"v1"', Content_Length=len(DATA))
        if next(tries):
            handler.wfile.write(DATA[:1000])
            handler.cut()
        else:
            handler.wfile.write(DATA)

    storage.answers["/s"] = whole
    assert get(storage.url("/s"), tmp_path / "s").sha256 == hashlib.sha256(DATA).hexdigest()


def test_without_any_validator_two_halves_are_never_joined(storage: Any, tmp_path: Path) -> None:
    bodies = iter([b"a" * 500_000, b"b" * 500_000])

    def anonymous(handler: Any) -> None:
        body = next(bodies)
        handler.head(200, Content_Length=len(body))
        handler.wfile.write(body if body[:1] == b"b" else body[:1000])
        handler.cut()

    storage.answers["/s"] = anonymous
    get(storage.url("/s"), tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == b"b" * 500_000


def test_a_slide_replaced_while_it_is_fetched_is_an_error_and_no_mixture(storage: Any, tmp_path: Path) -> None:
    def replaced(handler: Any) -> None:
        again = handler.headers.get("Range")
        handler.head(200, ETag='"v2"' if again else '"v1"', Content_Length=len(DATA))
        handler.wfile.write(DATA if again else DATA[:1000])
        handler.cut()

    storage.answers["/s"] = replaced
    error = failure(storage.url("/s"), tmp_path / "s")
    assert (error.reason, error.transient) == ("changed", True)


def test_a_storage_that_lies_about_the_length_is_found_out(storage: Any, tmp_path: Path) -> None:
    def lying(handler: Any) -> None:
        handler.head(200, ETag='"v1"', Content_Length=5000)
        handler.wfile.write(b"x" * 4000)
        handler.cut()

    storage.answers["/s"] = lying
    error = failure(storage.url("/s"), tmp_path / "s")
    assert error.reason == "short-body"
    assert len(storage.requests) <= 1 + QUICK.retries + 1


@pytest.mark.parametrize("after", [0, 2000])
def test_a_storage_that_stalls_is_given_up(storage: Any, tmp_path: Path, after: int) -> None:
    def stalling(handler: Any) -> None:
        handler.begin(DATA, after)
        time.sleep(1.5)

    storage.answers["/s"] = stalling
    limits = FetchLimits(stall_s=0.3, backoff_s=0.01, retries=1)
    error = failure(storage.url("/s"), tmp_path / "s", limits)
    assert (error.reason, error.transient) == ("stalled", True)


@pytest.mark.parametrize("what", ["headers of a slide", "body of a slide", "headers of a question"])
def test_a_cancel_does_not_wait_for_a_storage_that_says_nothing(storage: Any, tmp_path: Path, what: str) -> None:
    asked, ended = threading.Event(), threading.Event()

    def saying_nothing(handler: Any) -> None:
        if what == "body of a slide":
            handler.begin(DATA, 2000)
        asked.set()
        ended.wait(60)

    storage.answers["/s"] = saying_nothing
    url, dest, slow = storage.url("/s"), tmp_path / "s", FetchLimits(stall_s=50)
    started = time.monotonic()
    ask: Any = partial(get, url, dest, slow)
    if what == "headers of a question":
        ask = partial(revalidate, url, '"v1"', limits=slow, policy=HERE)
    try:
        with pytest.raises(SlideFetchError) as error:
            ask(cancelled=asked.is_set)
    finally:
        ended.set()
    assert error.value.reason == "cancelled"
    assert time.monotonic() - started < 25
    assert not dest.exists()


def test_a_cancel_does_not_wait_for_the_next_try(storage: Any, tmp_path: Path) -> None:
    storage.answers["/s"] = lambda handler: handler.error(503, "SlowDown", "slow down")
    started = time.monotonic()
    limits = FetchLimits(backoff_s=50, backoff_max_s=50)
    with pytest.raises(SlideFetchError) as error:
        get(storage.url("/s"), tmp_path / "s", limits, cancelled=lambda: time.monotonic() - started > 1)
    assert error.value.reason == "cancelled"
    assert len(storage.requests) == 1
    assert time.monotonic() - started < 25


@pytest.mark.parametrize("where", ["headers", "body"])
def test_a_byte_now_and_then_is_a_stall_too(storage: Any, tmp_path: Path, where: str) -> None:
    def dripping(handler: Any) -> None:
        if where == "body":
            handler.head(200, ETag='"v1"', Content_Length=len(DATA))
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(400):  # 20 s, or until nobody listens any more
            handler.wfile.write(b"y")
            handler.wfile.flush()
            time.sleep(0.05)

    storage.answers["/s"] = dripping
    started = time.monotonic()
    error = failure(storage.url("/s"), tmp_path / "s", FetchLimits(stall_s=0.4, backoff_s=0.01, retries=0))
    assert error.reason == "stalled"
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("status", "code", "message", "reason"),
    [
        (403, "AccessDenied", "Request has expired", "expired"),
        (403, "SignatureDoesNotMatch", "differs", "forbidden"),
        (404, "NoSuchKey", "gone", "not-found"),
        (410, "Gone", "gone", "not-found"),
    ],
)
def test_a_refusal_is_told_apart_and_not_tried_again(
    storage: Any, tmp_path: Path, status: int, code: str, message: str, reason: str
) -> None:
    storage.answers["/s"] = lambda handler: handler.error(status, code, message)
    error = failure(storage.url("/s"), tmp_path / "s")
    assert (error.reason, error.transient) == (reason, False)
    assert len(storage.requests) == 1


def test_a_url_that_expired_in_mid_download_says_so(storage: Any, tmp_path: Path) -> None:
    def expiring(handler: Any) -> None:
        if handler.headers.get("Range"):
            handler.error(403, "AccessDenied", "Request has expired")
            return
        handler.head(200, ETag='"v1"', Content_Length=len(DATA))
        handler.wfile.write(DATA[:1_000_000])
        handler.cut()

    storage.answers["/s"] = expiring
    assert failure(storage.url("/s"), tmp_path / "s").reason == "expired"


def test_a_url_that_ended_long_ago_is_not_even_tried(storage: Any, tmp_path: Path) -> None:
    storage.put("/s", DATA)
    url = storage.url("/s", "X-Amz-Date=20200101T000000Z&X-Amz-Expires=60&X-Amz-Signature=SECRET")
    assert failure(url, tmp_path / "s").reason == "expired"
    assert storage.requests == []


def test_a_busy_storage_is_tried_again(storage: Any, tmp_path: Path) -> None:
    storage.put("/s", DATA)

    def busy(handler: Any) -> None:
        if len(storage.requests) < 3:
            handler.error(503, "SlowDown", "Please reduce your request rate.")
        else:
            handler.storage.answers.clear()
            handler.head(200, ETag='"v1"', Content_Length=len(DATA))
            handler.wfile.write(DATA)

    storage.answers["/s"] = busy
    assert get(storage.url("/s"), tmp_path / "s").size == len(DATA)
    assert len(storage.requests) == 3


def test_a_slide_that_is_too_large_is_refused_before_it_is_read(storage: Any, tmp_path: Path) -> None:
    limits = FetchLimits(max_bytes=1_000_000)
    assert failure(storage.put("/s", DATA), tmp_path / "s", limits).reason == "too-large"

    def endless(handler: Any) -> None:
        handler.head(200, Transfer_Encoding="chunked")
        while True:
            handler.wfile.write(b"10000\r\n" + b"z" * 65536 + b"\r\n")

    storage.answers["/endless"] = endless
    assert failure(storage.url("/endless"), tmp_path / "s", limits).reason == "too-large"


def test_an_empty_answer_is_no_slide(storage: Any, tmp_path: Path) -> None:
    assert failure(storage.put("/s", b""), tmp_path / "s").reason == "short-body"


def test_a_compressed_answer_is_refused(storage: Any, tmp_path: Path) -> None:
    storage.answers["/s"] = lambda handler: handler.head(200, Content_Encoding="gzip", Content_Length=0)
    assert "compressed" in str(failure(storage.url("/s"), tmp_path / "s"))


def test_nobody_listening_is_unreachable_and_may_pass(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error = failure(f"http://127.0.0.1:{port}/s?sig=SECRET", tmp_path / "s")
    assert (error.reason, error.transient) == ("unreachable", True)


def test_a_redirect_within_the_policy_is_followed(storage: Any, tmp_path: Path) -> None:
    storage.put("/s", DATA)
    storage.answers["/r"] = lambda handler: handler.head(307, Location="/s?sig=SECRET", Content_Length=0)
    assert get(storage.url("/r"), tmp_path / "s").size == len(DATA)


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:{port}/s", "http://localhost:{port}/s", "http://[::ffff:127.0.0.1]:{port}/s",
     "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "http://2130706433:{port}/s"],
)  # fmt: skip
def test_a_redirect_to_the_inside_is_refused(storage: Any, tmp_path: Path, target: str) -> None:
    """The first host is listed as allowed; what it redirects to is judged by itself."""
    storage.put("/s", DATA)
    location = target.format(port=storage.port)
    storage.answers["/r"] = lambda handler: handler.head(302, Location=location, Content_Length=0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        policy = UrlPolicy(allow_hosts=frozenset({f"127.0.0.1:{storage.port}"}))
        if target == "http://127.0.0.1:{port}/s":
            location = f"http://127.0.0.1:{other.getsockname()[1]}/s"
        assert failure(storage.url("/r"), tmp_path / "s", policy=policy).reason == "refused"
        other.settimeout(0)
        with pytest.raises(BlockingIOError):
            other.accept()
    assert [path for path, _ in storage.requests] == ["/r"]


def test_endless_redirects_end(storage: Any, tmp_path: Path) -> None:
    storage.answers["/r"] = lambda handler: handler.head(302, Location="/r", Content_Length=0)
    assert "redirects more than" in str(failure(storage.url("/r"), tmp_path / "s"))


def test_loopback_is_refused_without_leave(storage: Any, tmp_path: Path) -> None:
    error = failure(storage.put("/s", DATA), tmp_path / "s", policy=UrlPolicy())
    assert error.reason == "refused"
    assert storage.requests == []


def test_a_name_that_changes_its_mind_is_judged_where_it_connects(
    storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: whatever a second look-up would say, the connection goes to the address that was judged."""
    storage.put("/s", DATA)
    answers = iter(["127.0.0.1"])
    real = socket.getaddrinfo

    def rebinding(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        return real(next(answers) if host == "slides.example" else host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    policy = UrlPolicy(allow_hosts=frozenset({f"slides.example:{storage.port}"}))
    url = f"http://slides.example:{storage.port}/s"
    assert get(url, tmp_path / "s", policy=policy).size == len(DATA)
    assert next(answers, None) is None  # asked once


def test_progress_that_raises_ends_the_fetch_and_leaves_nothing(storage: Any, tmp_path: Path) -> None:
    class CancelledByPersonError(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        if done:
            raise CancelledByPersonError

    with pytest.raises(CancelledByPersonError):
        get(storage.put("/s", DATA), tmp_path / "s", on_progress=stop)
    assert not (tmp_path / "s").exists()


def test_a_file_url_is_copied_from_its_folder(tmp_path: Path) -> None:
    source = tmp_path / "slides" / "a.svs"
    source.parent.mkdir()
    source.write_bytes(DATA)
    policy = UrlPolicy(file_roots=(source.parent,))
    result = get(source.as_uri(), tmp_path / "copy", policy=policy)
    assert (tmp_path / "copy").read_bytes() == DATA
    assert revalidate(source.as_uri(), result.etag, policy=policy)
    source.write_bytes(DATA[:-1])
    assert not revalidate(source.as_uri(), result.etag, policy=policy)
    assert failure((source.parent / "b.svs").as_uri(), tmp_path / "copy2", policy=policy).reason == "not-found"


def test_a_copy_is_good_while_the_storage_says_so(storage: Any) -> None:
    url = storage.put("/s", DATA)
    assert revalidate(url, '"v1"', limits=QUICK, policy=HERE)
    assert not revalidate(url, '"v0"', limits=QUICK, policy=HERE)
    assert not revalidate(url, None, limits=QUICK, policy=HERE)
    storage.answers["/s"] = lambda handler: handler.error(403, "AccessDenied", "Request has expired")
    with pytest.raises(SlideFetchError) as error:
        revalidate(url, '"v1"', limits=QUICK, policy=HERE)
    assert error.value.reason == "expired"


def test_many_fetches_at_once_do_not_disturb_each_other(storage: Any, tmp_path: Path) -> None:
    url = storage.put("/s", DATA)
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(get(url, tmp_path / str(n)).sha256)) for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [hashlib.sha256(DATA).hexdigest()] * 6


def test_no_log_line_holds_a_signature_even_at_debug(
    storage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage.put("/s", DATA)
    storage.answers["/r"] = lambda handler: handler.head(302, Location="/s?sig=SECRET", Content_Length=0)
    with caplog.at_level(logging.DEBUG):
        get(storage.url("/r"), tmp_path / "s")
        with pytest.raises(SlideFetchError):
            get(storage.url("/none"), tmp_path / "s")
    assert "HTTP Request" in caplog.text
    assert "SECRET" not in caplog.text
