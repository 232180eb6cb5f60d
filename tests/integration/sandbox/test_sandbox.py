"""A whole sandbox around real containers, on podman and on Docker."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mhs_ray.domain.errors import EngineError, SandboxError
from mhs_ray.engines.docker import DockerEngine
from mhs_ray.engines.labels import ROLE, ROLE_MODEL
from mhs_ray.engines.pause import ensure_pause_image
from mhs_ray.engines.podman import PodmanEngine
from mhs_ray.ports import ContainerEngine, ContainerSpec, ContainerStatus, Limits
from mhs_ray.sandbox import network
from mhs_ray.sandbox.sandbox import Sandbox, SandboxSpec
from mhs_ray.sandbox.scratch import mounts_below, remove_folder
from tests.engines_fixtures import unique

if TYPE_CHECKING:
    from tests.integration.sandbox.conftest import Gateway

CERTIFI = "/app/venv/certifi/cacert.pem"  # in no image: its folder has to be made

# Python with nothing but its standard library, as a container's own program.
PROGRAM = """
import json, os, socket, ssl, sys, urllib.error, urllib.request as u
def say(key, value): print(json.dumps([key, value]), flush=True)
def attempt(key, do):
    try: say(key, do())
    except urllib.error.HTTPError as e: say(key, [e.code, e.read().decode()])
    except Exception as e: say(key, f"{type(e).__name__}: {e}")
def ask(url, method="GET", data=None, headers={}, opener=u.build_opener()):
    with opener.open(u.Request(url, data, headers, method=method), timeout=20) as r:
        return [r.status, r.read().decode()]
slide, debug = os.environ["SCAN_URL"], os.environ["DEBUG_FILE_UPLOAD_URL"]
api = f"https://api.{os.environ['HOST']}"
attempt("slide", lambda: ask(slide))
attempt("range", lambda: ask(slide, headers={"Range": "bytes=6-"}))
attempt("results", lambda: ask(f"{api}/api/v3/external/results/7", "POST", b"{}"))
attempt("debug", lambda: ask(debug, "PUT", b"debug zip"))
attempt("outside", lambda: ask("https://evil.example/"))
attempt("platform", lambda: ask(f"{api}/v1/jobs"))
for path in sys.argv[1:]:
    context = ssl.create_default_context(cafile=path)
    direct = u.build_opener(u.ProxyHandler({}), u.HTTPSHandler(context=context))
    attempt("store " + path, lambda: ask(slide, opener=direct))
attempt("metadata", lambda: socket.create_connection(("169.254.169.254", 80), 5))
attempt("dns", lambda: socket.getaddrinfo("evil.example", 443))
attempt("links", lambda: [name for _, name in socket.if_nameindex()])
def write(path):
    with open(path, "w") as f: f.write("x")
    return os.stat(path).st_size
for place in ("/tmp", "/var/tmp", "/input", "/output", "/scratch", "/run"):
    attempt("write " + place, lambda: write(place + "/f"))
for path in ("/etc/hosts", "/etc/resolv.conf", "/etc/mhs/trust.pem", "/app/x"):
    attempt("write " + path, lambda: write(path))
def fill():
    try:
        with open("/scratch/big", "wb") as f:
            for _ in range(100): f.write(b"x" * (1 << 20))
    finally: os.unlink("/scratch/big")
attempt("fill", fill)
say("home", os.path.expanduser("~"))
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "sandboxes"
    remove_folder(tmp_path / "sandboxes")


@pytest.fixture
def spec(engine: ContainerEngine, gateway: Gateway) -> SandboxSpec:
    name = unique("sb", engine.name)
    return SandboxSpec(
        name=name,
        labels={"mhs.job": "1", "mhs.attempt": "1", "mhs.platform": name},
        pause_image=ensure_pause_image(engine),
        host="app.example.com",
        gateway_url=gateway.url,
        scratch_bytes=64 << 20,
        ca_bundles=(CERTIFI,),
    )


