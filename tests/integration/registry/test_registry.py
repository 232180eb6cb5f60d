"""What the registry itself holds: rights, notifications, crashes, and a process that is ours to start and stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from mhs_ray.domain.errors import AdmissionError, OverloadedError, RegistryError
from mhs_ray.ports import ImageRegistry
from mhs_ray.registry.client import DistributionClient
from mhs_ray.registry.keys import RegistryKeys
from mhs_ray.registry.media import OCI_MANIFEST
from mhs_ray.registry.server import RegistryServer
from mhs_ray.registry.tokens import RegistryTokens
from tests.integration.registry.conftest import Client, Platform, free_port
from tests.registry_images import Memory, image, tar


def pushed_by_hand(platform: Platform, image_id: int, source: Memory, digest: str) -> None:
    """Push an image of `source` with the rights of its owner's credential, as plain HTTP requests."""
    access = platform.access(image_id)
    with httpx.Client(base_url=f"http://{access.registry}/v2/{access.repository}/", trust_env=False) as http:
        http.headers["Authorization"] = f"Bearer {bearer(platform, image_id)}"
        for name, data in source.blobs.items():
            location = http.post("blobs/uploads/").headers["location"]
            answer = http.put(f"http://{access.registry}{location}&digest={name}", content=data)
            assert answer.status_code == 201, answer.text
        manifest = source.manifests[digest]
        answer = http.put(
            f"manifests/{access.tag}", content=manifest.body, headers={"Content-Type": manifest.media_type}
        )
        assert answer.status_code == 201, answer.text


def bearer(platform: Platform, image_id: int, *scopes: str) -> str:
    """Trade the owner's credential for a bearer token through the realm."""
    access = platform.access(image_id)
    wanted = scopes or (f"repository:{access.repository}:push,pull",)
    query: list[tuple[str, str | int | float | bool | None]] = [
        ("service", "mhs-registry"),
        *(("scope", scope) for scope in wanted),
    ]
    answer = httpx.get(platform.server.realm_url, params=query, auth=("AWS", access.password), trust_env=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["token"])


def test_the_adapter_is_an_image_registry(platform: Platform) -> None:
    registry: ImageRegistry = platform.registry
    assert registry.push_access(7, 1, datetime.now(UTC) + timedelta(hours=1)).reference.endswith(
        "/quarantine/7:image-7"
    )


def test_an_owner_can_neither_delete_nor_mount_from_others_nor_list_all(platform: Platform) -> None:
    source = Memory()
    digest = image(source)
    pushed_by_hand(platform, 201, source, digest)
    root = f"http://{platform.server.address}/v2"
    layer = next(iter(source.blobs))
    own = {"Authorization": f"Bearer {bearer(platform, 201, 'repository:quarantine/201:push,pull,delete')}"}
    assert httpx.delete(f"{root}/quarantine/201/manifests/{digest}", headers=own).status_code == 401
    both = bearer(platform, 202, "repository:quarantine/202:push,pull", "repository:quarantine/201:pull")
    answer = httpx.post(
        f"{root}/quarantine/202/blobs/uploads/", params={"mount": layer, "from": "quarantine/201"},
        headers={"Authorization": f"Bearer {both}"},
    )  # fmt: skip
    assert answer.status_code == 401
    assert httpx.get(f"{root}/_catalog", headers=own).status_code == 401
    assert httpx.get(f"{root}/quarantine/201/manifests/{digest}").status_code == 401
    other = {"Authorization": f"Bearer {bearer(platform, 202)}", "Accept": OCI_MANIFEST}
    assert httpx.get(f"{root}/quarantine/201/manifests/{digest}", headers=other).status_code == 401
    assert platform.registry.pushed(201) == digest


def test_a_push_is_notified_with_repository_tag_digest_and_who(platform: Platform) -> None:
    source = Memory()
    digest = image(source)
    pushed_by_hand(platform, 203, source, digest)

    def found() -> bool:
        return any(e["target"].get("tag") == "image-203" for e in platform.events)

    with platform.arrived:
        assert platform.arrived.wait_for(found, timeout=20)
    [event] = [e for e in platform.events if e["target"].get("tag") == "image-203"]
    assert event["action"] == "push"
    assert event["target"]["repository"] == "quarantine/203"
    assert event["target"]["digest"] == digest
    assert event["actor"]["name"] == "company-1/image-203"
    assert all(e["target"]["mediaType"] != "application/octet-stream" for e in platform.events)


