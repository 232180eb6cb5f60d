"""Wire types of scans."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from api.schemas.base import Body, Text, Wire
from mhs_ray.domain import models as m


class ScanIn(Body):
    """A scan to register: by `url`, by `path` on the platform's machine, or by an upload that follows (`filename`)."""

    name: Text | None = None
    url: Text | None = Field(None, description="http(s) URL of the slide, e.g. a presigned S3 URL")
    path: Text | None = Field(None, description="file or DICOM folder on the platform's machine")
    filename: Text | None = Field(None, description="asks for an upload URL for a file of this name")
    scan_id: str | None = Field(None, description="the contract's SCAN_ID; the next of ours when left out")


class ScanOut(Wire):
    """One whole slide image."""

    id: int
    scan_id: str = Field(description="the contract's SCAN_ID", examples=["8946136"])
    name: str
    status: m.ScanStatus
    failure_message: str
    source: str
    size_bytes: int | None
    facts: dict[str, Any] = Field(description="format, width, height, levels, mpp …; empty until the slide was opened")
    created_by: str
    created_at: datetime
    upload_url: str | None = Field(None, description="PUT the file here, then POST …/complete")
    upload_expires_at: datetime | None = None

    @classmethod
    def of(cls, s: m.Scan, upload_url: str | None = None, expires_at: datetime | None = None) -> ScanOut:
        """Name the scan as the contract does."""
        return cls(
            id=s.id, scan_id=str(s.number), name=s.name, status=s.status, failure_message=s.failure_message,
            source=s.source, size_bytes=s.size_bytes, facts=dict(s.facts), created_by=s.created_by,
            created_at=s.created_at, upload_url=upload_url, upload_expires_at=expires_at,
        )  # fmt: skip


class SignedUrlOut(Wire):
    """A URL that works until `expires_at`."""

    url: str
    expires_at: datetime