class Model:
    """A model container in a sandbox, run to its end in a thread."""

    def __init__(self, engine: ContainerEngine, sandbox: Sandbox, name: str, image: str, env: dict[str, str]) -> None:
        self.engine, self.name = engine, name
        self.output = b""
        self.lines = threading.Condition()
        self.spec = ContainerSpec(
            name=name,
            image=image,
            env={"PYTHONHOME": "/usr/local", "HOST": "app.example.com", **env, **sandbox.env},
            labels={ROLE: ROLE_MODEL},
            limits=Limits(cpus=1, memory_bytes=512 << 20, shm_bytes=1 << 20, open_files=1024),
            mounts=sandbox.mounts,
            tmpfs=sandbox.tmpfs,
            network=sandbox.network,
        )

    def run(self, *command: str, on_started: Callable[[ContainerStatus], None] = lambda _: None) -> str:
        """Return all the output of `command`; the container is removed."""
        try:
            self.engine.run(replace(self.spec, command=command), self._take, on_started)
        finally:
            self.engine.remove(self.name)
        return self.output.decode()

    def _take(self, _stream: str, data: bytes) -> None:
        with self.lines:
            self.output += data
            self.lines.notify_all()

    def wait_for(self, text: bytes) -> None:
        with self.lines:
            assert self.lines.wait_for(lambda: text in self.output, 60), self.output


def open_files_of(sandbox: Sandbox, folder: Path, data: bytes = b"slide bytes") -> dict[str, str]:
    (folder / "cached").write_bytes(data)
    return {
        "SCAN_URL": sandbox.slide_url(folder / "cached", "image.svs", 600),
        "DEBUG_FILE_UPLOAD_URL": sandbox.debug_url(600),
    }


def test_a_container_reaches_what_it_must_and_nothing_else_and_all_is_gone_after(
    engine: ContainerEngine, spec: SandboxSpec, root: Path, tmp_path: Path, small_image: str, gateway: Gateway
) -> None:
    denied: list[str] = []
    stores = [CERTIFI, "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"]
    with Sandbox(engine, spec, root, denied.append) as sandbox:
        env = open_files_of(sandbox, tmp_path)
        model = Model(engine, sandbox, f"{spec.name}-model", small_image, env)
        output = model.run("/usr/local/bin/python3", "-c", PROGRAM, *stores)
        said = dict(json.loads(line) for line in output.splitlines() if line.startswith("["))
        debug = sandbox.debug_file
        assert debug is not None, output
        assert debug.read_bytes() == b"debug zip"
    assert said.pop("slide") == [200, "slide bytes"]
    assert said.pop("range") == [206, "bytes"]
    assert said.pop("results") == [201, "null"]
    assert said.pop("debug") == [200, ""]
    assert "Tunnel connection failed: 403" in said.pop("outside")
    status, text = said.pop("platform")
    assert (status, "may call only /api/v3/" in text) == (403, True)
    assert [said.pop(f"store {path}") for path in stores] == [[200, "slide bytes"]] * 3
    assert "Network is unreachable" in said.pop("metadata")
    assert "gaierror" in said.pop("dns")
    assert said.pop("links") == ["lo"]
    for place in ("/tmp", "/var/tmp", "/input", "/output", "/scratch", "/run"):
        assert said.pop(f"write {place}") == 1, place
    assert "No space left" in said.pop("fill")
    assert said.pop("home") == "/tmp"
    assert all("Read-only file system" in v or "Permission denied" in v for v in said.values()), said
    assert len(said) == 4
    assert denied == ["evil.example:443"]
    assert [r.path for r in gateway.requests] == ["/api/v3/external/results/7"]
    assert engine.inspect(f"{spec.name}-net") is None
    assert mounts_below(root) == []
    assert list(root.iterdir()) == []


def namespace_of(sandbox: Sandbox, engine: ContainerEngine) -> int:
    return inode_of(sandbox.network, engine)


def inode_of(network: str, engine: ContainerEngine) -> int:
    """Return what tells one network namespace from all others."""
    kind, where = network.split(":", 1)
    if kind == "ns":
        assert where in mounts_below(Path(where))
        return Path(where).stat().st_ino
    status = engine.inspect(where)
    assert status is not None
    assert status.running
    return Path(f"/proc/{status.pid}/ns/net").stat().st_ino


LOOP = """
import os, time, urllib.request as u
for _ in range(600):
    try: print(u.urlopen(os.environ["SCAN_URL"], timeout=10).read().decode(), flush=True)
    except Exception as e: print(type(e).__name__, flush=True)
    time.sleep(0.1)
"""


