"""What the layers put on the file system, one over the other: bad paths, setuid files, devices, CA bundles."""

from __future__ import annotations

import re
import stat
import tarfile
from typing import Final

from mhs_ray.domain.errors import AdmissionError
from mhs_ray.registry.layers import Entry

MAX_LISTED: Final = 50
_OPAQUE: Final = ".wh..wh..opq"
_WHITEOUT: Final = ".wh."
_BUNDLES: Final = re.compile(
    r"(?:.*/)?certifi/cacert\.pem"
    r"|(?:.*/)?(?:botocore|websocket|ssl)/cacert\.pem"
    r"|(?:.*/)?httplib2/cacerts\.txt"
    r"|(?:.*/)?grpc/_cython/_credentials/roots\.pem"
    r"|(?:.*/)?ssl/cert\.pem"
    r"|etc/ssl/certs/ca-certificates\.crt"
    r"|etc/ssl/(?:ca-bundle|certs/ca-bundle)\.pem"
    r"|etc/pki/tls/certs/ca-bundle(?:\.trust)?\.crt"
    r"|etc/pki/tls/cert\.pem"
    r"|etc/pki/ca-trust/extracted/pem/tls-ca-bundle\.pem"
)
"""PEM files that clients bring or read: requests and pip (certifi), conda and OpenSSL builds, Debian, Red Hat, SUSE."""

_MOUNTABLE: Final = re.compile(r"[A-Za-z0-9._+/@-]{1,255}")  # no colon or comma: those part a mount option's fields
_MAX_REMEMBERED: Final = 1000  # bundles; bounds what a hostile image makes us keep and compare


class Contents:
    """Takes the entries of all layers, lowest layer first."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self.count = 0
        self.setuid: list[str] = []
        self.setuid_count = 0
        self.devices: list[str] = []
        self._bundles: dict[str, None] = {}
        self._above: set[str] = set()  # bundles of lower layers with every folder above them
        self._layer_bundles: dict[str, None] = {}

    @property
    def ca_bundles(self) -> list[str]:
        """Return absolute paths of the regular files that hold CA certificates in the finished image."""
        return [f"/{path}" for path in sorted(self._bundles)[:MAX_LISTED]]

    def end_layer(self) -> None:
        """Say that the entries that follow are those of the next layer."""
        self._bundles = dict(list({**self._bundles, **self._layer_bundles}.items())[:_MAX_REMEMBERED])
        self._layer_bundles = {}
        self._above = {p for path in self._bundles for p in _with_parents(path)}

    def add(self, entry: Entry) -> None:
        """Take one entry. Raises AdmissionError on a path that leads out of the image."""
        self.count += 1
        if self.count > self._max_entries:
            raise AdmissionError(
                f"with it the image has more than {self._max_entries} files", "Leave out what the model does not need"
            )
        path = _clean(entry.name, "a file")
        if entry.type == tarfile.LNKTYPE:
            _clean(entry.linkname, "a hard link")
        folder, _, name = path.rpartition("/")
        if name.startswith(_WHITEOUT):
            gone = folder if name == _OPAQUE else f"{folder}/{name[len(_WHITEOUT) :]}".lstrip("/")
            self._hide(gone, keep_itself=name == _OPAQUE)
            return
        self._note_special(entry, path)
        if path in self._bundles or (entry.type != tarfile.DIRTYPE and path in self._above):
            self._hide(path)  # something else in place of a bundle, or no folder in place of one above it
        if entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE):
            if _MOUNTABLE.fullmatch(path) and _BUNDLES.fullmatch(path) and len(self._layer_bundles) < _MAX_REMEMBERED:
                self._layer_bundles[path] = None
        elif entry.type != tarfile.DIRTYPE:
            self._layer_bundles.pop(path, None)

    def _hide(self, path: str, keep_itself: bool = False) -> None:
        """Forget the bundles of *lower* layers at and under `path`."""
        if path and path not in self._above:
            return
        self._above.discard(path)
        below = f"{path}/" if path else ""
        for bundle in [b for b in self._bundles if b.startswith(below) or (b == path and not keep_itself)]:
            del self._bundles[bundle]

    def _note_special(self, entry: Entry, path: str) -> None:
        if entry.type in (tarfile.CHRTYPE, tarfile.BLKTYPE) and len(self.devices) < MAX_LISTED:
            self.devices.append(_shown(path))
        if entry.mode & (stat.S_ISUID | stat.S_ISGID) and entry.type not in (tarfile.DIRTYPE, tarfile.SYMTYPE):
            self.setuid_count += 1
            if len(self.setuid) < MAX_LISTED:
                self.setuid.append(_shown(path))


def _clean(name: str, what: str) -> str:
    """Return the path relative to the image's root, without ``./`` and closing slashes; "" is the root itself."""
    if name.strip("/") in {"", "."}:
        return ""
    parts = name.split("/")
    if "\0" in name or name.startswith("/") or ".." in parts:
        fault = "is an absolute path" if name.startswith("/") else "leads out of its folder by '..'"
        raise AdmissionError(
            f"{what} in it has the path {_shown(name)!r}, which {fault}",
            "Layers of docker build hold no such paths; build the image with it, not by an archive of your own",
        )
    return "/".join(part for part in parts if part not in {"", "."})


def _with_parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts) + 1)]


def _shown(path: str) -> str:
    return path[:200].encode("utf-8", "backslashreplace").decode()
