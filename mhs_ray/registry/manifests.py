"""Checks of an image's manifest and configuration: what can be said before any layer is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from mhs_ray.domain.env import MAX_TOTAL_BYTES, PLATFORM, RESERVED
from mhs_ray.domain.errors import AdmissionError
from mhs_ray.registry.media import (
    CONFIG_TYPES,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    LAYER_COMPRESSION,
    OCI_INDEX,
    OCI_MANIFEST,
    REBUILD,
    SCHEMA1,
    exact_names,
    read_object,
)

LABEL_PREFIX: Final = "mhs."
"""The platform tells its containers by labels of this prefix; an engine gives an image's labels to its containers."""

_AMD64: Final = "Build it for this platform: docker build --platform linux/amd64"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MANIFEST_NAMES: Final = ("schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "fsLayers")
_DESCRIPTOR_NAMES: Final = ("mediaType", "digest", "size", "urls", "data", "platform", "annotations")
_CONFIG_NAMES: Final = ("architecture", "os", "config", "rootfs", "history", "variant")
_RUN_NAMES: Final = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "Healthcheck",
    "OnBuild", "Shell", "ArgsEscaped",
)  # fmt: skip
_SHOWN: Final = 300
_MAX_LISTED: Final = 100
_MAX_COMMAND_BYTES: Final = 32 << 10
_MAX_CONFIG_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Names one blob; nothing in it is true before the blob was read."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """One image of one platform, its descriptors well formed."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


def choose_platform(body: bytes) -> str:
    """Return the digest of the one linux/amd64 image in an index; build attestations are passed over."""
    index = read_object(body, "image index", _MANIFEST_NAMES)
    _same_type(index, (OCI_INDEX, DOCKER_LIST))
    listed = index.get("manifests")
    if not isinstance(listed, list) or "layers" in index or "config" in index:
        raise AdmissionError("the image index lists no images", REBUILD)
    found: list[str] = []
    platforms: list[str] = []
    for item in listed:
        descriptor = _descriptor(item, "image index")
        platform = item.get("platform")
        platform = platform if isinstance(platform, dict) else {}
        exact_names(platform, "image index", ("architecture", "os", "variant"))
        name = f"{platform.get('os', 'unknown')}/{platform.get('architecture', 'unknown')}"[:60]
        if name == "linux/amd64":
            if descriptor.media_type not in (OCI_MANIFEST, DOCKER_MANIFEST):
                raise AdmissionError(f"its linux/amd64 entry is a {descriptor.media_type[:80]!r}, no image", REBUILD)
            found.append(descriptor.digest)
        elif name != "unknown/unknown":
            platforms.append(name)
    if not found:
        has = ", ".join(sorted(set(platforms))[:8]) or "no platform at all"
        raise AdmissionError(f"the image is for {has}, and models run on linux/amd64", f"{_AMD64} and push it again")
    if len(set(found)) > 1:
        raise AdmissionError(
            f"the image index has {len(found)} entries for linux/amd64, so which of them to run is unclear",
            "Build it for one platform: docker build --platform linux/amd64, and push it again",
        )
    return found[0]


def is_index(media_type: str, body: bytes) -> bool:
    """Say whether a manifest lists others; refuses what is neither an image nor a list of images."""
    if media_type in SCHEMA1:
        raise AdmissionError(
            "the image has the outdated manifest format 'schema 1'",
            "Push it with Docker 1.10 or newer, podman or skopeo",
        )
    if media_type in (OCI_INDEX, DOCKER_LIST):
        return True
    if media_type in (OCI_MANIFEST, DOCKER_MANIFEST):
        return False
    raise AdmissionError(f"what was pushed is a {media_type[:80]!r} and no container image", "Push it with docker push")


