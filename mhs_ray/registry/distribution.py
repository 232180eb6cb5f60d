"""The port ImageRegistry on our own docker-registry: quarantine and trusted repositories side by side."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from mhs_ray.domain.models import ImageRef
from mhs_ray.ports import Admission, PushAccess, RegistryCredential
from mhs_ray.registry.admission import AdmissionLimits, admit
from mhs_ray.registry.client import DistributionClient
from mhs_ray.registry.promotion import RepositorySource, promote_manifest
from mhs_ray.registry.scanner import Scanner
from mhs_ray.registry.tokens import USERNAME, Access, RegistryTokens, quarantine_repository, trusted_repository

log = logging.getLogger(__name__)


def push_tag(image_id: int) -> str:
    """Return the tag, unique to the image definition, that the push commands name."""
    return f"image-{image_id}"


class DistributionRegistry:
    """Implements ImageRegistry. address: ``host:port`` as clients and nodes name it in image references.

    scanner: an operator's own check on every image; None: none.
    """

    def __init__(
        self,
        address: str,
        tokens: RegistryTokens,
        limits: AdmissionLimits | None = None,
        scanner: Scanner | None = None,
        tls: bool = False,
    ) -> None:
        self.address, self._tokens, self._tls = address, tokens, tls
        self._limits, self._scanner = limits or AdmissionLimits(), scanner
        self._client = DistributionClient(address, self._token, tls=tls)

    def push_access(self, image_id: int, company_id: int, expires_at: datetime) -> PushAccess:
        """Return target and credential for pushing to this definition."""
        password = self._tokens.push_credential(image_id, company_id, expires_at)
        repository = quarantine_repository(image_id)
        return PushAccess(
            self.address, repository, push_tag(image_id), USERNAME, password, expires_at=expires_at, tls=self._tls
        )

    def pushed(self, image_id: int) -> str | None:
        """Return the digest at the definition's push tag now."""
        return self._client.head_manifest(quarantine_repository(image_id), push_tag(image_id))

    def admit(self, image_id: int, digest: str) -> Admission:
        """Check a quarantined image whole."""
        source = RepositorySource(self._client, quarantine_repository(image_id))
        return admit(source, digest, self._limits, self._scanner)

    def promote(self, image_id: int, digest: str, number: int) -> ImageRef:
        """Mount every blob of an admitted image into the trusted repository, then put the same manifest bytes there."""
        source, target = quarantine_repository(image_id), trusted_repository(image_id)
        promote_manifest(self._client, source, target, digest, f"v{number}", self._limits, self._client.mount_blob)
        ref = ImageRef(self.address, target, digest)
        log.info("promoted %s as v%d", ref, number)
        return ref

    def pull_credential(self, image: ImageRef) -> RegistryCredential:
        """Return a login for this trusted repository, good for two hours."""
        return RegistryCredential(USERNAME, self._tokens.node_token(image.repository), tls=self._tls)

    def remove(self, image_id: int) -> None:
        """Delete the manifests that a tag leads to, in both repositories."""
        for repository in (quarantine_repository(image_id), trusted_repository(image_id)):
            for tag in self._client.tags(repository):
                digest = self._client.head_manifest(repository, tag)
                if digest is not None:
                    self._client.delete_manifest(repository, digest)

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    def _token(self, access: Sequence[Access]) -> str:
        return self._tokens.issue("platform", access)
