"""Scans: registered by upload, path or URL, and opened before anyone counts on them."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from mhs_ray.domain.errors import ConflictError, InvalidInputError, SlideError
from mhs_ray.domain.models import Principal, Scan, ScanStatus
from mhs_ray.ports import BlobStore
from mhs_ray.services.names import clean_name
from mhs_ray.slides.cache import SlideSource
from mhs_ray.slides.check import check_slide_isolated
from mhs_ray.slides.fetch import FetchLimits, revalidate
from mhs_ray.slides.reader import SlideFacts
from mhs_ray.slides.url_guard import UrlPolicy
from mhs_ray.store.blobs.local import LocalBlobs
from mhs_ray.store.blobs.s3_slides import S3Slides
from mhs_ray.store.sql.scans import Scans

UPLOAD_LIFE: Final = timedelta(hours=12)
JOB_URL_LIFE: Final = timedelta(hours=12)


class ScanService:
    """policy: which URLs, and which local paths, may be registered."""

    def __init__(self, scans: Scans, blobs: BlobStore, policy: UrlPolicy, s3: S3Slides | None = None) -> None:
        self.scans = scans
        self._blobs = blobs
        self._policy = policy
        self._s3 = s3

    def begin_upload(
        self, who: Principal, filename: str, name: str | None, number: int | None
    ) -> tuple[Scan, str, datetime]:
        """Make a scan whose bytes follow; returns it with the URL to PUT them to and until when that works."""
        filename = clean_name(Path(filename.replace("\\", "/")).name, "$.filename")
        scan = self.scans.create(
            who.company_id, who.name, name=clean_name(name or filename), source="blob",
            location={"filename": filename}, status=ScanStatus.UPLOADING, number=number,
        )  # fmt: skip
        key = _slide_key(scan)
        self.scans.update(scan.id, location={"key": key, "filename": filename})
        return scan, self._blobs.sign(key, "PUT", UPLOAD_LIFE), datetime.now(UTC) + UPLOAD_LIFE

    def resume_upload(self, who: Principal, scan_id: int) -> tuple[Scan, str, datetime]:
        """Return a scan whose upload was begun, with a fresh URL to go on at. Raises ConflictError."""
        scan = self.scans.get(who.company_id, scan_id)
        location = self.scans.location(scan_id)
        if scan.status is not ScanStatus.UPLOADING or "key" not in location:
            raise ConflictError(f"scan {scan_id} is {scan.status}; there is no upload to go on with")
        return scan, self._blobs.sign(location["key"], "PUT", UPLOAD_LIFE), datetime.now(UTC) + UPLOAD_LIFE

    def complete_upload(self, who: Principal, scan_id: int) -> Scan:
        """Open what was uploaded; a file that is no good leaves neither scan nor blob. Raises SlideError."""
        scan = self.scans.get(who.company_id, scan_id)
        if scan.status is ScanStatus.READY:
            return scan
        key = self.scans.location(scan_id).get("key", _slide_key(scan))
        stored = self._blobs.stat(key)
        if stored is None:
            raise ConflictError(f"nothing was uploaded for scan {scan_id} yet; PUT the file to its upload URL first")
        try:
            facts = self._check_blob(key)
        except SlideError:
            self._blobs.delete(key)
            self.scans.delete(who.company_id, scan_id)
            raise
        self.scans.update(scan_id, status=ScanStatus.READY, size_bytes=stored.size, facts=facts.to_json())
        return self.scans.get(who.company_id, scan_id)

    def add_path(self, who: Principal, path: str, name: str | None, number: int | None) -> Scan:
        """Register a file or a DICOM folder on this machine. Raises InvalidInputError, SlideError."""
        if not Path(path).is_absolute():
            raise InvalidInputError.at("$.path", "give an absolute path")
        try:
            resolved = self._policy.check_file(Path(path).as_uri())
        except SlideError as error:
            raise InvalidInputError.at("$.path", str(error)) from None
        if not resolved.exists():
            raise InvalidInputError.at("$.path", f"there is no file {path}")
        facts = check_slide_isolated(resolved)
        files = [resolved] if resolved.is_file() else [f for f in resolved.rglob("*") if f.is_file()]
        return self.scans.create(
            who.company_id, who.name, name=clean_name(name or resolved.name), source="path",
            location={"path": str(resolved)}, status=ScanStatus.READY, number=number,
            size_bytes=sum(f.stat().st_size for f in files), facts=facts.to_json(),
        )  # fmt: skip

    def add_url(self, who: Principal, url: str, name: str | None, number: int | None) -> Scan:
        """Register a slide by URL after asking whether its bytes can be had. Raises SlideFetchError."""
        revalidate(url, None, limits=FetchLimits(stall_s=10, deadline_s=30, retries=1), policy=self._policy)
        shown = clean_name(name or Path(unquote(urlsplit(url).path)).name or urlsplit(url).hostname or "scan")
        return self.scans.create(
            who.company_id, who.name, name=shown, source="url", location={"urls": [url]},
            status=ScanStatus.READY, number=number,
        )  # fmt: skip

    def delete(self, who: Principal, scan_id: int) -> None:
        """Remove a scan that no job used, with its bytes where they are ours."""
        self.scans.get(who.company_id, scan_id)
        location = self.scans.location(scan_id)
        self.scans.delete(who.company_id, scan_id)
        if "key" in location:
            self._blobs.delete(location["key"])
        self._blobs.delete(f"thumbnails/{who.company_id}/{scan_id}.jpeg")

    def signed_url(self, who: Principal, scan_id: int, life: timedelta) -> tuple[str, datetime]:
        """Return a URL of the bytes that works for `life`. Raises ConflictError where they are not ours."""
        scan = self.scans.get(who.company_id, scan_id)
        location = self.scans.location(scan_id)
        if scan.status is not ScanStatus.READY or "key" not in location:
            raise ConflictError(f"scan {scan_id} was registered by {scan.source}; only uploaded ones have a URL here")
        return self._blobs.sign(location["key"], "GET", life, location["filename"]), datetime.now(UTC) + life

    def sources(self, scan_id: int) -> tuple[tuple[str, ...], str | None]:
        """Return where a node gets the bytes now (fresh URLs), and an identity under which it may cache them."""
        location = self.scans.location(scan_id)
        if "key" in location:
            stored = self._blobs.stat(location["key"])
            identity = f"{location['key']} {stored.etag}" if stored else None
            return (self._blobs.sign(location["key"], "GET", JOB_URL_LIFE, location["filename"]),), identity
        if "path" in location:
            return SlideSource.of_path(Path(location["path"])).urls, None
        if "s3" in location and self._s3 is not None:
            return (self._s3.sign(location["s3"], JOB_URL_LIFE),), None
        return tuple(location["urls"]), None

    def local_copy(self, scan_id: int) -> Path | None:
        """Return the slide's file where it lies on this machine, None where it does not."""
        location = self.scans.location(scan_id)
        if "path" in location:
            return Path(location["path"])
        return self._path(location["key"]) if "key" in location else None

    def _check_blob(self, key: str) -> SlideFacts:
        path = self._path(key)
        if path is not None:
            return check_slide_isolated(path)
        with tempfile.TemporaryDirectory() as folder, self._blobs.open(key) as source:
            copy = Path(folder) / "slide"
            with copy.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            return check_slide_isolated(copy)

    def _path(self, key: str) -> Path | None:
        return self._blobs.root / "blobs" / key if isinstance(self._blobs, LocalBlobs) else None


def _slide_key(scan: Scan) -> str:
    return f"scans/{scan.company_id}/{scan.id}/slide"
