"""How every engine gets an image: by digest, once, with a credential that nobody sees. On a real registry."""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mhs_ray.attempt.image_room import make_room
from mhs_ray.attempt.pulled import PulledImages
from mhs_ray.domain.errors import EngineError
from mhs_ray.domain.models import ImageRef
from mhs_ray.domain.sections import ImageSettings
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
    """A registry behind a door that wants `GOOD` and counts the blobs it hands out.

    slow: lets 64 KiB a quarter of a second of a blob through. handing_out: how many blobs are on their way now.
    """

    registry: str  # without a door, for pushing
    door: str
    blobs: list[str] = field(default_factory=list)
    slow: bool = False
    handing_out: int = 0


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
            found.handing_out += 1
            try:
                while piece := answer.read(1 << 16):
                    self.wfile.write(piece)
                    if found.slow and "/blobs/" in self.path:
                        time.sleep(0.25)
            except OSError:  # the client hung up
                self.close_connection = True
            finally:
                found.handing_out -= 1
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
    return _push(engine, gate, tmp_path)


@pytest.fixture
def large(engine: Engine, gate: Gate, small_image: str, tmp_path: Path) -> Iterator[ImageRef]:
    """An image with 4 MiB that no other has, in the registry and not on the node, while the registry is slow."""
    (tmp_path / "weights").write_bytes(os.urandom(4 << 20))
    (tmp_path / "Dockerfile").write_text(f"FROM {small_image}\nCOPY weights /weights\n")
    image = _push(engine, gate, tmp_path)
    gate.slow = True
    yield image
    gate.slow = False


def _push(engine: Engine, gate: Gate, context: Path) -> ImageRef:
    """Build and push what lies in `context`, and have the engine forget it."""
    tag = f"{gate.registry}/trusted/model-{engine.name}:{unique('v')}"
    tools = image_tools(engine)
    tools.build(context, tag)
    digest = tools.push(tag, "anybody", "anything", tls=False)
    if isinstance(engine, PodmanEngine):
        engine.call("forget an image", "rmi", "--force", tag)
    else:
        with engine.client() as api:
            api.remove_image(tag, force=True)
    gate.blobs.clear()
    return ImageRef(gate.door, f"trusted/model-{engine.name}", digest)


class Pull(threading.Thread):
    """A pull by somebody who may lose interest."""

    def __init__(self, engine: Engine, image: ImageRef) -> None:
        super().__init__(daemon=True)
        self._engine, self._image = engine, image
        self.cancel, self.error = threading.Event(), ""
        self.start()

    def run(self) -> None:
        try:
            self._engine.pull(self._image, GOOD, self.cancel.is_set)
        except EngineError as error:
            self.error = str(error)

    def cancelled_within(self, seconds: float) -> bool:
        self.cancel.set()
        self.join(seconds)
        return not self.is_alive() and "cancelled" in self.error


def until(look: Callable[[], bool], within_s: float = 20) -> None:
    ends = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < ends
        time.sleep(0.05)


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


def test_a_cancelled_pull_ends_within_seconds_and_the_next_one_brings_the_image(
    engine: Engine, gate: Gate, large: ImageRef
) -> None:
    pull = Pull(engine, large)
    until(lambda: gate.handing_out > 0)
    time.sleep(0.5)  # in the middle of the layer, which takes sixteen seconds
    assert pull.cancelled_within(6)
    until(lambda: gate.handing_out == 0)  # nobody goes on with it behind our back
    assert not engine._has(large)
    assert not list(Path("/var/tmp").glob(f"mhs-pull-{large.digest[7:23]}*"))
    gate.slow = False
    gate.blobs.clear()
    engine.pull(large, GOOD)
    assert engine._has(large)
    assert gate.blobs


def test_who_waits_for_a_pull_that_is_cancelled_starts_it_again_and_who_waits_may_be_cancelled_too(
    engine: Engine, gate: Gate, large: ImageRef
) -> None:
    first = Pull(engine, large)
    until(lambda: gate.handing_out > 0)
    second, third = Pull(engine, large), Pull(engine, large)
    assert third.cancelled_within(2)
    assert first.is_alive()
    assert first.cancelled_within(6)
    gate.slow = False
    second.join(30)
    assert (second.is_alive(), second.error) == (False, "")
    assert engine._has(large)


# ------------------------------------------------------------ removing


@pytest.fixture
def versions(engine: Engine, gate: Gate, small_image: str, tmp_path: Path) -> Iterator[list[ImageRef]]:
    """Three versions of a model on the node, the first used the longest time ago: a base they share, 2 MiB each."""
    made = []
    for number in range(3):
        (tmp_path / "weights").write_bytes(os.urandom(2 << 20))
        (tmp_path / "Dockerfile").write_text(
            f'FROM {small_image}\nCOPY weights /weights\nCMD ["/bin/sleep", "60"]\nLABEL number="{number}"\n'
        )
        made.append(_push(engine, gate, tmp_path))
    for image in made:
        engine.pull(image, GOOD)
    yield made
    for image in made:
        engine.remove_image(image)


def test_old_versions_go_but_none_that_a_container_uses_or_a_job_needs_and_a_shared_layer_counts_once(
    engine: Engine, versions: list[ImageRef], tmp_path: Path, small_image: str
) -> None:
    full = engine.storage()
    assert full.free_bytes > 0
    assert engine.remove_image(versions[0])
    less = engine.storage()
    assert 2 << 20 <= full.image_bytes - less.image_bytes < 3 << 20, "its own layer, not the base"
    assert not engine._has(versions[0])
    assert engine._has(versions[1])
    assert engine.remove_image(versions[0]), "nothing happens if it is not there"
    engine.pull(versions[0], GOOD)
    assert engine._has(versions[0])

    pulled = PulledImages(tmp_path / "images", engine)
    for image in versions:
        pulled.add(image)
        time.sleep(0.02)
    runs = ContainerSpec(
        name=unique("r", engine.name),
        image=versions[0],
        env={},
        labels={labels.PLATFORM: "room-test"},
        limits=Limits(1, 128 << 20, shm_bytes=1 << 20),
    )
    started = threading.Event()
    running = threading.Thread(target=engine.run, args=(runs, lambda *_: None, lambda _: started.set()), daemon=True)
    running.start()
    assert started.wait(30)
    nothing = ImageSettings.model_validate({"cache": 0, "min_free": 0})
    try:
        removed = make_room(engine, pulled, nothing, keep=[versions[2].digest])
        assert [r.ref for r in removed] == [versions[1]]
        status = engine.inspect(runs.name)
        assert status is not None
        assert status.running
        assert [k.ref for k in pulled.kept()] == [versions[0], versions[2]]
    finally:
        engine.stop(runs.name, 0)
        running.join(20)
    assert make_room(engine, pulled, nothing, keep=[versions[2].digest]) == (), "an ended container keeps it too"
    engine.remove(runs.name)
    assert [r.ref for r in make_room(engine, pulled, nothing)] == [versions[0], versions[2]]
    assert not any(engine._has(image) for image in versions)
    assert (
        engine.image(small_image) if isinstance(engine, DockerEngine) else engine.call("look", "inspect", small_image)
    )
