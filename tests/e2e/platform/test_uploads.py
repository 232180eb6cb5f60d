"""A slide of any size goes straight to the blob store, and from there to the container by a signed URL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx

from tests.e2e.platform.harness import Platform, eventually, processes

SIZE = 1_200_000_000
_PIECE = bytes(4 << 20)


def peak_memory(platform: Platform) -> dict[int, int]:
    """Return pid → the most memory ever resident, bytes, of the platform's API, proxy and blob server."""
    peaks = {}
    for pid in processes([str(platform.home)]):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        except OSError:
            continue
        if found and any(word in command for word in (b"ServeReplica", b"ProxyActor", b"haproxy", b"blobs.server")):
            peaks[pid] = int(found[1]) * 1024
    return peaks


def test_a_slide_of_more_than_a_gigabyte_is_streamed_in_and_served_by_range(platform: Platform, slide: Path) -> None:
    head = slide.read_bytes()

    def content() -> Iterator[bytes]:
        yield head  # a whole slide; what follows belongs to no tile
        left = SIZE - len(head)
        while left:
            piece = _PIECE[:left]
            yield piece
            left -= len(piece)

    before = peak_memory(platform)
    assert len(before) >= 2
    made = platform.post("/v1/scans", {"filename": "large.svs"})
    put = httpx.put(
        made["upload_url"], content=content(), headers={"Content-Length": str(SIZE)}, timeout=120, trust_env=False
    )
    assert put.status_code in (200, 201, 204), put.text
    ready = platform.post(f"/v1/scans/{made['id']}/complete", status=200)
    assert (ready["status"], ready["size_bytes"]) == ("ready", SIZE)
    assert ready["facts"]["width"] > 1000
    after = peak_memory(platform)
    grown = {pid: after[pid] - before[pid] for pid in before if pid in after}
    assert grown
    assert max(grown.values()) < 200 << 20, grown

    signed = platform.get(f"/v1/scans/{made['id']}/url", expires_in=60)["url"]
    part = httpx.get(signed, headers={"Range": "bytes=1000-1999"}, trust_env=False)
    assert (part.status_code, part.content) == (206, head[1000:2000])
    assert part.headers["content-range"] == f"bytes 1000-1999/{SIZE}"
    assert httpx.get(signed[:-2], trust_env=False).status_code == 403

    assert platform.api.delete(f"/v1/scans/{made['id']}").status_code == 204
    assert platform.api.get(f"/v1/scans/{made['id']}").status_code == 404
    left = [p for p in (platform.home / "blobs").rglob("*") if p.is_file() and p.stat().st_size == SIZE]
    assert left == []


def test_a_signed_url_is_refused_once_it_expired(platform: Platform, slide: Path) -> None:
    made = platform.post("/v1/scans", {"filename": "short.svs"})
    httpx.put(made["upload_url"], content=slide.read_bytes(), trust_env=False).raise_for_status()
    scan = platform.post(f"/v1/scans/{made['id']}/complete", status=200)
    given = platform.get(f"/v1/scans/{scan['id']}/url", expires_in=1)
    ends = datetime.fromisoformat(given["expires_at"])

    def refused() -> bool:
        answer = httpx.get(given["url"], headers={"Range": "bytes=0-0"}, trust_env=False)
        assert answer.status_code in (206, 403)
        assert answer.status_code == 206 or datetime.now(UTC) >= ends.replace(microsecond=0)
        return answer.status_code == 403

    eventually(refused, "the URL is refused")