def test_hostile_images_reach_quarantine_and_no_further(platform: Platform) -> None:
    source = Memory()
    bad = image(source, [tar([("../../etc/passwd", b"root")])])
    pushed_by_hand(platform, 204, source, bad)
    with pytest.raises(AdmissionError, match="leads out of its folder"):
        platform.registry.admit(204, bad)
    assert platform.registry._client.tags("trusted/204") == []
    with pytest.raises(AdmissionError, match="announced but not pushed"):
        platform.registry.admit(204, "sha256:" + "0" * 64)


def test_an_index_is_promoted_as_its_one_amd64_image(
    podman: Client, platform: Platform, rootfs: dict[str, Path]
) -> None:
    access = platform.access(205)
    context = podman.work / "platforms"
    context.mkdir()
    (context / "rootfs.tar").write_bytes(rootfs["one"].read_bytes())
    (context / "Dockerfile").write_text('FROM scratch\nADD rootfs.tar /\nENTRYPOINT ["/app/model"]\n')
    podman.ok("manifest", "create", "both")
    for architecture in ("amd64", "arm64"):
        podman.ok(
            "build", "--no-cache", "--platform", f"linux/{architecture}", "-t", f"for-{architecture}", str(context)
        )
        podman.ok("manifest", "add", "both", f"containers-storage:localhost/for-{architecture}")
    podman.ok("manifest", "push", "--all", "--tls-verify=false", f"--creds=AWS:{access.password}", "both",
              f"docker://{access.reference}")  # fmt: skip
    pushed = platform.registry.pushed(205)
    assert pushed
    admission = platform.registry.admit(205, pushed)
    assert admission.digest != pushed
    assert admission.details["architecture"] == "amd64"
    assert platform.registry.promote(205, admission.digest, 1).digest == admission.digest
    podman.ok("push", "--tls-verify=false", f"--creds=AWS:{access.password}", "for-arm64", access.reference)
    with pytest.raises(AdmissionError, match="docker build --platform linux/amd64"):
        platform.registry.admit(205, str(platform.registry.pushed(205)))


def test_removing_a_definition_forgets_quarantine_and_trusted(platform: Platform) -> None:
    source = Memory()
    digest = image(source)
    pushed_by_hand(platform, 206, source, digest)
    ref = platform.registry.promote(206, platform.registry.admit(206, digest).digest, 1)
    platform.registry.remove(206)
    assert platform.registry.pushed(206) is None
    assert platform.registry._client.head_manifest("trusted/206", ref.digest) is None
    platform.registry.remove(206)
    platform.registry.remove(999_999)
    with pytest.raises(RegistryError, match="gone from quarantine"):
        platform.registry.promote(206, digest, 2)


def test_a_promotion_that_is_cut_off_leaves_nothing_to_pull_and_may_be_repeated(platform: Platform) -> None:
    source = Memory()
    digest = image(source)
    pushed_by_hand(platform, 207, source, digest)
    client = platform.registry._client
    first = next(iter(source.blobs))
    client.mount_blob("trusted/207", first, "quarantine/207")  # what a promotion does before its end
    kill(platform)
    with pytest.raises(RegistryError, match="cannot be reached"):
        platform.registry.promote(207, digest, 1)
    platform.server.start()
    assert client.head_manifest("trusted/207", digest) is None
    assert client.tags("trusted/207") == []
    assert platform.registry.promote(207, digest, 1).digest == digest


