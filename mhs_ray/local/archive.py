"""An image of this machine's engine as admission reads one: the tar that ``docker save`` writes, seen as blobs."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from mhs_ray.domain.errors import AdmissionError, RegistryError
from mhs_ray.registry.admission import AdmissionLimits, too_dense, too_large
from mhs_ray.registry.client import Manifest
from mhs_ray.registry.media import OCI_MANIFEST

_PIECE: Final = 1 << 20
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_PACKED: Final = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}


@dataclass(frozen=True, slots=True)
class _Blob:
    member: str
    media_type: str
    digest: str
    size: int

    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


class SavedImage:
    """A saved image as an `ImageSource`; a context manager. Raises RegistryError for a tar that is no saved image.

    Engines keep layers unpacked and a push packs them, so sizes here are unpacked: `check_packed` looks at the rest.
    """

    def __init__(self, tar: Path) -> None:
        try:
            self._tar = tarfile.open(tar)  # noqa: SIM115 (closed by __exit__)
            self._config, self._layers = self._read()
        except (OSError, tarfile.TarError, KeyError, IndexError, ValueError, TypeError) as error:
            raise RegistryError(f"the engine saved the image in a way that is not known here: {error}") from error
        body = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self._config.descriptor(),
            "layers": [layer.descriptor() for layer in self._layers],
        }
        self._manifest = Manifest(OCI_MANIFEST, json.dumps(body).encode())
        self._blobs = {blob.digest: blob for blob in (self._config, *self._layers)}

    @property
    def digest(self) -> str:
        """The digest that `manifest` answers to; a push makes another one."""
        return self._manifest.digest

    def manifest(self, digest: str) -> Manifest | None:
        """See `ImageSource.manifest`."""
        return self._manifest if digest == self._manifest.digest else None

    @contextmanager
    def blob(self, digest: str) -> Iterator[Iterator[bytes]]:
        """See `ImageSource.blob`."""
        with self._open(self._blobs[digest].member) as file:
            yield _pieces(file)

    def check_packed(self, limits: AdmissionLimits) -> None:
        """Refuse what a push would show once layers are packed. Raises AdmissionError.

        Packs only as far as the answer needs: most images are small enough unpacked, and a few per cent of a layer
        tell that it is no bomb.
        """
        plain = [layer for layer in self._layers if layer.media_type == _LAYER]
        for number, layer in enumerate(self._layers, 1):
            if layer.media_type == _LAYER and layer.size > limits.ratio_from:
                floor = layer.size // limits.ratio
                if self._packed(layer, floor) <= floor:
                    error = too_dense(limits)
                    raise AdmissionError(f"layer {number} of the image: {error.message}", error.mend)
        total = sum(layer.size for layer in self._layers)
        if total > limits.compressed:
            total -= sum(layer.size for layer in plain)
            for layer in plain:
                total += self._packed(layer, limits.compressed - total)
            if total > limits.compressed:
                raise too_large(total, limits)

    def _packed(self, layer: _Blob, enough: int) -> int:
        packer, size = zlib.compressobj(1), 0
        with self._open(layer.member) as file:
            for piece in _pieces(file):
                size += len(packer.compress(piece))
                if size > enough:
                    return size
        return size + len(packer.flush())

    def _read(self) -> tuple[_Blob, list[_Blob]]:
        with self._open("manifest.json") as file:
            [image] = json.load(file)
        with self._open(image["Config"]) as file:
            config = file.read()
        known = json.loads(config).get("rootfs", {}).get("diff_ids") or []
        layers = [self._layer(member, known[i] if i < len(known) else None) for i, member in enumerate(image["Layers"])]
        kind = "application/vnd.oci.image.config.v1+json"
        return _Blob(image["Config"], kind, f"sha256:{hashlib.sha256(config).hexdigest()}", len(config)), layers

    def _layer(self, member: str, diff_id: object) -> _Blob:
        with self._open(member) as file:
            suffix = _PACKED.get(file.read(2), "")
            size = file.seek(0, 2)
            if not suffix and isinstance(diff_id, str) and _DIGEST.fullmatch(diff_id):
                return _Blob(member, _LAYER, diff_id, size)  # admission reads it all and compares
            file.seek(0)
            return _Blob(member, _LAYER + suffix, f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}", size)  # type: ignore[arg-type]

    def _open(self, member: str) -> IO[bytes]:
        file = self._tar.extractfile(member)  # follows the links by which equal layers share one file
        if file is None:
            raise ValueError(f"{member[:80]!r} is no file in it")
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._tar.close()


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece
