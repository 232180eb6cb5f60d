"""Decides whether a pushed image may run here: read whole, by digest, as streams in bounded memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from mhs_ray.domain.errors import AdmissionError, RegistryError
from mhs_ray.ports import Admission
from mhs_ray.registry.client import Manifest
from mhs_ray.registry.contents import Contents
from mhs_ray.registry.layers import decompress, entries, measured
from mhs_ray.registry.manifests import Descriptor, ImageConfig, choose_platform, is_index, parse_config, parse_manifest
from mhs_ray.registry.media import LAYER_COMPRESSION, REBUILD
from mhs_ray.registry.scanner import Scanner, write_layout

GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What an image may be. Sizes in bytes.

    ratio: uncompressed to compressed size of one layer, looked at from `ratio_from` uncompressed bytes on; real layers
    stay under 20, zeros reach 1000. layers: an overlay mount takes about 120.
    """

    compressed: int = 20 * GIB
    uncompressed: int = 80 * GIB
    ratio: int = 100
    ratio_from: int = GIB // 4
    entries: int = 1_000_000
    layers: int = 120
    allow_zstd: bool = False


class ImageSource(Protocol):
    """Where manifests and blobs are read from. Raises RegistryError when it fails."""

    def manifest(self, digest: str) -> Manifest | None:
        """Return the manifest of this digest, None when there is none."""

    def blob(self, digest: str) -> AbstractContextManager[Iterator[bytes]]:
        """Open a blob as pieces of bytes, not verified."""


def admit(source: ImageSource, digest: str, limits: AdmissionLimits, scanner: Scanner | None = None) -> Admission:
    """Check the image of this digest. Raises AdmissionError for its owner, RegistryError when it cannot be read."""
    manifest = _get_manifest(source, digest)
    if is_index(manifest.media_type, manifest.body):
        manifest = _get_manifest(source, choose_platform(manifest.body))
        if is_index(manifest.media_type, manifest.body):
            raise AdmissionError("the image index points to another index", REBUILD)
    image = parse_manifest(manifest.body, limits.layers, limits.allow_zstd)
    size = image.config.size + sum(layer.size for layer in image.layers)
    if size > limits.compressed:
        raise too_large(size, limits)
    config = parse_config(_read_config(source, image.config), len(image.layers))
    with ExitStack() as stack:
        layout = None
        if scanner is not None:
            layout = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mhs-scan-", dir=scanner.folder)))
        reading = _Reading(source, limits, layout)
        for i, layer in enumerate(image.layers):
            reading.layer(i + 1, layer, config.diff_ids[i])
        if scanner is not None and layout is not None:
            reading.keep_config(image.config)
            write_layout(layout, manifest, [d.digest.partition(":")[2] for d in (image.config, *image.layers)])
            scanner.scan(layout)
    return Admission(manifest.digest, size, _details(digest, manifest, size, image.layers, config, reading))


def too_large(size: int, limits: AdmissionLimits) -> AdmissionError:
    """Return the refusal of an image of `size` compressed bytes."""
    return AdmissionError(
        f"the image is {_gb(size)} compressed; at most {_gb(limits.compressed)} are taken",
        "Use a smaller base image, or leave out caches, data sets and training code",
    )


def too_dense(limits: AdmissionLimits) -> AdmissionError:
    """Return the refusal of a layer that unpacks to far more than it is."""
    return AdmissionError(
        f"it unpacks to more than {limits.ratio} times its size, as a decompression bomb does",
        "Leave out large files of zeros; make them when the model starts",
    )


def _get_manifest(source: ImageSource, digest: str) -> Manifest:
    manifest = source.manifest(digest)
    if manifest is None:
        raise AdmissionError(f"the manifest {digest} was announced but not pushed", "Push the image again")
    if manifest.digest != digest:
        raise RegistryError(f"the registry sent other bytes than those of {digest}")
    return manifest


def _read_config(source: ImageSource, wanted: Descriptor) -> bytes:
    body = bytearray()
    with source.blob(wanted.digest) as pieces:
        for piece in pieces:
            body += piece
            if len(body) > wanted.size:
                break
    if len(body) != wanted.size or hashlib.sha256(body).hexdigest() != wanted.digest.partition(":")[2]:
        raise AdmissionError("the image's configuration is not of the size and digest its manifest says", REBUILD)
    return bytes(body)


