"""Scans: whole slide images."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from mhs_ray.client import wire as w
from mhs_ray.client.calls import Calls
from mhs_ray.client.errors import ApiError, UnreachableError

_PIECE: Final = 1 << 20

Progress = Callable[[int, int], None]
"""Told (bytes so far, bytes in all)."""


class ScanCalls(Calls):
    """What models run on."""

    def scans(
        self,
        limit: int | None = None,
        *,
        name: str | None = None,
        status: str | None = None,
        scan_id: str | None = None,
    ) -> AsyncIterator[w.Scan]:
        """Yield scans, newest first. name: part of it. scan_id: the contract's SCAN_ID."""
        return self._pages("/v1/scans", limit, name=name, status=status, scan_id=scan_id)

    async def scan(self, scan_id: int) -> w.Scan:
        """Return one scan. scan_id: its `id`."""
        return cast(w.Scan, await self._get(f"/v1/scans/{scan_id}"))

    async def add_scan(self, body: Mapping[str, Any]) -> w.Scan:
        """Register a scan by `path`, by `url`, or by `filename` for an upload that follows."""
        return cast(w.Scan, await self._post("/v1/scans", {k: v for k, v in body.items() if v is not None}))

    async def add_scan_upload(
        self, path: Path, *, name: str | None = None, scan_id: str | None = None, progress: Progress | None = None
    ) -> w.Scan:
        """Upload a file, streamed, and register it; one that does not arrive or is no slide leaves no scan."""
        with await self.http.wire.aside(path.open, "rb") as source:
            size = (await self.http.wire.aside(path.stat)).st_size
            scan = await self.add_scan({"filename": path.name, "name": name, "scan_id": scan_id})
            try:
                await self.http.put_signed(str(scan["upload_url"]), _pieces(source, size, progress), size)
                return cast(w.Scan, await self._post(f"/v1/scans/{scan['id']}/complete", repeatable=True))
            except BaseException:
                # Gone already, or out of reach: the first error is the one to tell.
                with contextlib.suppress(ApiError, UnreachableError):
                    await self.delete_scan(scan["id"])
                raise

    async def scan_url(self, scan_id: int, expires_in: int = 3600) -> w.SignedUrl:
        """Return a URL of an uploaded slide that works for `expires_in` seconds."""
        return cast(w.SignedUrl, await self._get(f"/v1/scans/{scan_id}/url", expires_in=expires_in))

    async def delete_scan(self, scan_id: int) -> None:
        """Delete a scan that no job used."""
        await self._delete(f"/v1/scans/{scan_id}")


def _pieces(source: BinaryIO, size: int, progress: Progress | None) -> Iterator[bytes]:
    sent = 0
    while piece := source.read(_PIECE):
        yield piece
        sent += len(piece)
        if progress:
            progress(sent, size)
