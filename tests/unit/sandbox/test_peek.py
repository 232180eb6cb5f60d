import contextlib
import functools
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhs_ray.sandbox.peek import PeekError, _handshake, parse_head, server_name


@functools.cache
def hello(name: str | None) -> bytes:
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_the_server_name_of_openssl_is_read() -> None:
    body = _handshake(hello("api.app.example.com"))
    assert body is not None
    assert server_name(body) == "api.app.example.com"


def test_a_hello_without_a_server_name_gives_an_empty_one() -> None:
    body = _handshake(hello(None))
    assert body is not None
    assert server_name(body) == ""


def test_a_hello_split_over_records_is_put_together() -> None:
    whole = hello("api.app.example.com")
    head, body = whole[:3], whole[5:]
    pieces = [body[i : i + 50] for i in range(0, len(body), 50)]
    split = b"".join(head + len(p).to_bytes(2, "big") + p for p in pieces)
    assert _handshake(split) == _handshake(whole)


def test_an_incomplete_hello_is_not_judged_yet() -> None:
    whole = hello("api.app.example.com")
    assert all(_handshake(whole[:n]) is None for n in range(len(whole)))


@given(st.binary(max_size=300))
def test_no_bytes_make_the_hello_reader_fail_otherwise_than_by_its_error(data: bytes) -> None:
    for read in (_handshake, server_name):
        with contextlib.suppress(PeekError):
            read(data)


@given(st.integers(0, 600), st.integers(0, 255))
def test_no_damage_to_a_hello_makes_its_reader_fail_otherwise(at: int, byte: int) -> None:
    body = bytearray(_handshake(hello("api.app.example.com")) or b"")
    body[at % len(body)] = byte
    with contextlib.suppress(PeekError):
        server_name(bytes(body))


def test_a_request_head_is_read() -> None:
    head = parse_head(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nX:  y ")
    assert (head.method, head.target, head.values(b"host"), head.values(b"x")) == ("CONNECT", "a:443", ["a:443"], ["y"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/2",
        b"get / HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/1.1\r\n x: folded",
        b"GET / HTTP/1.1\r\nnocolon",
        b"GET / HTTP/1.1\r\nName : x",
        b"GET / HTTP/1.1\r\na: b\nc: d",
    ],
)
def test_a_malformed_head_is_refused(data: bytes) -> None:
    with pytest.raises(PeekError):
        parse_head(data)