def parse_manifest(body: bytes, max_layers: int, allow_zstd: bool) -> ImageManifest:
    """Return a single image's manifest with every rule on types, numbers and sources of its blobs kept."""
    manifest = read_object(body, "image manifest", _MANIFEST_NAMES)
    _same_type(manifest, (OCI_MANIFEST, DOCKER_MANIFEST))
    if manifest.get("schemaVersion") != 2 or "fsLayers" in manifest:
        raise AdmissionError("the image manifest is not of schema version 2", REBUILD)
    layers = manifest.get("layers")
    if not isinstance(layers, list) or "manifests" in manifest:
        raise AdmissionError("the image manifest has no list of layers, or is an index as well", REBUILD)
    config = _descriptor(manifest.get("config"), "image manifest")
    if config.media_type not in CONFIG_TYPES:
        raise AdmissionError(
            f"what was pushed is an artifact of type {config.media_type[:80]!r} and no container image",
            "Push an image that docker build made",
        )
    if config.size > _MAX_CONFIG_BYTES:
        raise AdmissionError(
            "the image's configuration is larger than 4 MiB", "Use fewer and shorter ENV and LABEL lines"
        )
    if not layers:
        raise AdmissionError("the image has no layers, so there is nothing to run", "Add files to it by COPY or RUN")
    if len(layers) > max_layers:
        raise AdmissionError(
            f"the image has {len(layers)} layers; at most {max_layers} can be mounted",
            "Join RUN and COPY lines of the Dockerfile, or build it in several stages and copy the result",
        )
    return ImageManifest(config, tuple(_layer(item, i, allow_zstd) for i, item in enumerate(layers, 1)))


