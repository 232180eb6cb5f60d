"""The blob server as a process: what its clients may do to it, and what it costs."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from mhs_ray.domain.errors import BlobError, BlobNotFoundError, BlobsFullError
from mhs_ray.store.blobs.local import LocalBlobs, LocalLimits
from mhs_ray.store.blobs.signing import SigningKeys
from tests.blob_server_fixtures import KEY, BlobServer, blob_server

HOUR = timedelta(hours=1)
MB = 1_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlobServer]:
    caps = {"max_blob": 400 * MB, "max_blob_by_prefix": {"small/": 1000}, "idle_s": 2.0}
    with blob_server(tmp_path_factory.mktemp("blobs"), **caps) as running:
        yield running


@pytest.fixture
def store(server: BlobServer) -> LocalBlobs:
    return server.store


def pieces(total: int) -> Iterator[bytes]:
    block = bytes(range(256)) * 4096
    for start in range(0, total, len(block)):
        yield block[: min(len(block), total - start)]


def raw_exchange(url: str, head: str, body: bytes = b"", close: bool = False) -> bytes:
    """Send bytes as they are; close: end our side after them. Returns all that came back."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as s:
        s.sendall(head.format(target=f"{parts.path}?{parts.query}", host=parts.netloc).encode() + body)
        if close:
            s.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := s.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def leftovers(store: LocalBlobs) -> list[str]:
    """What still lies in ``incoming`` after the server had time to clean up behind a connection that ended."""
    deadline = time.monotonic() + 10
    while (there := sorted(p.name for p in (store.root / "incoming").iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return there


# ---- memory and pace


def test_300_mb_in_and_out_never_lie_in_memory(server: BlobServer) -> None:
    before, total = server.peak_rss_bytes(), 300 * MB
    expected = hashlib.sha256()
    for piece in pieces(total):
        expected.update(piece)
    url = server.store.sign("big/slide", "PUT", HOUR)
    answer = httpx.put(url, content=pieces(total), headers={"Content-Length": str(total)}, timeout=120)
    assert answer.status_code == 200
    digest = hashlib.sha256()
    with httpx.stream("GET", server.store.sign("big/slide", "GET", HOUR), timeout=120) as stream:
        for piece in stream.iter_raw():
            digest.update(piece)
    assert digest.digest() == expected.digest()
    assert server.peak_rss_bytes() - before < 100 * MB
    server.store.delete("big/slide")


def test_readers_that_do_not_read_hold_no_memory_and_are_let_go(server: BlobServer) -> None:
    server.store.put("slow/slide", bytes(50 * MB))
    before = server.peak_rss_bytes()
    parts = urlsplit(server.store.sign("slow/slide", "GET", HOUR))
    sockets = [socket.create_connection((parts.hostname, parts.port), timeout=30) for _ in range(8)]
    try:
        for s in sockets:
            s.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        # Others are served meanwhile.
        assert httpx.get(server.store.sign("slow/slide", "GET", HOUR), headers={"Range": "bytes=0-9"}).content == bytes(
            10
        )
        for s in sockets:  # after idle_s the server ends them: what comes is cut short
            received = 0
            if s is sockets[0]:
                time.sleep(4)
            try:
                while piece := s.recv(1 << 20):
                    received += len(piece)
            except ConnectionResetError:
                pass
            assert 0 < received < 50 * MB
    finally:
        for s in sockets:
            s.close()
    assert server.peak_rss_bytes() - before < 100 * MB


# ---- what comes in


def test_a_body_shorter_than_announced_leaves_nothing(store: LocalBlobs) -> None:
    head = "PUT {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\n"
    answer = raw_exchange(store.sign("short", "PUT", HOUR), head, b"x" * 999, close=True)
    assert b" 200 " not in answer
    assert store.stat("short") is None
    assert leftovers(store) == []


def test_a_client_that_stalls_is_told_and_leaves_nothing(store: LocalBlobs) -> None:
    head = "PUT {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\n"
    answer = raw_exchange(store.sign("stalled", "PUT", HOUR), head, b"x" * 10)
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"connection: close" in answer
    assert store.stat("stalled") is None
    assert leftovers(store) == []


def test_a_body_of_unknown_length_is_taken_up_to_the_cap(store: LocalBlobs) -> None:
    assert httpx.put(store.sign("small/ok", "PUT", HOUR), content=pieces(1000)).status_code == 200
    answer = httpx.put(store.sign("small/over", "PUT", HOUR), content=pieces(1001))
    assert (answer.status_code, "EntityTooLarge" in answer.text) == (413, True)
    assert store.stat("small/over") is None
    assert leftovers(store) == []


def test_a_body_announced_too_large_is_refused_before_it_is_sent(store: LocalBlobs) -> None:
    head = "PUT {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2000000000\r\nExpect: 100-continue\r\n\r\n"
    answer = raw_exchange(store.sign("huge", "PUT", HOUR), head)
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert b"100 Continue" not in answer


def test_a_client_that_sends_first_and_reads_later_still_learns_why(store: LocalBlobs) -> None:
    url = store.sign("late", "PUT", HOUR).replace("Signature=", "Signature=0")
    answer = httpx.put(url, content=bytes(8 * MB))
    assert (answer.status_code, "SignatureDoesNotMatch" in answer.text) == (403, True)


def test_of_many_writers_that_must_not_replace_one_wins(store: LocalBlobs) -> None:
    url = store.sign("race", "PUT", HOUR)
    with ThreadPoolExecutor(8) as pool:
        codes = list(
            pool.map(lambda i: httpx.put(url, content=b"%d" % i, headers={"If-None-Match": "*"}).status_code, range(8))
        )
    assert sorted(codes) == [200] + [412] * 7
    assert leftovers(store) == []


def test_an_upload_in_pieces_goes_on_after_a_cut(store: LocalBlobs) -> None:
    url, data = store.sign("pieces", "PUT", HOUR), os.urandom(3000)

    def send(start: int, end: int, body: bytes | None = None) -> httpx.Response:
        content = data[start:end] if body is None else body
        return httpx.put(url, content=content, headers={"Content-Range": f"bytes {start}-{end - 1}/3000"})

    assert httpx.head(url).headers["upload-offset"] == "0"
    assert (send(0, 1000).status_code, store.stat("pieces")) == (202, None)
    skipped = send(2000, 3000)
    assert (skipped.status_code, skipped.headers["upload-offset"]) == (409, "1000")
    head = (
        "PUT {target} HTTP/1.1\r\nHost: {host}\r\nContent-Range: bytes 1000-1999/3000\r\nContent-Length: 1000\r\n\r\n"
    )
    raw_exchange(url, head, data[1000:1400], close=True)  # cut
    there = int(httpx.head(url).headers["upload-offset"])
    assert 1000 <= there <= 1400
    assert send(there, 3000).status_code == 200
    with store.open("pieces") as stream:
        assert stream.read() == data
    assert httpx.head(url).headers["upload-offset"] == "0"
    assert send(0, 10, b"other").status_code == 400
    assert leftovers(store) == []


# ---- what goes out


def test_head_tells_size_and_etag_without_a_body(store: LocalBlobs) -> None:
    info = store.put("head", b"0123456789")
    answer = httpx.head(store.sign("head", "GET", HOUR))
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "10", b"")
    assert answer.headers["etag"] == f'"{info.etag}"'


def test_if_range_gives_the_part_of_the_same_blob_and_else_the_whole(store: LocalBlobs) -> None:
    old = store.put("if-range", b"0123456789")
    url, headers = store.sign("if-range", "GET", HOUR), {"Range": "bytes=4-", "If-Range": f'"{old.etag}"'}
    assert httpx.get(url, headers=headers).status_code == 206
    store.put("if-range", b"abcdefghij")
    answer = httpx.get(url, headers=headers)
    assert (answer.status_code, answer.content) == (200, b"abcdefghij")


def test_conditions_on_the_etag_are_kept(store: LocalBlobs) -> None:
    etag = f'"{store.put("conditions", b"x").etag}"'
    url = store.sign("conditions", "GET", HOUR)
    assert httpx.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert httpx.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
    assert httpx.get(url, headers={"If-Match": '"other"'}).status_code == 412
    assert httpx.get(url, headers={"If-Match": etag}).status_code == 200


def test_other_methods_and_other_paths_are_refused(store: LocalBlobs) -> None:
    store.put("there", b"x")
    url = store.sign("there", "GET", HOUR)
    assert httpx.delete(url).status_code == 405
    assert httpx.options(url, headers={"Origin": "https://evil.example"}).status_code == 405
    assert httpx.get(url.replace("/blobs/there", "/blobs/")).status_code == 403
    assert httpx.get(store.base_url + "/").status_code == 403


def test_no_page_of_another_origin_is_let_in_unless_it_is_named(store: LocalBlobs, tmp_path: Path) -> None:
    store.put("cors", b"x")
    page = {"Origin": "https://console.example"}
    assert "access-control-allow-origin" not in httpx.get(store.sign("cors", "GET", HOUR), headers=page).headers
    with blob_server(tmp_path, cors_origins=["https://console.example"]) as open_one:
        open_one.store.put("cors", b"x")
        url = open_one.store.sign("cors", "GET", HOUR)
        assert httpx.get(url, headers=page).headers["access-control-allow-origin"] == "https://console.example"
        assert httpx.options(url, headers=page).status_code == 204
        other = httpx.get(url, headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


# ---- what lies about


@pytest.mark.parametrize(
    "path", ["/blobs/../server.json", "/blobs/%2e%2e/server.json", "/blobs//etc/passwd", "/blobs/a%00b"]
)
def test_a_path_out_of_the_folder_leads_nowhere(store: LocalBlobs, path: str) -> None:
    query = store.sign("x", "GET", HOUR).split("?")[1]
    head = f"GET {path}?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = raw_exchange(store.base_url, head.replace("{", "{{").replace("}", "}}"))
    assert answer.split(b"\r\n")[0].split()[1] in {b"400", b"403"}
    assert KEY.encode() not in answer


def test_links_are_not_followed(store: LocalBlobs, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / "folder").mkdir()
    blobs = store.root / "blobs"
    (blobs / "linked").symlink_to(secret)
    (blobs / "folder").symlink_to(tmp_path)
    os.mkfifo(blobs / "fifo")
    for key in ("linked", "folder/secret", "fifo"):
        assert httpx.get(store.sign(key, "GET", HOUR)).status_code == 404, key
        assert store.stat(key) is None
        with pytest.raises(BlobNotFoundError):
            store.open(key)
    with pytest.raises(BlobError, match="or a link"):
        store.put("folder/new", b"x")
    assert not (tmp_path / "new").exists()
    assert [b.key for b in store.list("f")] == []
    store.put("linked", b"mine")  # replaces the link, not what it points to
    assert secret.read_text() == "secret"
    for name in ("folder", "fifo"):
        (blobs / name).unlink()


def test_a_key_cannot_be_a_blob_and_a_folder(store: LocalBlobs) -> None:
    store.put("both", b"x")
    with pytest.raises(BlobError, match="already a blob"):
        store.put("both/deeper", b"x")
    assert store.stat("both/deeper") is None
    assert httpx.put(store.sign("both/deeper", "PUT", HOUR), content=b"x").status_code == 400
    store.delete("both")
    store.put("both/deeper", b"x")
    store.delete("both/deeper")
    store.put("both", b"y")  # the folder went with its last blob
    store.delete("both")


# ---- limits, keys, configuration


def test_a_full_store_answers_507_and_takes_again_once_something_went(tmp_path: Path) -> None:
    with blob_server(tmp_path, quota=1000, retry_after_s=7) as server:
        store = server.store
        store.put("a", bytes(600))
        answer = httpx.put(store.sign("b", "PUT", HOUR), content=bytes(401))
        assert (answer.status_code, answer.headers["retry-after"]) == (507, "7")
        unknown_length = httpx.put(store.sign("b", "PUT", HOUR), content=pieces(401))
        assert unknown_length.status_code == 507
        with pytest.raises(BlobsFullError, match="quota of 1000 bytes"):
            store.put("b", bytes(401))
        assert leftovers(store) == []
        assert httpx.put(store.sign("b", "PUT", HOUR), content=bytes(400)).status_code == 200
        store.delete("a")
        store.put("b", bytes(1000))  # replacing counts what goes
        assert store.used_bytes() == 1000
        assert store.recount() == 1000


def test_a_disk_below_its_watermark_takes_nothing(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path, "http://x", bytes(16), LocalLimits(min_free_bytes=1 << 60))
    with pytest.raises(BlobsFullError, match="free some space"):
        store.put("a", b"x")
    assert leftovers(store) == []


def test_keys_rotate_without_breaking_urls_that_are_out(tmp_path: Path) -> None:
    with blob_server(tmp_path, keys={"1": KEY, "2": "77" * 32}, current_key="2") as server:
        server.store.put("x", b"x")
        old = LocalBlobs(server.store.root, server.store.base_url, SigningKeys("1", {"1": bytes.fromhex(KEY)}))
        unknown = LocalBlobs(server.store.root, server.store.base_url, SigningKeys("3", {"3": bytes(32)}))
        assert httpx.get(old.sign("x", "GET", HOUR)).status_code == 200
        assert httpx.get(server.store.sign("x", "GET", HOUR)).status_code == 200
        assert httpx.get(unknown.sign("x", "GET", HOUR)).status_code == 403


def test_the_log_holds_no_signature(server: BlobServer) -> None:
    httpx.put(server.store.sign("log/x", "PUT", HOUR), content=b"x")
    httpx.get(server.store.sign("log/missing", "GET", HOUR))
    text = server.log.read_text()
    assert "Signature" not in text
    assert KEY not in text


@pytest.mark.parametrize(
    ("change", "mode", "told"),
    [
        ({}, 0o644, "chmod 600"),
        ({"prot": 1}, 0o600, "prot: Extra inputs"),
        ({"port": "many"}, 0o600, "port: "),
        ({"keys": {"1": "zz"}}, 0o600, "hex secrets"),
        ({"current_key": "9"}, 0o600, "current_key among them"),
    ],
)
def test_a_bad_configuration_is_told_without_its_secrets(
    tmp_path: Path, change: dict[str, object], mode: int, told: str
) -> None:
    file = tmp_path / "server.json"
    file.write_text(json.dumps({"root": str(tmp_path), "port": 1, "keys": {"1": KEY}, "current_key": "1", **change}))
    file.chmod(mode)
    run = subprocess.run(
        [sys.executable, "-m", "mhs_ray.store.blobs.server", "--config", file],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 2
    assert told in run.stderr
    assert KEY not in run.stderr
