"""What the platform's services and its nodes share: where slides may come from, where blobs are."""

from __future__ import annotations

from pathlib import Path
from secrets import token_bytes
from urllib.parse import urlsplit

from mhs_ray.domain.settings import Settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.keys import Keys
from mhs_ray.ports import BlobStore
from mhs_ray.slides.url_guard import UrlPolicy
from mhs_ray.store.blobs.local import LocalBlobs, LocalLimits
from mhs_ray.store.blobs.server import ServerConfig

REGISTRY_ISSUER = "mhs-ray"
REGISTRY_SERVICE = "mhs-registry"


def url_policy(settings: Settings, endpoints: Endpoints) -> UrlPolicy:
    """Return which URLs slides may come from: the public internet, our own blobs, and what the settings add."""
    own = endpoints.blobs_url.split("://", 1)[-1]
    single = settings.cluster.placement == "single"
    return UrlPolicy(
        allow_private=settings.slides.allow_private,
        allow_hosts=frozenset({own, *settings.slides.allow_hosts} - {""}),
        file_roots=settings.slides.path_roots or ((Path("/"),) if single else ()),
    )


def open_blobs(settings: Settings, endpoints: Endpoints, keys: Keys | None) -> BlobStore:
    """Return the blob store that the settings name. keys: None on a cluster's node, which signs no URL."""
    if settings.blobs.kind == "local":
        limits = LocalLimits(quota_bytes=settings.blobs.quota, min_free_bytes=settings.blobs.min_free)
        return LocalBlobs(settings.blobs_dir, endpoints.blobs_url, keys.blobs if keys else token_bytes(32), limits)
    from mhs_ray.store.blobs.s3 import S3Blobs  # boto3 takes long to import

    return S3Blobs.connect(
        settings.blobs.bucket,
        prefix=settings.blobs.prefix,
        endpoint=settings.blobs.endpoint_url,
        presign_endpoint=settings.blobs.public_endpoint_url,
        region=settings.blobs.region,
    )


def page_origins(settings: Settings, api_url: str) -> tuple[str, ...]:
    """Return the origins that the console's pages have: where the API listens, and where people reach it."""
    here = urlsplit(api_url)
    names = [api_url, *(f"http://{host}:{here.port}" for host in ("127.0.0.1", "localhost"))]
    if settings.api.public_url:
        public = urlsplit(settings.api.public_url)
        names.append(f"{public.scheme}://{public.netloc}")
    return tuple(dict.fromkeys(names))


def blob_server_config(settings: Settings, keys: Keys, port: int, api_url: str | None = None) -> ServerConfig:
    """Return what the local blob server is told; the same keys sign in `open_blobs`.

    api_url: whose pages upload to it straight from the browser.
    """
    return ServerConfig(
        root=settings.blobs_dir,
        host=settings.cluster.address,
        port=port,
        keys={"1": keys.blobs.hex()},
        current_key="1",
        quota=settings.blobs.quota,
        min_free=settings.blobs.min_free,
        max_blob=settings.slides.max_slide,
        cors_origins=page_origins(settings, api_url) if api_url else (),
    )
