"""The files server as an ASGI application, without a network."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from mhs_ray.sandbox.files import FileServer

DATA = bytes(range(256)) * 40
CAP = 100_000


@pytest.fixture
def server(tmp_path: Path) -> FileServer:
    (tmp_path / "slide").write_bytes(DATA)
    (tmp_path / "uploads").mkdir()
    server = FileServer(b"key", tmp_path / "uploads", CAP)
    server.publish("slide", tmp_path / "slide", "Lödén 7.svs")
    server.accept("debug")
    return server


def ask(
    server: FileServer,
    method: str,
    url: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | AsyncIterator[bytes] | None = None,
) -> httpx.Response:
    async def go() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server)) as client:
            return await client.request(method, url, headers=headers, content=body)

    return asyncio.run(go())


def slide_url(server: FileServer, seconds: float = 60) -> str:
    return server.url("slide", "GET", time.time() + seconds)


def debug_url(server: FileServer) -> str:
    return server.url("debug", "PUT", time.time() + 60)


def test_a_whole_file_comes_with_what_clients_need(server: FileServer) -> None:
    answer = ask(server, "GET", slide_url(server))
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment; filename*=utf-8''L%C3%B6d%C3%A9n%207.svs"
    assert {"etag", "last-modified"} <= set(answer.headers)


def test_head_on_a_get_url_gives_the_size_and_no_body(server: FileServer) -> None:
    answer = ask(server, "HEAD", slide_url(server))
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", str(len(DATA)))


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=10000-", 10000, 10239),
        ("bytes=-5", 10235, 10239),
        ("bytes=-999999", 0, 10239),
        ("bytes=10239-99999", 10239, 10239),
    ],
)
def test_a_range_is_a_206_of_just_those_bytes(server: FileServer, asked: str, first: int, last: int) -> None:
    answer = ask(server, "GET", slide_url(server), {"Range": asked})
    assert (answer.status_code, answer.content) == (206, DATA[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(DATA)}"
    assert answer.headers["content-length"] == str(last + 1 - first)


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=99999-100000", "bytes=-0"])
def test_a_range_beyond_the_end_is_a_416_that_tells_the_size(server: FileServer, asked: str) -> None:
    answer = ask(server, "GET", slide_url(server), {"Range": asked})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(DATA)}")


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=", "bytes", "bytes=1-2,x"])
def test_a_range_that_is_none_is_ignored(server: FileServer, asked: str) -> None:
    answer = ask(server, "GET", slide_url(server), {"Range": asked})
    assert (answer.status_code, answer.content) == (200, DATA)


def test_several_ranges_come_as_multipart(server: FileServer) -> None:
    answer = ask(server, "GET", slide_url(server), {"Range": "bytes=0-1,100-101"})
    assert answer.status_code == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    assert b"Content-Range: bytes 100-101/10240\r\n\r\nde\r\n" in answer.content


def test_if_range_gives_the_whole_file_once_it_changed(server: FileServer, tmp_path: Path) -> None:
    url = slide_url(server)
    etag = ask(server, "HEAD", url).headers["etag"]
    headers = {"Range": "bytes=0-9", "If-Range": etag}
    assert ask(server, "GET", url, headers).status_code == 206
    (tmp_path / "other").write_bytes(DATA[::-1])
    (tmp_path / "other").replace(tmp_path / "slide")
    answer = ask(server, "GET", url, headers)
    assert (answer.status_code, answer.content) == (200, DATA[::-1])


def refusal(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/xml"
    return answer.status_code, answer.text.partition("<Code>")[2].partition("<")[0]


def test_an_url_says_nothing_of_the_format_and_is_the_same_for_a_restarted_server(
    server: FileServer, tmp_path: Path
) -> None:
    again = FileServer(b"key", tmp_path / "uploads", CAP)
    assert again.url("slide", "GET", 1) == server.url("slide", "GET", 1)
    assert FileServer(b"other", tmp_path, CAP).url("slide", "GET", 1) != server.url("slide", "GET", 1)
    assert "." not in urlsplit(server.url("slide", "GET", 1)).path


def test_an_expired_url_is_refused(server: FileServer) -> None:
    assert refusal(ask(server, "GET", slide_url(server, -1))) == (403, "AccessDenied")


def test_a_tampered_url_is_refused(server: FileServer) -> None:
    url = server.url("slide", "GET", 2_000_000_000)
    path = urlsplit(url).path
    debug_path = urlsplit(debug_url(server)).path
    for bad in (
        url.replace("2000000000", "2000000001"),
        url.replace(path, debug_path),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url + "&X-Mhs-Expires=3000000000",
        url + "%C3%A9",
    ):
        assert refusal(ask(server, "GET", bad)) == (403, "SignatureDoesNotMatch"), bad
    assert refusal(ask(server, "GET", url.partition("?")[0])) == (403, "AccessDenied")


def test_a_get_url_does_not_put_and_a_put_url_does_not_get(server: FileServer) -> None:
    assert refusal(ask(server, "PUT", slide_url(server), body=b"x")) == (403, "SignatureDoesNotMatch")
    assert refusal(ask(server, "GET", debug_url(server))) == (403, "SignatureDoesNotMatch")
    assert refusal(ask(server, "DELETE", slide_url(server))) == (405, "MethodNotAllowed")


def test_what_is_not_published_is_a_404_even_when_signed(server: FileServer, tmp_path: Path) -> None:
    assert refusal(ask(server, "GET", server.url("other", "GET", time.time() + 9))) == (404, "NoSuchKey")
    assert refusal(ask(server, "PUT", server.url("slide", "PUT", time.time() + 9), body=b"")) == (404, "NoSuchKey")
    (tmp_path / "slide").unlink()
    assert refusal(ask(server, "GET", slide_url(server))) == (404, "NoSuchKey")


def test_a_second_upload_replaces_the_first_whole(server: FileServer, tmp_path: Path) -> None:
    assert server.uploaded("debug") is None
    for body in (b"first, longer", b"second"):
        answer = ask(server, "PUT", debug_url(server), body=body)
        assert answer.status_code == 200
    uploaded = server.uploaded("debug")
    assert uploaded is not None
    assert uploaded.read_bytes() == b"second"
    assert [p.name for p in (tmp_path / "uploads").iterdir()] == ["debug"]


async def pieces(count: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


def test_an_upload_of_just_the_cap_is_taken_and_a_byte_more_is_not(server: FileServer, tmp_path: Path) -> None:
    assert ask(server, "PUT", debug_url(server), body=b"x" * CAP).status_code == 200
    for body in (b"x" * (CAP + 1), pieces(11, 10_000)):
        assert refusal(ask(server, "PUT", debug_url(server), body=body)) == (413, "EntityTooLarge")
    assert (tmp_path / "uploads" / "debug").stat().st_size == CAP
    assert [p.name for p in (tmp_path / "uploads").iterdir()] == ["debug"]


def test_an_upload_folder_that_is_gone_is_a_500_without_its_path(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "uploads").rmdir()
    answer = ask(server, "PUT", debug_url(server), body=b"x")
    assert refusal(answer) == (500, "InternalError")
    assert str(tmp_path) not in answer.text
