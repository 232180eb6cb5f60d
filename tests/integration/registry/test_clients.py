"""docker, podman and skopeo push as the page tells them to."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from mhs_ray.domain.errors import AdmissionError
from mhs_ray.registry.instructions import LOCAL_IMAGE, push_instructions, push_variants
from tests.integration.registry.conftest import Client, Platform


def follow(client: Client, command: str, stdin: str | None = None) -> Any:
    words = shlex.split(command)
    assert words[0] == client.name
    return client.run(*words[1:], stdin=stdin)


def docker_push(docker: Client, platform: Platform, image_id: int, archive: Path) -> str:
    """Follow the page's four commands and return what the push printed."""
    access = platform.access(image_id)
    build, tag, login, push = push_instructions(access)
    assert build == f"docker build -t {LOCAL_IMAGE} ."
    docker.build(archive, LOCAL_IMAGE)
    for command in (tag, login):
        done = follow(docker, command)
        assert done.returncode == 0, done.stderr
    done = follow(docker, push)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_the_four_commands_of_the_page_push_with_docker(
    docker: Client, platform: Platform, rootfs: dict[str, Path]
) -> None:
    assert platform.registry.pushed(101) is None
    output = docker_push(docker, platform, 101, rootfs["one"])
    digest = platform.registry.pushed(101)
    assert digest
    assert digest in output
    admission = platform.registry.admit(101, digest)
    assert admission.digest == digest
    assert admission.details["entrypoint"] == ["/app/model"]
    assert admission.details["ca_bundles"] == ["/opt/certifi/cacert.pem"]
    ref = platform.registry.promote(101, digest, 1)
    assert str(ref) == f"{platform.server.address}/trusted/101@{digest}"
    assert platform.registry.promote(101, digest, 1) == ref  # again after a crash
    credential = platform.registry.pull_credential(ref)
    docker.ok("login", "--username", credential.username, "--password-stdin", f"{ref.registry}/{ref.repository}",
              stdin=credential.password)  # fmt: skip
    docker.ok("pull", str(ref))
    docker.ok("logout", f"{ref.registry}/{ref.repository}")


def test_a_push_after_promotion_leaves_the_trusted_digest(
    docker: Client, platform: Platform, rootfs: dict[str, Path]
) -> None:
    docker_push(docker, platform, 102, rootfs["one"])
    first = platform.registry.pushed(102)
    assert first
    ref = platform.registry.promote(102, platform.registry.admit(102, first).digest, 1)
    docker_push(docker, platform, 102, rootfs["two"])
    second = platform.registry.pushed(102)
    assert second not in {None, first}
    client = platform.registry._client
    assert client.head_manifest("trusted/102", "v1") == first
    before = client.manifest("trusted/102", ref.digest)
    assert platform.registry.promote(102, str(second), 2).digest == second
    assert client.manifest("trusted/102", ref.digest) == before
    assert client.tags("trusted/102") == ["v1", "v2"]


def test_docker_is_denied_at_somebody_elses_repository(
    docker: Client, platform: Platform, rootfs: dict[str, Path]
) -> None:
    own, other = platform.access(103), platform.access(104)
    docker.build(rootfs["one"], LOCAL_IMAGE)
    docker.ok("tag", LOCAL_IMAGE, other.reference)
    docker.ok("login", "--username", "AWS", "--password-stdin", f"{own.registry}/{own.repository}", stdin=own.password)
    done = docker.run("push", other.reference)
    assert done.returncode != 0
    assert "the password you logged in with is for pushing to quarantine/103 only" in done.stderr
    assert platform.registry.pushed(104) is None


def test_the_same_layers_go_to_a_second_definition_though_mounting_them_is_refused(
    docker: Client, platform: Platform, rootfs: dict[str, Path]
) -> None:
    for image_id in (105, 106):
        docker_push(docker, platform, image_id, rootfs["two"])
        assert platform.registry.pushed(image_id)
    assert platform.registry.pushed(105) == platform.registry.pushed(106)


def test_docker_login_refuses_a_wrong_password(docker: Client, platform: Platform) -> None:
    access = platform.access(107)
    done = docker.run(
        "login", "--username", "AWS", "--password-stdin", f"{access.registry}/{access.repository}", stdin="x"
    )
    assert done.returncode != 0
    assert "Docker Push Instructions" in done.stderr


def test_podman_pushes_by_the_commands_of_its_variant(
    podman: Client, platform: Platform, rootfs: dict[str, Path]
) -> None:
    access = platform.access(111)
    [variant] = [v for v in push_variants(access) if v.title == "Podman"]
    _, login, push = variant.commands
    podman.build(rootfs["one"], LOCAL_IMAGE)
    before, _, login = login.partition(" | ")
    assert shlex.split(before)[:2] == ["printf", "%s"]
    assert follow(podman, login, stdin=access.password).returncode == 0
    done = follow(podman, push)
    assert done.returncode == 0, done.stderr
    digest = platform.registry.pushed(111)
    assert digest
    ref = platform.registry.promote(111, platform.registry.admit(111, digest).digest, 1)
    credential = platform.registry.pull_credential(ref)
    auth = f"{credential.username}:{credential.password}"
    podman.ok("pull", "--tls-verify=false", f"--creds={auth}", str(ref))
    other = platform.access(112)
    done = podman.run("push", "--tls-verify=false", f"--creds=AWS:{access.password}", LOCAL_IMAGE, other.reference)
    assert done.returncode != 0
    assert platform.registry.pushed(112) is None
    quarantined = f"{access.registry}/{access.repository}@{digest}"
    assert podman.run("pull", "--tls-verify=false", f"--creds={auth}", quarantined).returncode != 0


def test_podman_pushing_zstd_is_told_how_to_push_gzip(
    podman: Client, platform: Platform, rootfs: dict[str, Path]
) -> None:
    access = platform.access(113)
    podman.build(rootfs["one"], LOCAL_IMAGE)
    podman.ok("push", "--tls-verify=false", f"--creds=AWS:{access.password}", "--compression-format=zstd",
              "--format=oci", LOCAL_IMAGE, access.reference)  # fmt: skip
    digest = platform.registry.pushed(113)
    assert digest
    with pytest.raises(AdmissionError, match="--compression-format gzip"):
        platform.registry.admit(113, digest)


def test_skopeo_copies_by_the_commands_of_its_variant(
    podman: Client, skopeo: Client, platform: Platform, rootfs: dict[str, Path]
) -> None:
    access = platform.access(121)
    [variant] = [v for v in push_variants(access) if v.title.startswith("Skopeo")]
    login, copy = variant.commands
    podman.build(rootfs["two"], LOCAL_IMAGE)
    podman.ok("save", "--format=oci-dir", "-o", str(skopeo.work / "image"), LOCAL_IMAGE)
    assert follow(skopeo, login.partition(" | ")[2], stdin=access.password).returncode == 0
    done = follow(skopeo, copy.replace(f"docker-daemon:{LOCAL_IMAGE}", f"oci:{skopeo.work}/image"))
    assert done.returncode == 0, done.stderr
    digest = platform.registry.pushed(121)
    assert digest
    assert platform.registry.admit(121, digest).details["workdir"] == "/app"
    other = platform.access(122)
    done = skopeo.run("copy", "--dest-tls-verify=false", f"--dest-creds=AWS:{access.password}",
                      f"oci:{skopeo.work}/image", f"docker://{other.reference}")  # fmt: skip
    assert done.returncode != 0
    assert platform.registry.pushed(122) is None
