"""From quarantine to the trusted repository of one registry, by digest: the same for every registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from mhs_ray.domain.errors import RegistryError
from mhs_ray.registry.admission import AdmissionLimits
from mhs_ray.registry.client import DistributionClient, Manifest
from mhs_ray.registry.manifests import parse_manifest


class RepositorySource:
    """One repository as `admit` reads it."""

    def __init__(self, client: DistributionClient, repository: str) -> None:
        self._client, self._repository = client, repository

    def manifest(self, digest: str) -> Manifest | None:
        """Return the manifest of this digest."""
        return self._client.manifest(self._repository, digest)

    def blob(self, digest: str) -> AbstractContextManager[Iterator[bytes]]:
        """Open a blob."""
        return self._client.blob(self._repository, digest)


def promote_manifest(
    client: DistributionClient,
    source: str,
    target: str,
    digest: str,
    tag: str,
    limits: AdmissionLimits,
    copy: Callable[[str, str, str], None],
) -> None:
    """Bring an admitted image from repository `source` to `target`, bytes and digest kept. May be repeated.

    The manifest comes last: whatever dies on the way, a version is there whole or not at all. The tag is for people;
    jobs run by digest, which no later promotion changes. copy: (target, digest, source) of one blob.
    """
    manifest = client.manifest(source, digest)
    if manifest is None:
        raise RegistryError(f"{source}@{digest} is gone from quarantine, so it cannot be promoted; push it again")
    image = parse_manifest(manifest.body, limits.layers, limits.allow_zstd)
    for blob in dict.fromkeys(d.digest for d in (image.config, *image.layers)):
        copy(target, blob, source)
    client.put_manifest(target, tag, manifest)
    if client.head_manifest(target, digest) != digest:
        raise RegistryError(f"{target}@{digest} cannot be found right after its promotion")
