"""Build, tag, push and import images with either engine: what the command line needs, not what runs jobs."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mhs_ray.domain.errors import EngineError
from mhs_ray.engines import process
from mhs_ray.engines.envfile import client_environment, write_private
from mhs_ray.ports import ContainerEngine

if TYPE_CHECKING:
    from mhs_ray.engines.docker import DockerEngine
    from mhs_ray.engines.podman import PodmanEngine

_TIMEOUT_S = 3600.0


class ImageTools(Protocol):
    """Images by tag, for a person's own machine. Every method raises EngineError."""

    def build(self, context_dir: Path, tag: str, build_args: Mapping[str, str] | None = None) -> str:
        """Build the Dockerfile in `context_dir` with the node's network; return the image id."""

    def tag(self, source: str, target: str) -> None:
        """Give image `source` (tag or id) another tag."""

    def push(self, tag: str, username: str, password: str, *, tls: bool = True) -> str:
        """Push `tag` to the registry in its name; return the digest the registry has it under.

        tls: False for plain HTTP. Docker's daemon decides that itself: it does so for loopback only.
        """

    def import_rootfs(self, tar: Path, tag: str, changes: Sequence[str] = ()) -> str:
        """Make a one-layer image of a root file system's tar; return its id.

        changes: Dockerfile instructions about the image's configuration, such as ``ENV A=1``.
        """

    def image_id(self, tag: str) -> str | None:
        """Return the id (``sha256:…``) of a tag, None when it is not on this node."""

    def save(self, image: str, tar: Path) -> None:
        """Write image `image` (tag or id) as ``docker save`` does: a tar of its configuration and layers."""


def image_tools(engine: ContainerEngine) -> ImageTools:
    """Return the image tools of `engine`."""
    if engine.name == "podman":
        return PodmanImages(cast("PodmanEngine", engine))
    return DockerImages(cast("DockerEngine", engine))


class PodmanImages(ImageTools):
    """Images by podman's command line, in the storage of `engine`."""

    def __init__(self, engine: PodmanEngine) -> None:
        self._engine = engine

    def build(self, context_dir: Path, tag: str, build_args: Mapping[str, str] | None = None) -> str:
        """See `ImageTools.build`."""
        operation = f"build {tag}"
        args = ["build", "--quiet", "--network=host", "--format=docker", f"--tag={tag}"]
        for key, value in (build_args or {}).items():
            args += ["--build-arg", f"{key}={value}"]
        words = b""
        # Where the OCI runtime cannot start a build's containers (limits, cgroups), a chroot can.
        for isolation in ("oci", "chroot"):
            result = process.attempt(
                self._engine.name,
                operation,
                [*self._engine.base, *args, f"--isolation={isolation}", str(context_dir)],
                timeout_s=_TIMEOUT_S,
                env=client_environment(),
            )
            if result.returncode == 0:
                return self._required_id(tag, operation)
            words = result.stderr
            if not any(sign in words for sign in (b"rlimit", b"cgroup", b"OCI runtime", b"runc", b"crun")):
                break
        raise EngineError(self._engine.name, operation, process.last_words(words))

    def tag(self, source: str, target: str) -> None:
        """See `ImageTools.tag`."""
        self._engine.call(f"tag {source}", "tag", source, target)

    def push(self, tag: str, username: str, password: str, *, tls: bool = True) -> str:
        """See `ImageTools.push`."""
        from mhs_ray.engines.podman import auth_entries

        with tempfile.TemporaryDirectory(prefix="mhs-push-") as folder:
            authfile, digestfile = Path(folder, "auth.json"), Path(folder, "digest")
            write_private(authfile, json.dumps(auth_entries(tag.partition("/")[0], username, password)))
            process.call(
                self._engine.name,
                f"push {tag}",
                [
                    *self._engine.base, "push", "--quiet", f"--authfile={authfile}", f"--tls-verify={str(tls).lower()}",
                    "--format=v2s2", f"--digestfile={digestfile}", tag,
                ],
                timeout_s=_TIMEOUT_S,
                env=client_environment(),
                secrets=[password],
            )  # fmt: skip
            return digestfile.read_text().strip()

    def import_rootfs(self, tar: Path, tag: str, changes: Sequence[str] = ()) -> str:
        """See `ImageTools.import_rootfs`."""
        operation = f"import {tag}"
        given = [f"--change={change}" for change in changes]
        self._engine.call(operation, "import", "--quiet", *given, str(tar), tag, timeout_s=_TIMEOUT_S)
        return self._required_id(tag, operation)

    def image_id(self, tag: str) -> str | None:
        """See `ImageTools.image_id`."""
        result = process.attempt(
            self._engine.name,
            f"look for {tag}",
            [*self._engine.base, "image", "inspect", "--format={{.Id}}", tag],
            env=client_environment(),
        )
        return None if result.returncode else "sha256:" + result.stdout.decode().strip().removeprefix("sha256:")

    def save(self, image: str, tar: Path) -> None:
        """See `ImageTools.save`."""
        args = ("save", "--quiet", "--format=docker-archive", f"--output={tar}", image.removeprefix("sha256:"))
        self._engine.call(f"save {image}", *args, timeout_s=_TIMEOUT_S)

    def _required_id(self, tag: str, operation: str) -> str:
        found = self.image_id(tag)
        if found is None:
            raise EngineError(self._engine.name, operation, "podman says it did, but the image is not there")
        return found


