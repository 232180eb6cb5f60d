"""Docker images: definitions, pushes, checks, promotion."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from mhs_ray.domain.errors import AdmissionError, MhsError, NotFoundError
from mhs_ray.domain.models import Image, ImageVersion, Principal
from mhs_ray.ports import ImageRegistry, PushAccess
from mhs_ray.services.names import clean_name
from mhs_ray.store.sql.images import Images

log = logging.getLogger(__name__)

_ANOTHER_TAG: Final = (
    "something was pushed to this image's repository, but not to the tag that its Docker Push Instructions name, and "
    "no other tag is looked at: tag the image again as command 2 says, then push that"
)


class ImageService:
    """credential_life: how long a push credential is good."""

    def __init__(self, images: Images, registry: ImageRegistry, credential_life: timedelta) -> None:
        self.images = images
        self._registry = registry
        self._life = credential_life

    def create(self, who: Principal, name: str) -> Image:
        """Make an image definition, to be pushed to."""
        return self.images.create(who.company_id, clean_name(name), who.name)

    def rename(self, who: Principal, image_id: int, name: str) -> Image:
        """Rename a definition."""
        return self.images.rename(who.company_id, image_id, clean_name(name))

    def delete(self, who: Principal, image_id: int) -> None:
        """Remove a definition that nothing uses, with everything in the registry."""
        self.images.delete(who.company_id, image_id)
        self._registry.remove(image_id)

    def push_access(self, who: Principal, image_id: int) -> PushAccess:
        """Return where to push with a fresh credential, and have the registry asked until it expires."""
        self.images.get(who.company_id, image_id)
        until = datetime.now(UTC) + self._life
        access = self._registry.push_access(image_id, who.company_id, until)
        self.images.allow_push(who.company_id, image_id, until)
        return access

    def reconcile(self, image_ids: Sequence[int] | None = None) -> int:
        """Ask the registry what was pushed and take in what is new; returns how many manifests were looked at.

        A notification is only a hint to call this: it can be lost, come twice or lie.
        """
        looked_at = 0
        wanted = self.images.awaiting_push(datetime.now(UTC)) if image_ids is None else image_ids
        for image_id in wanted:
            try:
                digest = self._registry.pushed(image_id)
                if digest is None and image_ids is not None:  # yet something came
                    self.images.note_unfound(image_id, _ANOTHER_TAG)
                if digest is not None and self.images.begin_check(image_id, digest):
                    looked_at += 1
                    self._take_in(image_id, digest)
            except NotFoundError:
                continue  # deleted meanwhile
            except MhsError as error:
                log.warning("image %s: the registry cannot be asked now: %s", image_id, error)
        return looked_at

    def _take_in(self, image_id: int, digest: str) -> None:
        """Check and promote; a failure of ours leaves the image `checking`, so the next round tries again."""
        try:
            admission = self._registry.admit(image_id, digest)
        except AdmissionError as error:
            log.info("image %s: refused %s: %s", image_id, digest, error)
            self.images.rejected(image_id, digest, str(error))
            return
        known = self._versions(image_id)
        number = next((v.number for v in known if v.digest == admission.digest), len(known) + 1)
        ref = self._registry.promote(image_id, admission.digest, number)
        self.images.uploaded(image_id, digest, ref, admission.size_bytes, admission.details)
        log.info("image %s: version %s is %s", image_id, number, ref.digest)

    def _versions(self, image_id: int) -> list[ImageVersion]:
        image = self.images.find(image_id)
        return self.images.versions(image.company_id, image_id)