def _same_type(manifest: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    inside = manifest.get("mediaType")
    if inside is not None and inside not in allowed:
        raise AdmissionError("the manifest was pushed as another type than it says it is", REBUILD)


def _layer(item: Any, number: int, allow_zstd: bool) -> Descriptor:
    layer = _descriptor(item, f"descriptor of layer {number}")
    kind = layer.media_type
    if item.get("urls") or "foreign" in kind or "nondistributable" in kind:
        raise AdmissionError(
            f"layer {number} is to be fetched from elsewhere and was not pushed",
            "Models run from what was pushed only; use a base image without foreign layers",
        )
    compression = LAYER_COMPRESSION.get(kind)
    if compression is None:
        raise AdmissionError(f"layer {number} is of the unknown type {kind[:80]!r}", REBUILD)
    if compression == "zstd" and not allow_zstd:
        raise AdmissionError(
            f"layer {number} is compressed with zstd, which some nodes cannot unpack",
            "Push it with gzip: docker push, podman push --compression-format gzip, or buildx with compression=gzip",
        )
    return layer


def _descriptor(item: Any, what: str) -> Descriptor:
    if not isinstance(item, dict):
        raise AdmissionError(f"the {what} lacks a descriptor", REBUILD)
    exact_names(item, what, _DESCRIPTOR_NAMES)
    media_type, digest, size = item.get("mediaType"), item.get("digest"), item.get("size")
    if not isinstance(media_type, str) or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise AdmissionError(f"the {what} names a blob without a type or a sha256 digest", REBUILD)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise AdmissionError(f"the {what} names a blob without a size", REBUILD)
    return Descriptor(media_type, digest, size)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image's configuration says, checked. details: what people are shown of it."""

    diff_ids: tuple[str, ...]
    created_by: tuple[str, ...]  # per layer, "" where unknown
    details: Mapping[str, Any]
    warnings: tuple[str, ...]


def parse_config(body: bytes, layer_count: int) -> ImageConfig:
    """Check an image's configuration. Raises AdmissionError whose text its owner understands."""
    config = read_object(body, "image configuration", _CONFIG_NAMES)
    architecture, system = config.get("architecture"), config.get("os")
    if system != "linux" or architecture != "amd64":
        raise AdmissionError(
            f"the image is for {str(system)[:30]}/{str(architecture)[:30]}, and models run on linux/amd64",
            f"{_AMD64} and push it again",
        )
    rootfs = config.get("rootfs")
    rootfs = rootfs if isinstance(rootfs, dict) else {}
    exact_names(rootfs, "image configuration", ("type", "diff_ids"))
    diff_ids = rootfs.get("diff_ids")
    if not _strings(diff_ids) or len(diff_ids) != layer_count or not all(_DIGEST.fullmatch(d) for d in diff_ids):
        raise AdmissionError("the image configuration does not list the digest of every layer", REBUILD)
    run = config.get("config") or {}
    if not isinstance(run, dict):
        raise AdmissionError("the image configuration has no readable 'config' part", REBUILD)
    exact_names(run, "image configuration", _RUN_NAMES)
    command = {name: _command(run, name) for name in ("Entrypoint", "Cmd")}
    if not command["Entrypoint"] and not command["Cmd"]:
        raise AdmissionError(
            "the image has no entrypoint and no command, so there is nothing to start",
            'End its Dockerfile with a line such as ENTRYPOINT ["python3", "main.py"]',
        )
    env_names, warnings = _environment(run.get("Env"))
    labels, volumes = _string_map(run, "Labels"), sorted(_mapping(run, "Volumes"))
    _refuse_our_labels(labels)
    if volumes:
        shown = ", ".join(volumes[:10])[:_SHOWN]
        warnings.append(f"VOLUME {shown} is ignored: the image's files there are read-only; write to /tmp")
    if run.get("Healthcheck"):
        warnings.append("HEALTHCHECK is ignored: a model runs once and ends")
    if run.get("StopSignal") not in (None, "", "SIGTERM", "15", "SIGINT", "2"):
        warnings.append(f"STOPSIGNAL {str(run['StopSignal'])[:20]} is ignored: a model is stopped by SIGTERM")
    details = {
        "architecture": architecture,
        "os": system,
        "entrypoint": command["Entrypoint"],
        "cmd": command["Cmd"],
        "workdir": _text(run, "WorkingDir"),
        "user": _text(run, "User"),
        "labels": {k[:_SHOWN]: v[:_SHOWN] for k, v in list(labels.items())[:_MAX_LISTED]},
        "env_names": env_names,
        "volumes": [path[:_SHOWN] for path in volumes[:_MAX_LISTED]],
    }
    if details["workdir"] and not str(details["workdir"]).startswith("/"):
        raise AdmissionError(
            f"WORKDIR {details['workdir'][:100]!r} is no absolute path", "Write it as /app or the like"
        )
    return ImageConfig(tuple(diff_ids), _created_by(config.get("history"), layer_count), details, tuple(warnings))


def _environment(env: Any) -> tuple[list[str], list[str]]:
    if env is not None and not _strings(env):
        raise AdmissionError("the image's ENV is no list of texts", REBUILD)
    size = sum(len(item.encode()) + 1 for item in env or ())
    if size > MAX_TOTAL_BYTES:
        raise AdmissionError(
            f"the image's ENV variables hold {size // 1024} KiB; a program cannot be started with more than "
            f"{MAX_TOTAL_BYTES // 1024} KiB",
            "Put long values into a file of the image instead",
        )
    names = sorted({item.partition("=")[0] for item in env or ()})
    warnings = [
        f"ENV {name[:60]} of the image is overridden for every task"
        for name in names
        if name in RESERVED or name in PLATFORM or name.startswith(("LD_", "NVIDIA_VISIBLE"))
    ]
    return names, warnings


def _refuse_our_labels(labels: Mapping[str, str]) -> None:
    for name in labels:
        if name.startswith(LABEL_PREFIX):
            raise AdmissionError(
                f"the image has the label {name[:100]!r}; {LABEL_PREFIX!r} is the platform's own prefix",
                "Rename that LABEL in the Dockerfile",
            )


def _command(run: Mapping[str, Any], name: str) -> list[str]:
    value = run.get(name)
    if value is None:
        return []
    if not _strings(value):
        raise AdmissionError(f"the image's {name} is no list of texts", REBUILD)
    if sum(len(word.encode()) + 1 for word in value) > _MAX_COMMAND_BYTES:
        raise AdmissionError(f"the image's {name} is longer than 32 KiB", "Put it into a script of the image instead")
    return list(value)


def _text(run: Mapping[str, Any], name: str) -> str:
    value = run.get(name)
    if value is not None and not isinstance(value, str):
        raise AdmissionError(f"the image's {name} is no text", REBUILD)
    return (value or "")[:_SHOWN]


def _mapping(run: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = run.get(name)
    if value is not None and not isinstance(value, dict):
        raise AdmissionError(f"the image's {name} are no JSON object", REBUILD)
    return value or {}


def _string_map(run: Mapping[str, Any], name: str) -> dict[str, str]:
    value = _mapping(run, name)
    if not _strings(list(value.values())):
        raise AdmissionError(f"the image's {name} are not all texts", REBUILD)
    return value


def _strings(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _created_by(history: Any, layer_count: int) -> tuple[str, ...]:
    """Return the Dockerfile line per layer; history is a courtesy, so a wrong one is passed over."""
    lines = [
        str(item.get("created_by") or "")[:_SHOWN]
        for item in (history if isinstance(history, list) else [])
        if isinstance(item, dict) and not item.get("empty_layer")
    ]
    return tuple(lines) if len(lines) == layer_count else ("",) * layer_count
