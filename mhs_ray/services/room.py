"""Whether there is room for more work: intake stops before what was accepted could run out of it."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic
from typing import Final

from mhs_ray.domain.errors import BlobsFullError
from mhs_ray.domain.sections import BlobSettings
from mhs_ray.ports import BlobStore
from mhs_ray.store.blobs.local import LocalBlobs

_GOOD_S: Final = 1.0
_QUOTA_SHARE: Final = 0.95  # the rest is for the results and logs of what was accepted
_FREE_TIMES: Final = 2
_RETRY_S: Final = 120


class Room:
    """home: the folder whose disk the database grows on. Blobs themselves are refused only at the limits as set."""

    def __init__(self, home: Path, blobs: BlobStore, settings: BlobSettings) -> None:
        self._home, self._blobs, self._settings = home, blobs, settings
        self._good_until = 0.0

    @property
    def is_known(self) -> bool:
        """True for a moment after `check` found room."""
        return monotonic() < self._good_until

    def check(self) -> None:
        """Raises BlobsFullError when new work must wait; 507 on the wire, with when to come back."""
        if self.is_known:
            return
        free = _FREE_TIMES * self._settings.min_free
        folders = {self._home}
        if isinstance(self._blobs, LocalBlobs):
            folders.add(self._blobs.root)
            quota = self._blobs.limits.quota_bytes
            if quota is not None and self._blobs.used_bytes() > quota * _QUOTA_SHARE:
                raise BlobsFullError(
                    f"nothing new is taken: the blob store's quota of {quota} bytes is nearly used up, and the rest "
                    "is for the results of accepted jobs; delete scans or raise MHS_BLOBS__QUOTA",
                    _RETRY_S,
                )
        for folder in folders:
            disk = os.statvfs(folder)
            if disk.f_bavail * disk.f_frsize < free:
                raise BlobsFullError(
                    f"nothing new is taken: the disk of {folder} has less than {free} bytes left, and they are for the "
                    "results of accepted jobs; free some space",
                    _RETRY_S,
                )
        self._good_until = monotonic() + _GOOD_S
