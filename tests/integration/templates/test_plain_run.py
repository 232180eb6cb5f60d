"""The plain template by a plain `podman run` with API keys, as the contract has it, against the real API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mhs_ray.auth.clients import hash_secret
from mhs_ray.domain.models import Role
from mhs_ray.engines.build import image_tools
from mhs_ray.engines.podman import PodmanEngine
from mhs_ray.platform.base_image import DEFAULT_TAG, make_base_image
from mhs_ray.slides.demo import make_demo_slide
from mhs_ray.templates import write_template
from tests.api_fixtures import Server, api_server

PROJECT = Path(__file__).resolve().parents[3]
# What a machine that is a container itself asks of podman; a person's own machine does not.
_HERE = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_container_run_by_hand_with_api_keys_posts_to_the_platform(
    podman_engine: PodmanEngine, base_cache: Path, tmp_path: Path
) -> None:
    tools = image_tools(podman_engine)
    make_base_image(tools, base_cache, progress=lambda line: None)
    write_template("plain", tmp_path / "lab")
    image = "localhost/mhs-by-hand:test"
    tools.build(tmp_path / "lab", image, {"BASE_IMAGE": DEFAULT_TAG})
    slide = make_demo_slide(tmp_path / "slide.svs", 1024, 1024).path
    with api_server(tmp_path / "home") as server:
        company = server.world.company()
        submitted = server.world.submit(company)
        env = user(server, company) | {"MHS_HOME": str(tmp_path / "mine"), "PYTHONPATH": str(PROJECT)}
        words = ("local-env", str(submitted.task.number), image, "--scan", str(slide), "--engine", "podman", "--json")
        serving = subprocess.Popen(
            [sys.executable, "-m", "mhs_ray.cli.main", *words], env=env, stdout=subprocess.PIPE, text=True
        )
        try:
            assert serving.stdout is not None
            told = json.loads(serving.stdout.readline())
            assert "s3cret-of-a-person" not in json.dumps(told)
            assert told["export"] == "export API_KEY_ID=$MHS_CLIENT_ID API_KEY_SECRET=$MHS_CLIENT_SECRET"
            assert told["command"][:2] == ["podman", "run"]
            assert Path(told["env_file"]).stat().st_mode & 0o077 == 0
            keys = {"API_KEY_ID": env["MHS_CLIENT_ID"], "API_KEY_SECRET": env["MHS_CLIENT_SECRET"]}
            command = [*podman_engine.base, "run", *_HERE, *told["command"][2:]]
            done = subprocess.run(
                command, env={**os.environ, **keys}, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "Generated 4 fake annotations" in done.stdout
        finally:
            serving.terminate()
            serving.wait(30)
        assert not list((tmp_path / "mine" / "local").glob("plain-*"))
        with server.user(company) as http:
            [found] = http.get(f"/v1/jobs/{submitted.job_ids[0]}/results").json()["scanResults"]
            assert found["features"] == 4


def user(server: Server, company: int) -> dict[str, str]:
    """Return the environment of a person with a client's id and secret."""
    client_id, secret = "mhs-by-hand", "s3cret-of-a-person"
    server.core.clients.add(client_id, company, "Ada", Role.LAB_USER, hash_secret(secret))
    mine = {k: v for k, v in os.environ.items() if not k.startswith("MHS_")}
    return {**mine, "MHS_URL": server.url, "MHS_CLIENT_ID": client_id, "MHS_CLIENT_SECRET": secret}
