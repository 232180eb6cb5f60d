"""Ranges and signatures, which need no server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhs_ray.store.blobs.ranges import NotSatisfiableError, parse_content_range, parse_range
from mhs_ray.store.blobs.signing import Grant, SignatureError, SigningKeys, signed_path, verify

KEYS = SigningKeys("1", {"1": b"k" * 32})


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-4", (0, 5)), ("bytes=5-", (5, 10)), ("bytes=-4", (6, 10)), ("bytes=-99", (0, 10)),
        ("bytes=9-99", (9, 10)),
        ("BYTES=1-1", (1, 2)), ("bytes=4-2", None), ("bytes=0-1,3-4", None), ("items=0-1", None), ("bytes=-", None),
        ("bytes=a-b", None), ("", None), ("bytes=1-2 junk", None), ("bytes=٣-٤", None),
    ],
)  # fmt: skip
def test_one_range_is_understood_and_what_the_rfc_lets_us_ignore_is_ignored(
    header: str, expected: tuple[int, int] | None
) -> None:
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=99-100", 10), ("bytes=-0", 10), ("bytes=0-", 0)]
)
def test_a_range_outside_the_blob_is_told(header: str, size: int) -> None:
    with pytest.raises(NotSatisfiableError):
        parse_range(header, size)


@pytest.mark.parametrize(
    ("header", "expected"),
    [("bytes 0-9/10", (0, 10, 10)), ("bytes 5-6/10", (5, 7, 10)), ("bytes 5-10/10", None), ("bytes 6-5/10", None),
     ("bytes */10", None), ("bytes 0-9/*", None)],
)  # fmt: skip
def test_a_piece_says_where_it_belongs(header: str, expected: tuple[int, int, int] | None) -> None:
    assert parse_content_range(header) == expected


@given(
    st.sampled_from(["GET", "PUT"]),
    st.text("abc/._-", min_size=1, max_size=20),
    st.integers(1, 2**40),
    st.none() | st.text(max_size=20).filter(lambda t: t.isprintable()),
)
def test_a_signature_grants_what_was_signed_until_it_expires(
    method: str, key: str, expires: int, filename: str | None
) -> None:
    query = signed_path(KEYS, method, key, expires, filename).split("?", 1)[1]
    assert verify(KEYS, f"/blobs/{key}", query, expires - 0.5) == Grant(method, key, filename)
    with pytest.raises(SignatureError, match="expired"):
        verify(KEYS, f"/blobs/{key}", query, expires)
    with pytest.raises(SignatureError, match="does not fit"):
        verify(KEYS, f"/blobs/{key}x", query, expires - 0.5)


@pytest.mark.parametrize(
    "change",
    [
        ("X-Mhs-Method=GET", "X-Mhs-Method=PUT"), ("X-Mhs-Expires=1000", "X-Mhs-Expires=2000"),
        ("X-Mhs-Expires=1000", "X-Mhs-Expires=01000"), ("X-Mhs-Expires=1000", "X-Mhs-Expires=never"),
        ("X-Mhs-Filename=a.svs", "X-Mhs-Filename=b.svs"), ("&X-Mhs-Filename=a.svs", ""), ("X-Mhs-Key=1", "X-Mhs-Key=2"),
        ("X-Mhs-Signature=", "X-Mhs-Signature=%C3%A9"), ("X-Mhs-Key=1", "X-Mhs-Key=1&X-Mhs-Key=1"),
    ],
)  # fmt: skip
def test_a_changed_query_grants_nothing(change: tuple[str, str]) -> None:
    query = signed_path(KEYS, "GET", "a", 1000, "a.svs").split("?", 1)[1]
    assert change[0] in query
    with pytest.raises(SignatureError):
        verify(KEYS, "/blobs/a", query.replace(*change), 1)


def test_a_signing_key_must_be_long_enough_and_named() -> None:
    with pytest.raises(ValueError, match="shorter than 16 bytes"):
        SigningKeys("1", {"1": b"short"})
    with pytest.raises(ValueError, match="not among"):
        SigningKeys("2", {"1": b"k" * 32})
