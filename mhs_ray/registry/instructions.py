"""The commands that a lab's user copies: Docker Push Instructions of the contract, and the same for other clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mhs_ray.ports import PushAccess

LOCAL_IMAGE: Final = "my-docker-image:latest"
"""What the contract's first command names the image on the user's machine."""


@dataclass(frozen=True, slots=True)
class PushVariant:
    """The same push with another client or a password kept off the command line."""

    title: str
    commands: tuple[str, ...]


def push_instructions(access: PushAccess) -> list[str]:
    """Return the four commands of the contract (§4.1) in its order and shape: build, tag, login, push."""
    return [
        f"docker build -t {LOCAL_IMAGE} .",
        f"docker tag {LOCAL_IMAGE} {access.reference}",
        f"docker login --username {access.username} --password {access.password} {_repository(access)}",
        f"docker push {access.reference}",
    ]


def push_variants(access: PushAccess) -> list[PushVariant]:
    """Return other ways to the same end; plain-HTTP registries on loopback get the flags that clients then need."""
    user, repository, reference = access.username, _repository(access), access.reference
    flag = "" if access.tls else "--tls-verify=false "
    source_flag = "" if access.tls else "--dest-tls-verify=false "
    password = f"printf %s '{access.password}' | "
    return [
        PushVariant(
            "Docker, the password kept out of the process list",
            (
                f"docker build --platform linux/amd64 -t {LOCAL_IMAGE} .",
                f"docker tag {LOCAL_IMAGE} {reference}",
                f"{password}docker login --username {user} --password-stdin {repository}",
                f"docker push {reference}",
            ),
        ),
        PushVariant(
            "Podman",
            (
                f"podman build --platform linux/amd64 -t {LOCAL_IMAGE} .",
                f"{password}podman login {flag}--username {user} --password-stdin {repository}",
                f"podman push {flag}{LOCAL_IMAGE} {reference}",
            ),
        ),
        PushVariant(
            "Skopeo, from the local Docker",
            (
                f"{password}skopeo login {flag}--username {user} --password-stdin {repository}",
                f"skopeo copy {source_flag}docker-daemon:{LOCAL_IMAGE} docker://{reference}",
            ),
        ),
    ]


def _repository(access: PushAccess) -> str:
    return f"{access.registry}/{access.repository}"
