"""A short look at a slide: what it is, and a name of its content that is the same wherever a copy lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.fingerprint import glance
from mhs_ray.slides.url_guard import UrlPolicy


@pytest.fixture
def policy(tmp_path: Path) -> UrlPolicy:
    return UrlPolicy(allow_private=True, file_roots=(tmp_path,))


def _slide(path: Path, body: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"II*\0" + body)
    return path.as_uri()


def test_copies_have_one_fingerprint_and_any_difference_that_is_looked_at_another(
    tmp_path: Path, policy: UrlPolicy
) -> None:
    body = os.urandom(3 << 20)
    first = glance(_slide(tmp_path / "a.svs", body), policy)
    assert first.format == "svs"
    assert first.size == len(body) + 4
    assert glance(_slide(tmp_path / "x" / "copy.svs", body), policy) == first
    for at in (0, len(body) // 2, len(body) - 1):
        changed = bytearray(body)
        changed[at] ^= 1
        assert glance(_slide(tmp_path / "b.svs", bytes(changed)), policy).content != first.content
    assert glance(_slide(tmp_path / "c.svs", body + b"x"), policy).content != first.content


def test_a_small_slide_is_read_whole(tmp_path: Path, policy: UrlPolicy) -> None:
    one, two = (glance(_slide(tmp_path / f"{n}.tif", b"abc" * 10 + bytes([n])), policy) for n in (1, 2))
    assert (one.format, two.format) == ("tiff", "tiff")
    assert one.content != two.content


def test_a_dicom_folder_is_one_slide(tmp_path: Path, policy: UrlPolicy) -> None:
    for name in ("1.dcm", "2.dcm"):
        path = tmp_path / "series" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(128) + b"DICM" + name.encode())
    assert glance((tmp_path / "series").as_uri(), policy).format == "dicom"


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("gone.svs", None, "there is no file"),
        ("empty.svs", b"", "is empty"),
        ("page.svs", b"<html>sign in</html>", "a web page"),
        ("notes.txt", b"hello", "no format that this platform reads"),
    ],
)
def test_what_is_no_slide_is_told_in_words(
    tmp_path: Path, policy: UrlPolicy, name: str, body: bytes | None, told: str
) -> None:
    path = tmp_path / name
    if body is not None:
        path.write_bytes(body)
    with pytest.raises(SlideError, match=told):
        glance(path.as_uri(), policy)


def test_a_slide_outside_of_the_allowed_folders_is_not_looked_at(tmp_path: Path) -> None:
    inside = tmp_path / "ours"
    inside.mkdir()
    with pytest.raises(SlideError, match="not in a folder that slides may be taken from"):
        glance(_slide(tmp_path / "theirs.svs", b"x"), UrlPolicy(file_roots=(inside,)))
