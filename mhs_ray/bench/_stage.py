"""A platform of a benchmark's own: started in a fresh folder, brought down and removed again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mhs_ray.bench import Say
from mhs_ray.client.client import Client
from mhs_ray.domain.settings import Settings, settings_with
from mhs_ray.engines.build import image_tools
from mhs_ray.engines.pause import ensure_pause_image
from mhs_ray.engines.select import pick_engine
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.keys import load_keys
from mhs_ray.platform.up import down, up
from mhs_ray.ports import ContainerEngine

_DOCKERFILE = 'FROM {base}\nENTRYPOINT ["/catatonit", "--version"]\n'
ALGORITHM = "bench"
LOCAL_IMAGE = "localhost/mhs-bench:1"


@dataclass(frozen=True)
class Stage:
    """A running platform with one algorithm whose container prints one line and ends, and one scan."""

    settings: Settings
    endpoints: Endpoints
    client: Client
    engine: ContainerEngine
    algorithm_id: int
    scan_id: int


@contextmanager
def stage(settings: Settings, say: Say) -> Iterator[Stage]:
    """Yield a platform for measuring, without a limit on one client's rate; nothing of it is left afterwards."""
    home = Path(tempfile.mkdtemp(prefix="mhs-bench-", dir="/var/tmp"))
    home.chmod(0o711)
    own = settings.model_copy(update={"home": home})
    stack = ExitStack()
    stack.enter_context(settings_with({"MHS_AUTH__RATE": "0"}))  # the platform's processes inherit it
    try:
        endpoints = up(own, say)
        keys = load_keys(home / "keys")
        with Client(endpoints.api_url, keys.client_id, keys.client_secret) as client:
            engine = pick_engine(own.engine, docker_host=own.docker_host, folder=own.node_dir / "engine")
            say("pushing the smallest image")
            container = _container(client, engine, home)
            algorithm = client.create_algorithm({"name": ALGORITHM, "container_id": container})
            scan = client.add_scan({"path": str(_slide(home))})
            yield Stage(own, endpoints, client, engine, algorithm["id"], scan["id"])
    finally:
        down(own, say)
        stack.close()
        shutil.rmtree(home, ignore_errors=True)


def _container(client: Client, engine: ContainerEngine, home: Path) -> int:
    tools = image_tools(engine)
    context = home / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(_DOCKERFILE.format(base=ensure_pause_image(engine)))
    tools.build(context, LOCAL_IMAGE)
    image = client.create_image("bench")
    push = client.push_instructions(image["id"])
    reference = f"{push['registry']}/{push['repository']}:{push['tag']}"
    tools.tag(LOCAL_IMAGE, reference)
    digest = tools.push(reference, push["username"], push["password"], tls=push["tls"])
    client.wait_for_image(image, digest, on_status=lambda _status: None)
    return client.create_container({"image_id": image["id"], "instance_type": "g4dn.xlarge"})["id"]


def _slide(home: Path) -> Path:
    from mhs_ray.slides.demo import make_demo_slide

    path = home / "slide.svs"
    make_demo_slide(path, 2048, 2048)
    return path
