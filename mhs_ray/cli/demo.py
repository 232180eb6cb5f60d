"""``mhs demo``: the whole way of a model, from its Dockerfile to a picture of its results."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from mhs_ray.cli import output, story
from mhs_ray.cli.command import FAILED, JOB_FAILED, CommandFailed
from mhs_ray.cli.connect import connect_home, is_running
from mhs_ray.cli.images import push_image
from mhs_ray.cli.scans import add_scan
from mhs_ray.cli.signals import ended_by_signals
from mhs_ray.client import Client
from mhs_ray.client import wire as w
from mhs_ray.domain.errors import MhsError, NotFoundError
from mhs_ray.domain.settings import Settings, load_settings, use_docker_host
from mhs_ray.domain.states import JobState

LOCAL_IMAGE: Final = "localhost/mhs-demo:latest"
_NAME: Final = "Demo"
_INSTANCE_TYPE: Final = "g4dn.xlarge"
_STEPS: Final = 6
_PICTURE: Final = (1600, 1200)


@dataclass(slots=True)
class _Steps:
    """Tells the steps and how long each took."""

    began: float
    done: int = 0

    def next(self, text: str) -> None:
        self.done += 1
        output.note(f"[{self.done}/{_STEPS}] {text}  ({time.monotonic() - self.began:.0f} s)")


def demo(
    slide: Annotated[
        str | None, typer.Option(metavar="PATH|URL", help="a slide of yours instead of the one made here")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave the platform running")] = False,
    base_image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="build on this image, e.g. python:3.11, not on one made here")
    ] = None,
    folder: Annotated[Path, typer.Option("--output", "-o", help="where the results go")] = Path("demo-output"),
) -> None:
    """Build the template model, push it, run it on a slide, and show what came out.

    Starts the platform if it does not run, and stops it again then. Exit code 4 when the job did not succeed.
    With --json the last line of stdout is one object with `job`, `results`, `image` and `files`.
    """
    settings = load_settings()
    if slide is not None and not urlsplit(slide).scheme and not Path(slide).exists():
        raise NotFoundError("slide", slide)
    with ended_by_signals():
        try:
            document = _run(settings, slide, keep, base_image, folder.absolute())
        except MhsError:
            output.note(f"the demo failed; the platform's logs are in {settings.home / 'logs'}")
            raise
    output.emit(document, lambda d: _show(d, keep))
    if document["job"] is None:
        raise CommandFailed(FAILED)
    if document["job"]["state"] != JobState.SUCCEEDED:
        output.note(f"the platform's logs are in {settings.home / 'logs'}")
        raise CommandFailed(JOB_FAILED)


def _run(settings: Settings, slide: str | None, keep: bool, base_image: str | None, folder: Path) -> dict[str, Any]:
    from mhs_ray.platform import up as platform

    steps = _Steps(time.monotonic())
    with ExitStack() as undo:  # whatever goes wrong, even with --keep: what was not running before does not run after
        was_running = is_running(settings)
        settings = _with_docker(settings, undo)
        steps.next("the platform runs already" if was_running else "starting the platform")
        if not was_running:
            undo.callback(platform.down, settings, output.note)
        with _umask_kept():
            platform.up(settings, output.note)
        with connect_home(settings) as mhs:
            document = _model(mhs, settings, steps, slide, base_image, folder)
        if keep:
            undo.pop_all()
    return {**document, "seconds": round(time.monotonic() - steps.began, 1)}


@contextmanager
def _umask_kept() -> Iterator[None]:
    """Within: what is started may set its own; the template's files and the results are then as people expect them."""
    before = os.umask(0o077)
    os.umask(before)
    try:
        yield
    finally:
        os.umask(before)


def _model(
    mhs: Client, settings: Settings, steps: _Steps, slide: str | None, base_image: str | None, folder: Path
) -> dict[str, Any]:
    """Build, push, run, collect; `job` is None when the image was refused."""
    steps.next("making the slide" if slide is None else f"the slide is {_shown(slide)}")
    where = slide or str(_slide(settings))
    steps.next("building the template's image")
    engine = _build(settings, base_image)
    steps.next("pushing it to the platform's registry")
    image = push_image(mhs, _image(mhs), LOCAL_IMAGE)
    document: dict[str, Any] = {"job": None, "results": None, "image": image["current"], "engine": engine}
    if image["status"] != "uploaded" or image["current"] is None:
        return {**document, "failure_message": image["failure_message"]}
    steps.next("running it on the slide")
    scan = add_scan(mhs, where, upload=False)
    algorithm = _algorithm(mhs, image["id"])
    done = mhs.submit(scan_ids=[scan["id"]], algorithm_id=algorithm, description="mhs demo")
    job = story.watch(mhs, done["job_ids"][0], log_lines=True)
    steps.next("collecting")
    events = mhs.job_events(job["id"])
    return {**document, "job": job, "events": events, **_collect(mhs, settings, job, where, folder)}


def _with_docker(settings: Settings, undo: ExitStack) -> Settings:
    """Return settings that name a Docker daemon of our own where Docker is wanted and does not run."""
    from mhs_ray.platform import dockerd

    settings = dockerd.join(settings)
    if not dockerd.is_wanted(settings):
        return settings
    output.note("no Docker daemon runs here: starting one for the demo")
    daemon = dockerd.start(settings)
    undo.callback(dockerd.stop, settings)
    return use_docker_host(settings, daemon.host)


