"""One real platform per engine for all tests here, and the clients, images and slides they use."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mhs_ray.slides.demo import make_demo_slide
from tests.e2e.platform.clients import SMALL, Client
from tests.e2e.platform.harness import HOST, Platform
from tests.e2e.platform.slide_host import SlideHost, slide_host
from tests.engines_fixtures import _unmount_below, private_dockerd, private_podman

MODELS = Path(__file__).parent / "models"
DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NEEDED = ("podman", "docker", "dockerd", "docker-registry", "skopeo")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test runs on podman; those marked `both_engines` run on Docker as well, after all others."""
    if "platform" in metafunc.fixturenames:
        both = metafunc.definition.get_closest_marker("both_engines") is not None
        metafunc.parametrize("platform", ["podman", "docker"] if both else ["podman"], indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A short path that every user may pass through: sockets and mounts of containers lie below."""
    made = Path(tempfile.mkdtemp(prefix="me-", dir="/tmp"))
    made.chmod(0o711)
    yield made
    _unmount_below(made)
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _able() -> None:
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(
            f"not on this machine: {', '.join(missing)}; apt-get install podman docker.io docker-registry skopeo"
        )
    if os.geteuid() != 0:
        pytest.skip("a private Docker daemon needs root")


@pytest.fixture(scope="session")
def docker(folder: Path, small_rootfs_tar: Path) -> Iterator[Client]:
    """The docker command line with a daemon of its own that has the small image."""
    with private_dockerd() as url:
        client = Client(
            "docker",
            ("docker",),
            {"PATH": _PATH, "HOME": str(folder), "DOCKER_HOST": url, "DOCKER_BUILDKIT": "0"},
        )
        client.ok("import", str(small_rootfs_tar), SMALL)
        yield client


@pytest.fixture(scope="session")
def podman(folder: Path, small_rootfs_tar: Path) -> Iterator[Client]:
    """The podman command line of a user who shares nothing with the platform."""
    env = {"PATH": _PATH, "HOME": str(folder), "REGISTRY_AUTH_FILE": str(folder / "podman-auth.json")}
    with private_podman() as words:
        client = Client("podman", ("podman", *words), env)
        client.ok("import", "--quiet", str(small_rootfs_tar), SMALL)
        yield client


@pytest.fixture(scope="session")
def skopeo(folder: Path) -> Client:
    env = {"PATH": _PATH, "HOME": str(folder), "REGISTRY_AUTH_FILE": str(folder / "skopeo-auth.json")}
    return Client("skopeo", ("skopeo",), env)


@pytest.fixture(scope="session")
def another_ray() -> Iterator[None]:
    """Somebody on this machine who has the ports that Ray takes unless it is told others."""
    with contextlib.ExitStack() as stack:
        for port in (6379, 8265, 10001, 52365):
            taken = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # taken by a real one
                taken.bind(("127.0.0.1", port))
                taken.listen()
        yield


@pytest.fixture(scope="session")
def platform(request: pytest.FixtureRequest, folder: Path, docker: Client, another_ray: None) -> Iterator[Platform]:
    """The platform on the engine that the test's parameter names."""
    engine = str(request.param)
    home = folder / engine
    home.mkdir()
    home.chmod(0o711)
    settings = {
        "MHS_ENGINE": engine,
        "MHS_HOST": HOST,
        "PYTHONPATH": str(folder / engine / "release"),  # see Platform.release
        "MHS_SLIDES__ALLOW_PRIVATE": "true",
        "MHS_CLUSTER__DECLARED_GPUS": "3",
        "MHS_CLUSTER__MAX_WAITING": "1",
        "MHS_JOBS__STOP_GRACE": "PT1S",
        "MHS_JOBS__BACKOFF": "PT0.2S",
        "MHS_JOBS__MAX_PLATFORM_ATTEMPTS": "2",
        "MHS_JOBS__PREPARE_LIMIT": "PT6S",
    }
    if engine == "docker":
        cli = docker
        settings["MHS_DOCKER_HOST"] = docker.env["DOCKER_HOST"]
    else:
        storage = home / "storage.conf"
        storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{home}/cs/r"\nrunroot = "{home}/cs/x"\n')
        settings["CONTAINERS_STORAGE_CONF"] = str(storage)
        cli = Client("podman", ("podman",), {"PATH": _PATH, "HOME": str(folder), **settings})
    made = Platform(engine, home / "h", cli, settings)
    try:
        made.up()
        yield made
    finally:
        made.down()
        if engine == "podman":
            cli.run("rm", "--force", "--all", "--time", "0")
            cli.run("rmi", "--force", "--all")


# ---------------------------------------------------------------- images


@pytest.fixture(scope="session")
def context(folder: Path) -> Path:
    """A folder with what `docker build` needs: three models, and requests with its own trust store."""
    made = folder / "context"
    made.mkdir()
    for model in MODELS.glob("*.py"):
        shutil.copy(model, made)
    import certifi
    import charset_normalizer
    import idna
    import requests
    import urllib3

    for module in (certifi, charset_normalizer, idna, requests, urllib3):
        source = Path(str(module.__file__)).parent
        shutil.copytree(source, made / "vendor" / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    return made


def dockerfile(model: str, version: str = "1") -> str:
    """Return the Dockerfile of an image that runs `model`, as the contract describes such images."""
    return (
        f"FROM {SMALL}\nENV PYTHONHOME=/usr/local PYTHONPATH=/app/vendor PYTHONDONTWRITEBYTECODE=1\nWORKDIR /app\n"
        f'COPY vendor /app/vendor\nCOPY {model}.py /app/main.py\nCOPY version /app/version\nLABEL version="{version}"\n'
        'ENTRYPOINT ["python3", "main.py"]\n'
    )


def write_context(context: Path, model: str, version: str = "1") -> Path:
    (context / "Dockerfile").write_text(dockerfile(model, version))
    (context / "version").write_text(f"{version}\n")
    return context


def push(platform: Platform, client: Client, context: Path, model: str, name: str, version: str = "1") -> int:
    """Build and push `model` with the docker command line by the page's four commands; return the image's id."""
    image = int(platform.post("/v1/images", {"name": name})["id"])
    write_context(context, model, version)
    for command in platform.instructions(image)["commands"]:
        done = client.follow(command, context)
        assert done.returncode == 0, f"{command.split(' --password')[0]}: {done.stderr}"
    found = platform.image(image)
    assert found["status"] == "uploaded", found
    return image


@pytest.fixture(scope="session")
def zoo(platform: Platform, docker: Client, context: Path) -> int:
    """Id of an uploaded image whose behaviour a container's own variable chooses."""
    return push(platform, docker, context, "zoo", "Zoo")


# ---------------------------------------------------------------- slides


@pytest.fixture(scope="session")
def slide(folder: Path) -> Path:
    """A real slide: the sample of shared/data where it is there, else one laid out from scikit-image's tissue."""
    sample = DATA / "CMU-1-Small-Region.svs"
    path = folder / "slide.svs"
    if sample.is_file():
        shutil.copy(sample, path)
    else:
        make_demo_slide(path, 2048, 1536)
    return path


@pytest.fixture(scope="session")
def scan(platform: Platform, slide: Path) -> int:
    return platform.scan(path=str(slide))


@pytest.fixture(scope="session")
def hosted(slide: Path) -> Iterator[SlideHost]:
    """A storage that serves `slide`, in right and in wrong ways."""
    with slide_host() as host:
        data = slide.read_bytes()
        host.files |= {"slide": data, "truncated": data[: len(data) // 2], "text": b"I am no slide at all.\n" * 500}
        yield host


@pytest.fixture(scope="session")
def dicom_series() -> list[bytes]:
    """A DICOM whole slide image of two files."""
    sample = DATA / "sm_image.dcm"
    if not sample.is_file():
        pytest.skip("shared/data has no DICOM sample here")
    import pydicom
    from pydicom.uid import generate_uid

    second = pydicom.dcmread(sample)
    second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    out = io.BytesIO()
    second.save_as(out, enforce_file_format=True)
    return [sample.read_bytes(), out.getvalue()]
