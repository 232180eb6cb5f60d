"""Media types of images, and JSON of strangers read without surprises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mhs_ray.domain.errors import AdmissionError

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
SCHEMA1: Final = (
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
)
MANIFEST_TYPES: Final = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, *SCHEMA1)

CONFIG_TYPES: Final = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)

LAYER_COMPRESSION: Final[Mapping[str, str]] = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}

_ODD: Final = re.compile("[\0\ud800-\udfff]")
REBUILD: Final = "Build it again with docker build, podman build or docker buildx and push it"


def read_object(body: bytes, what: str, known: Iterable[str]) -> dict[str, Any]:
    """Return the JSON object of `body`. Raises AdmissionError when it is none or says a thing twice.

    known: names that matter. Engines match names without regard to case and take the last of two; an image
    whose checks and whose run would read different values is refused.
    """
    try:
        value = json.loads(body, object_pairs_hook=_no_twins)
    except (ValueError, RecursionError):
        raise AdmissionError(f"the {what} is not readable JSON", REBUILD) from None
    if not isinstance(value, dict):
        raise AdmissionError(f"the {what} is no JSON object", REBUILD)
    if _odd_text(value):
        raise AdmissionError(f"the {what} holds a text with a NUL or half a character", REBUILD)
    exact_names(value, what, known)
    return value


def exact_names(value: Mapping[str, Any], what: str, known: Iterable[str]) -> None:
    """Refuse a name that only an engine would read as one of `known`, such as ``Layers`` for ``layers``."""
    wanted = {name.casefold(): name for name in known}
    for name in value:
        if wanted.get(name.casefold(), name) != name:
            raise AdmissionError(f"the {what} spells {wanted[name.casefold()]!r} as {name[:40]!r}", REBUILD)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is given twice")
    return value


def _odd_text(value: Any) -> bool:
    """Say whether any text in it is one that no program or database takes."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            left += item
        elif isinstance(item, str) and _ODD.search(item):
            return True
    return False