class _Reading:
    """Reads layers one after the other and keeps what all of them together amount to.

    layout: a folder that takes a copy of each blob for a scanner.
    """

    def __init__(self, source: ImageSource, limits: AdmissionLimits, layout: Path | None) -> None:
        self._source, self._limits, self._layout = source, limits, layout
        self.contents = Contents(limits.entries)
        self.uncompressed = 0
        if layout is not None:
            (layout / "blobs/sha256").mkdir(parents=True)

    def layer(self, number: int, layer: Descriptor, diff_id: str) -> None:
        """Read one layer to its end and check every claim about it."""
        try:
            self._layer(layer, diff_id)
        except AdmissionError as error:
            raise AdmissionError(f"layer {number} of the image: {error.message}", error.mend) from None

    def keep_config(self, config: Descriptor) -> None:
        """Copy the configuration into the layout."""
        with self._copy(config.digest) as copy:
            copy.write(_read_config(self._source, config))

    def _layer(self, layer: Descriptor, diff_id: str) -> None:
        packed, plain = hashlib.sha256(), hashlib.sha256()
        packed_size = plain_size = holes = 0
        limits = self._limits
        before = self.uncompressed

        def take_packed(piece: bytes) -> None:
            nonlocal packed_size
            packed_size += len(piece)
            if packed_size > layer.size:
                raise AdmissionError("it is longer than its manifest says", REBUILD)
            packed.update(piece)

        def check_size() -> None:
            unpacked = plain_size + holes
            if before + unpacked > limits.uncompressed:
                raise AdmissionError(
                    f"with it the image is more than {_gb(limits.uncompressed)} uncompressed",
                    "Leave out what the model does not need",
                )
            if unpacked > limits.ratio_from and unpacked > limits.ratio * max(layer.size, 1):
                raise too_dense(limits)

        def take_plain(piece: bytes) -> None:
            nonlocal plain_size
            plain_size += len(piece)
            check_size()
            plain.update(piece)

        with ExitStack() as stack:
            pieces = measured(stack.enter_context(self._source.blob(layer.digest)), take_packed)
            if self._layout is not None:
                pieces = measured(pieces, stack.enter_context(self._copy(layer.digest)).write)
            tar = measured(decompress(pieces, LAYER_COMPRESSION[layer.media_type]), take_plain)
            for entry in entries(tar):
                holes += entry.size - entry.stored
                check_size()
                self.contents.add(entry)
        self.contents.end_layer()
        if packed_size != layer.size or f"sha256:{packed.hexdigest()}" != layer.digest:
            raise AdmissionError("it is not of the size and digest its manifest says", REBUILD)
        if f"sha256:{plain.hexdigest()}" != diff_id:
            raise AdmissionError("its content is not the one the image's configuration names (false diff_id)", REBUILD)
        self.uncompressed += plain_size + holes

    def _copy(self, digest: str) -> BinaryIO:
        assert self._layout is not None
        return (self._layout / "blobs/sha256" / digest.partition(":")[2]).open("wb")


def _details(
    pushed: str, manifest: Manifest, size: int, layers: Sequence[Descriptor], config: ImageConfig, reading: _Reading
) -> dict[str, Any]:
    contents = reading.contents
    warnings = list(config.warnings)
    if contents.devices:
        warnings.append(f"device nodes such as {contents.devices[0]} cannot be opened by a model")
    return {
        **config.details,
        "pushed_digest": pushed,
        "media_type": manifest.media_type,
        "size": size,
        "uncompressed_size": reading.uncompressed,
        "files": contents.count,
        "layers": [
            {"digest": layer.digest, "size": layer.size, "created_by": line}
            for layer, line in zip(layers, config.created_by, strict=True)
        ],
        "setuid_files": contents.setuid,
        "setuid_count": contents.setuid_count,
        "ca_bundles": contents.ca_bundles,
        "warnings": warnings,
    }


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 10**8 else f"{size / 1e6:.1f} MB"
