"""How every engine gets an image: by digest, once, with a credential that nobody sees. On a real registry."""

from __future__ import annotations

import base64
import http.client
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mhs_ray.domain.errors import EngineError
from mhs_ray.domain.models import ImageRef
from mhs_ray.engines import labels
from mhs_ray.engines.build import image_tools
from mhs_ray.engines.docker import DockerEngine
from mhs_ray.engines.podman import PodmanEngine
from mhs_ray.ports import ContainerSpec, Limits, RegistryCredential
from tests.engines_fixtures import unique
from tests.s3_fixtures import free_ports

pytestmark = pytest.mark.engine

Engine = PodmanEngine | DockerEngine
GOOD = RegistryCredential("mhs", "a-password-nobody-may-see", tls=False)


@dataclass
class Gate:
    """A registry behind a door that wants `GOOD` and counts the blobs it hands out."""

    registry: str  # without a door, for pushing
    door: str
    blobs: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("no registry on this machine: apt-get install docker-registry")
    home = tmp_path_factory.mktemp("registry")
    (port,) = free_ports(1)
    (home / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {home}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    registry = subprocess.Popen([program, "serve", str(home / "config.yml")], stderr=subprocess.DEVNULL)
    found = Gate(f"127.0.0.1:{port}", "")
    expected = "Basic " + base64.b64encode(f"{GOOD.username}:{GOOD.password}".encode()).decode()

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.headers.get("Authorization") != expected:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="test"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            inner = http.client.HTTPConnection("127.0.0.1", port)
            inner.request(
                self.command, self.path, headers={"Accept": ", ".join(self.headers.get_all("Accept") or ["*/*"])}
            )
            answer = inner.getresponse()
            if "/blobs/" in self.path and self.command == "GET":
                found.blobs.append(self.path)
                time.sleep(0.3)  # long enough for a second pull to meet the first
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"connection", "transfer-encoding", "date", "server"}:
                    self.send_header(name, value)
            self.end_headers()
            shutil.copyfileobj(answer, self.wfile)
            inner.close()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    found.door = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for _ in range(100):
        try:
            http.client.HTTPConnection("127.0.0.1", port).request("GET", "/v2/")
            break
        except OSError:
            time.sleep(0.05)
    yield found
    server.shutdown()
    server.server_close()
    registry.terminate()
    registry.wait(10)


@pytest.fixture
def pushed(engine: Engine, gate: Gate, small_image: str, tmp_path: Path) -> ImageRef:
    """A fresh image that is in the registry and not on the node."""
    (tmp_path / "Dockerfile").write_text(f'FROM {small_image}\nLABEL made={unique("l")}\nCMD ["/bin/echo", "pulled"]\n')
    tag = f"{gate.registry}/trusted/model-{engine.name}:{unique('v')}"
    tools = image_tools(engine)
    tools.build(tmp_path, tag)
    digest = tools.push(tag, "anybody", "anything", tls=False)
    if isinstance(engine, PodmanEngine):
        engine.call("forget an image", "rmi", "--force", tag)
    else:
        with engine.client() as api:
            api.remove_image(tag, force=True)
    gate.blobs.clear()
    return ImageRef(gate.door, f"trusted/model-{engine.name}", digest)


def test_an_image_is_pulled_by_digest_and_runs_by_it(engine: Engine, gate: Gate, pushed: ImageRef) -> None:
    engine.pull(pushed, GOOD)
    heard = bytearray()
    spec = ContainerSpec(
        name=unique("p", engine.name),
        image=pushed,
        env={},
        labels={labels.PLATFORM: "pull-test"},
        limits=Limits(1, 128 << 20, shm_bytes=1 << 20),
    )
    engine.run(spec, lambda _, data: heard.extend(data), lambda _: None)
    engine.remove(spec.name)
    assert bytes(heard) == b"pulled\n"
    gate.blobs.clear()
    engine.pull(pushed, None)  # it is there: nobody is asked
    assert gate.blobs == []


def test_pulls_at_the_same_time_download_once(engine: Engine, gate: Gate, pushed: ImageRef) -> None:
    faults: list[Exception] = []

    def pull() -> None:
        try:
            engine.pull(pushed, GOOD)
        except Exception as exc:
            faults.append(exc)

    threads = [threading.Thread(target=pull) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert len(gate.blobs) == len(set(gate.blobs)) > 0


def test_a_wrong_password_is_told_and_not_shown(engine: Engine, pushed: ImageRef) -> None:
    wrong = RegistryCredential("mhs", "wrong-but-secret-all-the-same", tls=False)
    with pytest.raises(EngineError, match="pull") as caught:
        engine.pull(pushed, wrong)
    assert wrong.password not in str(caught.value)
    with pytest.raises(EngineError):
        engine.pull(pushed, None)


def test_a_digest_that_the_registry_does_not_have_is_an_error(engine: Engine, gate: Gate, pushed: ImageRef) -> None:
    with pytest.raises(EngineError, match="pull"):
        engine.pull(ImageRef(pushed.registry, pushed.repository, "sha256:" + "0" * 64), GOOD)


def test_podman_speaks_plain_http_only_when_told(podman_engine: PodmanEngine, gate: Gate) -> None:
    image = ImageRef(gate.door, "trusted/model-podman", "sha256:" + "0" * 64)
    with pytest.raises(EngineError, match=r"HTTPS|https|TLS|tls"):
        podman_engine.pull(image, RegistryCredential("mhs", GOOD.password, tls=True))