def _slide(settings: Settings) -> Path:
    """Return the demo's slide, made at the first time."""
    from mhs_ray.slides.demo import make_demo_slide

    path = settings.home / "demo" / "mhs-demo.svs"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    if not path.exists():
        made = make_demo_slide(path)
        output.note(f"made {made.width} x {made.height} pixels of tissue")
    return path


def _build(settings: Settings, base_image: str | None) -> str:
    """Build the template; return the engine's name."""
    from mhs_ray.engines.build import image_tools
    from mhs_ray.engines.select import pick_engine
    from mhs_ray.platform.base_image import make_base_image
    from mhs_ray.templates import write_template

    engine = pick_engine(settings.engine, docker_host=settings.docker_host)
    tools = image_tools(engine)
    base = base_image
    if base is None:
        from mhs_ray.platform.base_image import DEFAULT_TAG

        make_base_image(tools, settings.home / "cache", DEFAULT_TAG, progress=output.note)
        base = DEFAULT_TAG
    with tempfile.TemporaryDirectory(prefix="mhs-demo-") as folder:
        context = Path(folder, "model")
        write_template("plain", context)
        tools.build(context, LOCAL_IMAGE, {"BASE_IMAGE": base})
    return engine.name


def _image(mhs: Client) -> int:
    """Return the demo's image definition, made at the first time."""
    known = next((i for i in mhs.images(name=_NAME) if i["name"] == _NAME), None)
    return (known or mhs.create_image(_NAME))["id"]


def _algorithm(mhs: Client, image_id: int) -> int:
    """Return the demo's case algorithm on a runnable container of its image, each made at the first time."""
    container = next((c for c in mhs.containers(image_id=image_id) if c["name"] == _NAME), None)
    if container is None:
        body = {"image_id": image_id, "instance_type": _INSTANCE_TYPE, "name": _NAME}
        container = mhs.create_container(body)
    known = next((a for a in mhs.algorithms(name=_NAME) if a["name"] == _NAME), None)
    if known is None:
        return mhs.create_algorithm({"name": _NAME, "container_id": container["id"]})["id"]
    if known["container_id"] != container["id"]:
        mhs.update_algorithm(known["id"], {"container_id": container["id"]})
    return known["id"]


def _collect(mhs: Client, settings: Settings, job: w.Job, where: str, folder: Path) -> dict[str, Any]:
    """Write the log, and of a job that succeeded GeoJSON and picture, into `folder`; return `results` and `files`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"log": folder / "job.log"}
    lines = mhs.log(job["id"]) if job["attempt"] else []
    files["log"].write_text("".join(f"{story.as_text(line, timestamps=True)}\n" for line in lines))
    results = None
    if job["state"] == JobState.SUCCEEDED:
        results = mhs.job_results(job["id"])
        files["geojson"] = folder / "results.geojson"
        with files["geojson"].open("wb") as out:
            mhs.save_results("geojson", out, job_id=job["id"])
        files["picture"] = folder / "results.png"
        features = (f for s in results["scanResults"] for f in (s["geojson"] or {}).get("features", ()))
        _draw(settings, where, list(features), files["picture"])
    return {"results": results, "files": {name: str(path) for name, path in files.items()}}


def _draw(settings: Settings, where: str, features: list[dict[str, Any]], picture: Path) -> None:
    from mhs_ray.platform.endpoints import Endpoints
    from mhs_ray.results.overlay import draw_overlay
    from mhs_ray.services.policy import url_policy
    from mhs_ray.slides.fetch import fetch
    from mhs_ray.slides.geometry import PixelSize
    from mhs_ray.slides.open import open_slide
    from mhs_ray.slides.thumbnail import thumbnail

    with tempfile.TemporaryDirectory(prefix="mhs-demo-") as scratch:
        path = Path(where)
        if urlsplit(where).scheme in {"http", "https"}:
            path = Path(scratch, "slide")
            fetch(where, path, policy=url_policy(settings, Endpoints.load(settings.home)))
        with open_slide(path) as reader:
            small = thumbnail(reader, PixelSize(*_PICTURE))
            draw_overlay(small, reader.facts().width / small.shape[1], features).save(picture)


def _shown(where: str) -> str:
    """Return a path, or a URL without its query, which may hold a signature."""
    return urlsplit(where)._replace(query="", fragment="").geturl() if "://" in where else where


def _show(document: dict[str, Any], keep: bool) -> None:
    if document["job"] is None:
        output.line(f"the image was refused: {document['failure_message']}")
        return
    output.line("")
    story.show_story(document["events"])
    output.line("")
    story.show_job(document["job"])
    if document["results"]:
        story.show_results(document["results"])
    output.line("")
    output.facts(document["files"])
    if document["job"]["state"] == JobState.SUCCEEDED:
        job = document["job"]["id"]
        begin = [] if keep else ["mhs up                        start the platform again"]
        for text in (
            "", "Try next:", *begin,
            "mhs init my-model             start a model of your own",
            "mhs demo --slide FILE         the same on a slide of yours",
            f"mhs logs {job} · mhs job events {job} · mhs results {job} --format parquet -o cells.parquet",
        ):  # fmt: skip
            output.line(f"  {text}" if text.startswith("mhs") else text)
