"""Whatever strangers push, an image is admitted or refused in words; nothing else comes out."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mhs_ray.domain.errors import AdmissionError
from mhs_ray.registry.admission import AdmissionLimits, admit
from mhs_ray.registry.layers import decompress, entries
from mhs_ray.registry.manifests import choose_platform, parse_config, parse_manifest
from tests.registry_images import Memory, image, sha, special, tar

ARCHIVE = tar(
    [
        ("app/main.py", b"print(1)" * 100),
        ("d/" * 90 + "long" * 30, b"x"),
        special("link", tarfile.SYMTYPE, "t" * 120),
        special("dev", tarfile.CHRTYPE),
    ]
)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=150)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(sha(b"")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["config", "layers", "manifests", "digest", "size", "mediaType", "schemaVersion", "rootfs", "diff_ids", "Env",
         "Labels", "Cmd", "Entrypoint", "architecture", "os", "platform", "history", "Volumes", "User", "urls"]
    ), inner, max_size=6),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 255)), max_size=12),
    st.integers(0, len(ARCHIVE)),
)
def test_a_damaged_archive_is_read_or_refused(changes: list[tuple[int, int]], end: int) -> None:
    data = bytearray(ARCHIVE)
    for at, value in changes:
        data[at] = value
    pieces = (bytes(data[i : i + 333]) for i in range(0, end, 333))
    with contextlib.suppress(AdmissionError):
        assert len(list(entries(pieces))) < 100


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.integers(0, 800))
def test_damaged_gzip_is_read_or_refused(changes: list[tuple[int, int]], end: int) -> None:
    data = bytearray(gzip.compress(ARCHIVE, mtime=0))
    for at, value in changes:
        data[at % len(data)] = value
    with contextlib.suppress(AdmissionError):
        assert b"".join(decompress(iter([bytes(data[:end])]), "gzip"))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_an_honest_archive_is_read_as_tarfile_reads_it(files: list[tuple[str, bytes]], dialect: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=dialect) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        expected = [(member.name, member.size) for member in archive]
    raw = out.getvalue()
    found = [(e.name.rstrip("/"), e.size) for e in entries(raw[i : i + 100] for i in range(0, len(raw), 100))]
    assert found == [(name.rstrip("/"), size) for name, size in expected]


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_any_json_is_an_image_or_refused(document: Any) -> None:
    body = json.dumps(document).encode()
    for read in (choose_platform, lambda b: parse_manifest(b, 120, False), lambda b: parse_config(b, 1)):
        with contextlib.suppress(AdmissionError):
            read(body)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["config", "rootfs", "history", "architecture"]), JSON)
def test_any_configuration_is_admitted_or_refused_with_details_that_are_json(key: str, value: Any) -> None:
    source = Memory()
    digest = image(source, change_config=lambda config: config.update({key: value}))
    with contextlib.suppress(AdmissionError):
        json.dumps(admit(source, digest, AdmissionLimits()).details)
