"""Images come in by the page's commands with docker, podman and skopeo, and only where they may."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.e2e.platform.clients import Client
from tests.e2e.platform.conftest import write_context
from tests.e2e.platform.harness import Platform


@pytest.mark.both_engines
def test_the_four_commands_push_and_a_second_push_leaves_old_jobs_their_digest(
    platform: Platform, docker: Client, context: Path, scan: int
) -> None:
    image = platform.post("/v1/images", {"name": "Versioned"})["id"]
    assert platform.get(f"/v1/images/{image}")["status"] == "created"
    told = platform.instructions(image)
    registry, where = re.escape(told["registry"]), re.escape(f"{told['registry']}/{told['repository']}")
    build, tag, login, push = told["commands"]
    assert build == "docker build -t my-docker-image:latest ."
    assert re.fullmatch(rf"docker tag my-docker-image:latest {where}:{re.escape(told['tag'])}", tag)
    assert re.fullmatch(rf"docker login --username AWS --password \S+ {registry}/\S+", login)
    assert push == f"docker push {told['registry']}/{told['repository']}:{told['tag']}"

    write_context(context, "zoo", "1")
    for command in (build, tag, login, push):
        done = docker.follow(command, context)
        assert done.returncode == 0, done.stderr
    first = platform.image(image)
    assert first["status"] == "uploaded"
    assert first["current"]["digest"] in done.stdout
    assert first["current"]["details"]["labels"]["version"] == "1"
    assert first["current"]["details"]["entrypoint"] == ["python3", "main.py"]
    algorithm = platform.algorithm(image, "Versioned", env=[{"name": "BEHAVIOUR", "value": "version"}])
    [old] = platform.submit(algorithm, scan)
    assert platform.succeeded(old)["image_digest"] == first["current"]["digest"]

    write_context(context, "zoo", "2")
    for command in (build, tag, push):
        done = docker.follow(command, context)
        assert done.returncode == 0, done.stderr
    [digest] = re.findall(r"digest: (sha256:[0-9a-f]{64})", done.stdout)
    assert digest != first["current"]["digest"]
    assert platform.image(image, digest)["current"]["number"] == 2
    [new] = platform.submit(algorithm, scan)
    [again] = [platform.post(f"/v1/jobs/{old}/rerun")["id"]]
    assert platform.succeeded(new)["image_digest"] == digest
    assert platform.report(new) == {"version": "2"}
    assert platform.succeeded(again)["image_digest"] == first["current"]["digest"]
    assert platform.report(again) == {"version": "1"}
    assert platform.job(old)["image_digest"] == first["current"]["digest"]
    assert [v["number"] for v in platform.get(f"/v1/images/{image}/versions")] == [2, 1]


def test_podman_pushes_and_the_image_runs(platform: Platform, podman: Client, context: Path, scan: int) -> None:
    image = platform.post("/v1/images", {"name": "By podman"})["id"]
    write_context(context, "zoo")
    told = platform.instructions(image)
    [variant] = [v for v in told["variants"] if v["title"] == "Podman"]
    for command in variant["commands"]:
        done = podman.follow(command, context)
        assert done.returncode == 0, done.stderr
    assert platform.image(image)["status"] == "uploaded"
    algorithm = platform.algorithm(image, "By podman", env=[{"name": "BEHAVIOUR", "value": "post"}])
    platform.succeeded(*platform.submit(algorithm, scan))


def test_skopeo_copies_and_the_image_runs(
    platform: Platform, podman: Client, skopeo: Client, context: Path, folder: Path, scan: int
) -> None:
    image = platform.post("/v1/images", {"name": "By skopeo"})["id"]
    told = platform.instructions(image)
    [variant] = [v for v in told["variants"] if v["title"].startswith("Skopeo")]
    login, copy = variant["commands"]
    assert skopeo.follow(login, folder).returncode == 0
    write_context(context, "zoo")
    podman.ok("build", "--tag", "localhost/for-skopeo", ".", cwd=context)
    podman.ok("save", "--quiet", "--format=oci-dir", "--output", str(folder / "oci"), "localhost/for-skopeo")
    done = skopeo.follow(copy.replace("docker-daemon:my-docker-image:latest", f"oci:{folder}/oci"), folder)
    assert done.returncode == 0, done.stderr
    assert platform.image(image)["status"] == "uploaded"
    algorithm = platform.algorithm(image, "By skopeo", env=[{"name": "BEHAVIOUR", "value": "post"}])
    platform.succeeded(*platform.submit(algorithm, scan))


def _tiny(context: Path, lines: str) -> Path:
    tiny = context.parent / "tiny"
    tiny.mkdir(exist_ok=True)
    (tiny / "model").write_text("x")
    (tiny / "Dockerfile").write_text(f"FROM scratch\nCOPY model /model\n{lines}")
    return tiny


def test_a_push_to_anothers_repository_is_refused(platform: Platform, docker: Client, context: Path) -> None:
    mine, other = (platform.post("/v1/images", {"name": name})["id"] for name in ("Mine", "Another's"))
    told, theirs = platform.instructions(mine), platform.instructions(other)
    tiny = _tiny(context, 'ENTRYPOINT ["/model"]\n')
    target = f"{theirs['registry']}/{theirs['repository']}:{theirs['tag']}"
    docker.ok("build", "--tag", target, ".", cwd=tiny)
    # Docker keeps one login per registry host: the one for our own repository is the newest.
    assert docker.follow(told["commands"][2], tiny).returncode == 0
    done = docker.run("push", target)
    assert done.returncode != 0
    assert f"{told['repository']} only" in done.stderr
    assert platform.get(f"/v1/images/{other}")["status"] == "created"
    assert platform.get(f"/v1/images/{other}/versions") == []


@pytest.mark.parametrize(
    ("lines", "arguments", "words"),
    [
        ("", (), "ENTRYPOINT"),
        ('ENTRYPOINT ["/model"]\n', ("--arch", "arm64"), "arm64"),
    ],
    ids=["no entrypoint", "arm64"],
)
def test_an_image_that_cannot_run_is_failed_with_what_to_do(
    platform: Platform, podman: Client, context: Path, lines: str, arguments: tuple[str, ...], words: str
) -> None:
    image = platform.post("/v1/images", {"name": f"Bad: {words}"})["id"]
    told = platform.instructions(image)
    reference = f"{told['registry']}/{told['repository']}:{told['tag']}"
    podman.ok("build", *arguments, "--tag", reference, ".", cwd=_tiny(context, lines))
    podman.ok("push", "--tls-verify=false", f"--creds=AWS:{told['password']}", reference)
    found = platform.image(image)
    assert found["status"] == "failed"
    assert words in found["failure_message"]
    assert found["current"] is None
    body = {"name": "x", "image_id": image, "instance_type": "g4dn.xlarge"}
    answer = platform.api.post("/v1/containers", json=body)
    assert answer.status_code == 422
    assert "$.image_id" in json.dumps(answer.json()["errors"])
    # It goes away with its layers, and nothing of it was promoted.
    assert platform.api.delete(f"/v1/images/{image}").status_code == 204
    assert platform.api.get(f"/v1/images/{image}").status_code == 404