def test_a_new_process_takes_over_and_the_running_container_goes_on(
    engine: ContainerEngine, spec: SandboxSpec, root: Path, tmp_path: Path, small_image: str
) -> None:
    first = Sandbox(engine, spec, root, lambda _: None).open()
    try:
        before = namespace_of(first, engine)
        model = Model(engine, first, f"{spec.name}-model", small_image, open_files_of(first, tmp_path, b"of the first"))
        thread = threading.Thread(target=model.run, args=("/usr/local/bin/python3", "-c", LOOP))
        thread.start()
        model.wait_for(b"of the first")
        first.detach()
        model.wait_for(b"URLError")
        second = Sandbox(engine, spec, root, lambda _: None).open()
        assert namespace_of(second, engine) == before
        assert second.mounts == first.mounts
        # The same CA and the same URL: the container knows of nothing.
        open_files_of(second, tmp_path, b"of the second")
        model.wait_for(b"of the second")
        engine.stop(model.name, 0)
        thread.join()
        second.close()
        second.close()
    finally:
        first.close()
    assert engine.inspect(f"{spec.name}-net") is None
    assert list(root.iterdir()) == []


DIES = """
import json, os, sys
from pathlib import Path
from mhs_ray.engines.docker import DockerEngine
from mhs_ray.engines.podman import PodmanEngine
from mhs_ray.sandbox.sandbox import Sandbox, SandboxSpec
name, where, root, spec = json.loads(sys.stdin.read())
engine = DockerEngine(where) if name == "docker" else PodmanEngine(where)
sandbox = Sandbox(engine, SandboxSpec(**spec), Path(root), print).open()
print(sandbox.network, flush=True)
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_is_taken_over_and_then_removed(
    engine: PodmanEngine | DockerEngine, spec: SandboxSpec, root: Path
) -> None:
    where = engine.base[1:] if isinstance(engine, PodmanEngine) else engine.host
    order = json.dumps([engine.name, where, str(root), asdict(spec)])
    done = subprocess.run([sys.executable, "-c", DIES], input=order, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    left = inode_of(done.stdout.strip(), engine)
    with Sandbox(engine, spec, root, lambda _: None) as sandbox:
        assert namespace_of(sandbox, engine) == left
    assert engine.inspect(f"{spec.name}-net") is None
    assert mounts_below(root) == []
    assert list(root.iterdir()) == []


@pytest.fixture
def unmade(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that makes no network namespaces for us."""

    def refuse(file: Path) -> None:
        raise SandboxError(f"cannot make a network namespace at {file}: Operation not permitted")

    monkeypatch.setattr(network, "make_namespace", refuse)


@pytest.mark.usefixtures("unmade")
def test_a_pause_container_holds_the_network_where_none_can_be_made(
    engine: ContainerEngine, spec: SandboxSpec, root: Path, tmp_path: Path, small_image: str
) -> None:
    with Sandbox(engine, spec, root, lambda _: None) as sandbox:
        assert sandbox.network == f"container:{spec.name}-net"
        model = Model(engine, sandbox, f"{spec.name}-model", small_image, open_files_of(sandbox, tmp_path))
        said = dict(
            json.loads(line)
            for line in model.run("/usr/local/bin/python3", "-c", PROGRAM).splitlines()
            if line.startswith("[")
        )
        assert (said["slide"], said["links"]) == ([200, "slide bytes"], ["lo"])
    assert engine.inspect(f"{spec.name}-net") is None
    assert list(root.iterdir()) == []


@pytest.mark.usefixtures("unmade")
def test_a_sandbox_that_cannot_be_set_up_leaves_nothing(engine: ContainerEngine, spec: SandboxSpec, root: Path) -> None:
    with pytest.raises(EngineError):
        Sandbox(engine, replace(spec, pause_image="localhost/no-such-image:1"), root, lambda _: None).open()
    assert engine.inspect(f"{spec.name}-net") is None
    assert mounts_below(root) == []
    assert list(root.iterdir()) == []
    with pytest.raises(SandboxError, match="is no host name"):
        Sandbox(engine, replace(spec, host="no host"), root, lambda _: None)
    with pytest.raises(SandboxError, match="is no name for a sandbox"):
        Sandbox(engine, replace(spec, name="../x"), root, lambda _: None)


def test_secrets_of_a_sandbox_are_for_its_own_user_only(engine: ContainerEngine, spec: SandboxSpec, root: Path) -> None:
    with Sandbox(engine, spec, root, lambda _: None) as sandbox:
        folder = root / spec.name
        modes = {p.name: oct(p.stat().st_mode & 0o777) for p in (folder / "private", folder / "uploads", folder)}
        assert modes == {"private": "0o700", "uploads": "0o700", spec.name: "0o711"}
        assert {oct(p.stat().st_mode & 0o777) for p in (folder / "private").iterdir()} == {"0o600"}
        private = str(folder / "private")
        assert not any(str(mount.source).startswith(private) for mount in sandbox.mounts)
        for mount in sandbox.mounts:
            if mount.source.is_file():
                assert b"PRIVATE" not in mount.source.read_bytes()
