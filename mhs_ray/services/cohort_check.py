"""The look at every slide of a manifest before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from mhs_ray.domain.cohorts import CheckedSlide
from mhs_ray.domain.errors import InvalidInputError, MhsError
from mhs_ray.domain.models import Principal, ScanStatus
from mhs_ray.domain.redact import redact_url
from mhs_ray.services.scans import ScanService
from mhs_ray.slides.fingerprint import glance
from mhs_ray.slides.url_guard import UrlPolicy
from mhs_ray.store.blobs.s3_slides import S3Slides

_AT_ONCE: Final = 16
_SIGNED_FOR: Final = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """A row of a manifest as it came. where: a path on the platform's machines, s3://, http(s)://, or ``scan:ID``."""

    row: int
    slide: str
    where: str = field(repr=False)
    labels: Mapping[str, Any] = field(default_factory=dict)


class SlideCheck:
    """Looks at many slides side by side; policy: which paths and URLs may be named."""

    def __init__(self, policy: UrlPolicy, s3: S3Slides, scans: ScanService) -> None:
        self._policy, self._s3, self._scans = policy, s3, scans

    def look(self, who: Principal, rows: Sequence[ManifestRow]) -> list[CheckedSlide]:
        """Return every row with what was found of its slide, or its fault."""
        with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(rows))), thread_name_prefix="slide check") as pool:
            return list(pool.map(lambda row: self._one(who, row), rows))

    def _one(self, who: Principal, row: ManifestRow) -> CheckedSlide:
        found = CheckedSlide(row.row, row.slide, redact_url(row.where)[:500], {}, row.labels)
        try:
            location, url, shown = self._locate(who, row.where)
            found = replace(found, location=location, shown=shown[:500])
            seen = glance(url, self._policy)
        except InvalidInputError as error:
            return replace(found, fault=error.faults[0].message)
        except MhsError as error:
            return replace(found, fault=str(error))
        except OSError as error:
            return replace(found, fault=f"it cannot be read: {error.strerror}")
        return replace(found, format=seen.format, content=seen.content)

    def _locate(self, who: Principal, where: str) -> tuple[dict[str, Any], str, str]:
        """Return where the bytes are, a URL that reads them now, and what people may see of that."""
        if where.startswith("scan:"):
            number = where.removeprefix("scan:").strip()
            if not (number.isascii() and number.isdigit() and len(number) < 16):
                raise InvalidInputError.at("slide", f"{where[:60]!r} names no scan; write scan: and its id")
            scan = self._scans.scans.get(who.company_id, int(number))
            if scan.status is not ScanStatus.READY:
                raise InvalidInputError.at("slide", f"scan {scan.id} cannot be used: it is {scan.status}")
            return {"scan": scan.id}, self._scans.sources(scan.id)[0][0], f"scan:{scan.id}"
        if where.startswith("s3://"):
            self._s3.check(where)
            return {"s3": where}, self._s3.sign(where, _SIGNED_FOR), where
        if where.startswith(("http://", "https://")):
            return {"urls": [where]}, where, redact_url(where)
        path = where.removeprefix("file://")
        if "://" in path:
            raise InvalidInputError.at(
                "slide", f"{where.split('://')[0]}:// is not read; give a path, s3:// or https://"
            )
        if not Path(path).is_absolute():
            raise InvalidInputError.at("slide", f"{path[:200]!r} is no absolute path")
        resolved = self._policy.check_file(Path(path).as_uri())
        return {"path": str(resolved)}, resolved.as_uri(), path