class DockerImages(ImageTools):
    """Images by a Docker daemon."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine

    def build(self, context_dir: Path, tag: str, build_args: Mapping[str, str] | None = None) -> str:
        """See `ImageTools.build`; by the daemon's classic builder, which every version has."""
        operation = f"build {tag}"
        with self._engine.errors(operation), self._engine.client(timeout_s=_TIMEOUT_S) as api:
            steps = api.build(
                path=str(context_dir), tag=tag, buildargs=dict(build_args or {}), rm=True, forcerm=True,
                network_mode="host", decode=True,
            )  # fmt: skip
            self._follow(steps, operation)
        return self._required_id(tag, operation)

    def tag(self, source: str, target: str) -> None:
        """See `ImageTools.tag`."""
        repository, _, name = target.rpartition(":")
        with self._engine.errors(f"tag {source}"), self._engine.client() as api:
            api.tag(source, repository, name, force=True)

    def push(self, tag: str, username: str, password: str, *, tls: bool = True) -> str:
        """See `ImageTools.push`."""
        operation = f"push {tag}"
        repository, _, name = tag.rpartition(":")
        with self._engine.errors(operation, [password]), self._engine.client(timeout_s=_TIMEOUT_S) as api:
            steps = api.push(
                repository, tag=name, auth_config={"username": username, "password": password}, stream=True, decode=True
            )
            for step in self._follow(steps, operation):
                digest = (step.get("aux") or {}).get("Digest")
                if digest:
                    return str(digest)
        raise EngineError(self._engine.name, operation, "the daemon named no digest")

    def import_rootfs(self, tar: Path, tag: str, changes: Sequence[str] = ()) -> str:
        """See `ImageTools.import_rootfs`."""
        operation = f"import {tag}"
        repository, _, name = tag.rpartition(":")
        with self._engine.errors(operation), self._engine.client(timeout_s=_TIMEOUT_S) as api:
            api.import_image_from_file(str(tar), repository=repository, tag=name, changes=list(changes) or None)
        return self._required_id(tag, operation)

    def image_id(self, tag: str) -> str | None:
        """See `ImageTools.image_id`."""
        facts = self._engine.image(tag)
        return None if facts is None else str(facts["Id"])

    def save(self, image: str, tar: Path) -> None:
        """See `ImageTools.save`."""
        with (
            self._engine.errors(f"save {image}"),
            self._engine.client(timeout_s=_TIMEOUT_S) as api,
            tar.open("wb") as out,
        ):
            for piece in api.get_image(image):
                out.write(piece)

    def _follow(self, steps: Iterator[Any], operation: str) -> list[dict[str, Any]]:
        seen = []
        for step in steps:
            if "error" in step:
                raise EngineError(self._engine.name, operation, str(step["error"]).strip()[-1500:])
            if "aux" in step:
                seen.append(step)
        with contextlib.suppress(AttributeError):
            steps.close()  # type: ignore[attr-defined]
        return seen

    def _required_id(self, tag: str, operation: str) -> str:
        found = self.image_id(tag)
        if found is None:
            raise EngineError(self._engine.name, operation, "Docker says it did, but the image is not there")
        return found