def test_a_registry_killed_during_a_push_costs_a_retry_at_most(
    docker: Client, platform: Platform, tmp_path: Path
) -> None:
    access = platform.access(208)
    archive = tmp_path / "big.tar"
    archive.write_bytes(tar([("app/model", os.urandom(24 << 20))]))
    docker.build(archive, access.reference)
    docker.ok("login", "--username", "AWS", "--password-stdin", f"{access.registry}/{access.repository}",
              stdin=access.password)  # fmt: skip
    push = subprocess.Popen(
        [*docker.words, "push", access.reference],
        env=docker.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    uploads = platform.server.storage_path / "docker/registry/v2/repositories/quarantine/208/_uploads"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and push.poll() is None and not any(uploads.glob("*/data")):
        time.sleep(0.005)
    kill(platform)
    platform.server.start()
    output, _ = push.communicate(timeout=100)
    if push.returncode:
        assert output.strip()  # it said why; the same command then succeeds
        docker.ok("push", access.reference)
    digest = platform.registry.pushed(208)
    assert digest
    assert platform.registry.admit(208, digest).details["uncompressed_size"] > 24 << 20


def test_an_upload_goes_on_after_a_restart(platform: Platform) -> None:
    access = platform.access(209)
    data = os.urandom(100_000)
    source = Memory()
    digest = source.add(data)
    headers = {"Authorization": f"Bearer {bearer(platform, 209)}"}
    root = f"http://{access.registry}"
    location = httpx.post(f"{root}/v2/{access.repository}/blobs/uploads/", headers=headers).headers["location"]
    answer = httpx.patch(root + location, content=data[:60_000], headers=headers)
    assert answer.status_code == 202
    kill(platform)
    platform.server.start()
    final = f"{root}{answer.headers['location']}&digest={digest}"
    assert httpx.put(final, content=data[60_000:], headers=headers).status_code == 201


def test_removed_and_replaced_pushes_are_freed_while_it_is_stopped_and_promoted_ones_stay(platform: Platform) -> None:
    def push(image_id: int) -> tuple[str, Path]:
        source = Memory()
        digest = image(source, [tar([("app/model", os.urandom(50_000))])])
        pushed_by_hand(platform, image_id, source, digest)
        name = max(source.blobs, key=lambda d: len(source.blobs[d])).partition(":")[2]
        return digest, platform.server.storage_path / f"docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data"

    _, removed = push(210)
    platform.registry.remove(210)
    promoted_digest, promoted = push(211)
    ref = platform.registry.promote(211, promoted_digest, 1)
    _, replaced = push(211)
    newest_digest, newest = push(211)
    with pytest.raises(RegistryError, match="stop the registry"):
        platform.server.collect_garbage()
    platform.server.stop()
    try:
        platform.server.collect_garbage()
    finally:
        platform.server.start()
    assert [path.exists() for path in (removed, replaced, promoted, newest)] == [False, False, True, True]
    assert platform.registry._client.head_manifest("trusted/211", ref.digest) == promoted_digest
    assert platform.registry.admit(211, newest_digest).digest == platform.registry.pushed(211)


def kill(platform: Platform) -> None:
    pid = platform.server.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    while platform.server.running:
        time.sleep(0.01)


def server_at(root: Path, port: int, binary: str = "docker-registry") -> RegistryServer:
    certificate = root / "token.crt"
    if not certificate.exists():
        RegistryKeys.load_or_create(root)
    return RegistryServer(
        root / "state", port, "http://127.0.0.1:9/token", "mhs", "mhs-registry", certificate,
        "http://127.0.0.1:9/events", "notify-secret", binary=binary,
    )  # fmt: skip


def test_a_missing_program_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="apt-get install docker-registry"):
        server_at(tmp_path, free_port(), binary="no-such-registry").start()


def test_a_push_does_not_begin_on_a_full_disk(platform: Platform) -> None:
    platform.server.check_room(0)
    with pytest.raises(OverloadedError, match="too little for a push"):
        platform.server.check_room(1 << 60)


def test_a_taken_port_is_told_as_the_registry_says_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = server_at(tmp_path, taken.getsockname()[1])
        with pytest.raises(RegistryError, match="address already in use"):
            server.start()
    assert not server.running


def test_secrets_are_in_private_files_and_not_on_the_command_line(tmp_path: Path) -> None:
    server = server_at(tmp_path, free_port())
    server.start()
    try:
        assert server.config_path.stat().st_mode & 0o777 == 0o600
        assert server.log_path.stat().st_mode & 0o777 == 0o600
        assert "notify-secret" in server.config_path.read_text()
        assert "notify-secret" not in Path(f"/proc/{server.pid}/cmdline").read_text()
        assert "notify-secret" not in Path(f"/proc/{server.pid}/environ").read_text()
    finally:
        server.stop()
    assert not server.healthy()


def test_a_registry_left_behind_by_a_killed_platform_is_replaced(tmp_path: Path) -> None:
    port = free_port()
    first, second = server_at(tmp_path, port), server_at(tmp_path, port)
    first.start()
    second.start()
    try:
        assert second.healthy()
        assert not first.running
    finally:
        second.stop()
        first.stop()


def test_a_token_of_another_key_opens_nothing(platform: Platform) -> None:
    foreign = RegistryTokens(RegistryKeys.create(), "mhs", "mhs-registry")
    client = DistributionClient(platform.server.address, lambda access: foreign.issue("x", access))
    with pytest.raises(RegistryError, match="answered 401"):
        client.tags("trusted/101")
    client.close()
