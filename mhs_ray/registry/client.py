"""A small client of the OCI distribution protocol, for our own registry: the tokens it shows we make ourselves."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx

from mhs_ray.domain.errors import RegistryError
from mhs_ray.registry.media import MANIFEST_TYPES
from mhs_ray.registry.tokens import Access

MAX_MANIFEST_BYTES: Final = 4 << 20  # what distribution takes at most
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_CHUNK: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as stored, byte for byte; `digest` is computed from `body`."""

    media_type: str
    body: bytes

    @property
    def digest(self) -> str:
        """Return ``sha256:…`` of the bytes."""
        return "sha256:" + hashlib.sha256(self.body).hexdigest()


class DistributionClient:
    """Talks to one registry. Every method raises RegistryError when it cannot be reached or refuses.

    address: ``host:port``. issue: makes what the registry asks for in `scheme` for the access that one call needs.
    """

    def __init__(
        self,
        address: str,
        issue: Callable[[Sequence[Access]], str],
        timeout_s: float = 60,
        tls: bool = False,
        scheme: str = "Bearer",
    ) -> None:
        self.address, self._issue, self._scheme = address, issue, scheme
        scheme = "https" if tls else "http"
        self._http = httpx.Client(base_url=f"{scheme}://{address}", timeout=timeout_s, trust_env=False)

    def close(self) -> None:
        """Close idle connections."""
        self._http.close()

    def head_manifest(self, repository: str, reference: str) -> str | None:
        """Return the digest at a tag or digest, None when there is nothing."""
        answer = self._call("HEAD", repository, f"manifests/{reference}", accept=MANIFEST_TYPES, missing_ok=True)
        if answer.status_code == 404:
            return None
        digest = str(answer.headers.get("docker-content-digest", ""))
        if not _DIGEST.fullmatch(digest):
            raise RegistryError(f"{self._name(repository)} answered without a sha256 digest for {reference}")
        return digest

    def manifest(self, repository: str, reference: str) -> Manifest | None:
        """Return the manifest at a tag or digest, None when there is none; by digest it is verified."""
        path = f"manifests/{reference}"
        with self._stream("GET", repository, path, accept=MANIFEST_TYPES, missing_ok=True) as answer:
            if answer.status_code == 404:
                return None
            body = bytearray()
            for piece in self._pieces(answer, repository):
                body += piece
                if len(body) > MAX_MANIFEST_BYTES:
                    raise RegistryError(f"{self._name(repository)} sent a manifest of more than 4 MiB")
            media_type = answer.headers.get("content-type", "").partition(";")[0].strip()
        found = Manifest(media_type, bytes(body))
        if reference.startswith("sha256:") and found.digest != reference:
            raise RegistryError(
                f"{self._name(repository)} sent other bytes than those of {reference}: damaged storage?"
            )
        return found

    @contextmanager
    def blob(self, repository: str, digest: str) -> Iterator[Iterator[bytes]]:
        """Open a blob as pieces of at most 256 KiB; not verified here. It may lie elsewhere, as ECR's do in S3."""
        with self._stream("GET", repository, f"blobs/{digest}", elsewhere=True) as answer:
            yield self._pieces(answer, repository)

    def tags(self, repository: str) -> list[str]:
        """Return the repository's tags; [] when there is no such repository."""
        answer = self._call("GET", repository, "tags/list", missing_ok=True)
        return sorted(answer.json().get("tags") or []) if answer.status_code == 200 else []

    def mount_blob(self, repository: str, digest: str, source: str) -> None:
        """Make a blob of repository `source` a blob of `repository` without copying a byte."""
        access = (Access(repository, ("pull", "push")), Access(source, ("pull",)))
        params = {"mount": digest, "from": source}
        answer = self._call("POST", repository, "blobs/uploads/", access=access, params=params)
        if answer.status_code != 201:  # 202: an upload was opened instead, since the source has no such blob
            raise RegistryError(f"{self._name(source)} has no blob {digest}, so it cannot be promoted")

    def copy_blob(self, repository: str, digest: str, source: str) -> None:
        """Make a blob of repository `source` one of `repository`; its bytes go through here if it cannot be mounted."""
        access = (Access(repository, ("pull", "push")), Access(source, ("pull",)))
        there = self._call("HEAD", repository, f"blobs/{digest}", access=access, missing_ok=True)
        if there.status_code == 200:
            return
        params = {"mount": digest, "from": source}
        answer = self._call("POST", repository, "blobs/uploads/", access=access, params=params)
        if answer.status_code == 201:
            return
        where = httpx.URL(str(answer.request.url)).join(answer.headers.get("location", ""))
        if where.host != answer.request.url.host:
            raise RegistryError(f"{self._name(repository)} wants the upload at another host, {where.host}")
        with self.blob(source, digest) as pieces:
            sent = self._upload("PATCH", where, repository, access, content=pieces)
        end = where.join(sent.headers.get("location", str(where))).copy_merge_params({"digest": digest})
        self._upload("PUT", end, repository, access)

    def _upload(self, method: str, where: httpx.URL, repository: str, access: Sequence[Access], **more: Any) -> Any:
        headers = self._headers(repository, access, ()) | {"Content-Type": "application/octet-stream"}
        try:
            answer = self._http.request(method, where, headers=headers, **more)
        except httpx.HTTPError as error:
            raise self._unreachable(repository, error) from error
        return self._checked(answer, repository, missing_ok=False)

    def put_manifest(self, repository: str, reference: str, manifest: Manifest) -> None:
        """Store the very bytes under a tag; the registry must answer with their digest."""
        answer = self._call(
            "PUT", repository, f"manifests/{reference}", access=(Access(repository, ("pull", "push")),),
            content=manifest.body, headers={"Content-Type": manifest.media_type},
        )  # fmt: skip
        if answer.headers.get("docker-content-digest") != manifest.digest:
            raise RegistryError(f"{self._name(repository)} stored {reference} under another digest")

    def delete_manifest(self, repository: str, digest: str) -> None:
        """Remove a manifest and the tags on it; nothing happens if there is none. The space is freed later."""
        access = (Access(repository, ("delete", "pull")),)
        self._call("DELETE", repository, f"manifests/{digest}", access=access, missing_ok=True)

    def _name(self, repository: str) -> str:
        return f"registry {self.address}, repository {repository},"

    def _headers(self, repository: str, access: Sequence[Access] | None, accept: Sequence[str]) -> dict[str, str]:
        token = self._issue(access or (Access(repository, ("pull",)),))
        headers = {"Authorization": f"{self._scheme} {token}", "Accept-Encoding": "identity"}
        if accept:
            headers["Accept"] = ", ".join(accept)
        return headers

    def _call(
        self, method: str, repository: str, path: str, *, access: Sequence[Access] | None = None,
        accept: Sequence[str] = (), missing_ok: bool = False, headers: dict[str, str] | None = None, **more: Any,
    ) -> httpx.Response:  # fmt: skip
        all_headers = {**self._headers(repository, access, accept), **(headers or {})}
        try:
            answer = self._http.request(method, f"/v2/{repository}/{path}", headers=all_headers, **more)
        except httpx.HTTPError as error:
            raise self._unreachable(repository, error) from error
        return self._checked(answer, repository, missing_ok)

    @contextmanager
    def _stream(
        self, method: str, repository: str, path: str, accept: Sequence[str] = (), missing_ok: bool = False,
        elsewhere: bool = False,
    ) -> Iterator[httpx.Response]:  # fmt: skip
        headers = self._headers(repository, None, accept)
        url = f"/v2/{repository}/{path}"
        try:
            # httpx keeps the token to itself when it is sent on to another host.
            with self._http.stream(method, url, headers=headers, follow_redirects=elsewhere) as answer:
                if answer.is_error:
                    answer.read()
                yield self._checked(answer, repository, missing_ok)
        except httpx.HTTPError as error:
            raise self._unreachable(repository, error) from error

    def _pieces(self, answer: httpx.Response, repository: str) -> Iterator[bytes]:
        try:
            yield from answer.iter_raw(_CHUNK)
        except httpx.HTTPError as error:
            raise self._unreachable(repository, error) from error

    def _checked(self, answer: httpx.Response, repository: str, missing_ok: bool) -> httpx.Response:
        if answer.is_success or (answer.status_code == 404 and missing_ok):
            return answer
        raise RegistryError(f"{self._name(repository)} answered {answer.status_code}: {_reason(answer)}")

    def _unreachable(self, repository: str, error: httpx.HTTPError) -> RegistryError:
        return RegistryError(f"{self._name(repository)} cannot be reached: {_why(error)}")


def _why(error: httpx.HTTPError) -> str:
    # The text of some errors holds a URL, whose query may be a signature.
    return f"{type(error).__name__}: {error}".partition("?")[0]


def _reason(answer: httpx.Response) -> str:
    try:
        first = answer.json()["errors"][0]
        return f"{first['code']} {first['message']}"[:200]
    except (ValueError, KeyError, IndexError, TypeError):
        return answer.reason_phrase
