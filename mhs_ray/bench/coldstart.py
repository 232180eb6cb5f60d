"""``mhs bench coldstart``: how long until a container runs, by what its node has: nothing, the image, the slide, both.

The image comes from the platform's own registry, the slide over a line with S3's manners. Beside it, in the same turns:
the bare engine's pull and run of the same image from the same registry, and a plain download of the same slide.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from mhs_ray.attempt.pulled import PulledImages
from mhs_ray.bench import Benchmark, Say
from mhs_ray.bench._slow_storage import slow_storage
from mhs_ray.bench._stage import LOCAL_IMAGE, Stage, stage
from mhs_ray.bench.jobs import bare_command, timed_job, timed_run
from mhs_ray.domain.models import ImageRef
from mhs_ray.domain.settings import Settings, settings_with
from mhs_ray.engines.build import image_tools
from mhs_ray.engines.envfile import client_environment, write_private
from mhs_ray.engines.podman import auth_entries
from mhs_ray.slides.demo import make_demo_slide

TURNS: Final = 7
IMAGE_BYTES: Final = 192 << 20
SLIDE_BYTES: Final = 96 << 20
LATENCY_S: Final = 0.02
LINE_BYTES_PER_S: Final = 50e6
_SETTLE_S: Final = 1.5
_LAYERS: Final = 3
# The states are made by hand: nothing may be fetched ahead meanwhile. The slide's storage is on loopback.
_BY_HAND: Final = {
    "MHS_CLUSTER__PREPULL": "0", "MHS_CLUSTER__PREFETCH": "false", "MHS_SLIDES__ALLOW_PRIVATE": "true",
}  # fmt: skip


@dataclass(frozen=True)
class _Place:
    """The image under the name that jobs run and the one that the peer pulls, and where the slide is."""

    stage: Stage
    trusted: ImageRef
    pushed: ImageRef
    authfile: Path
    slide_url: str


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Return medians in seconds of each state and of the peer, with ratios between them."""
    times: dict[str, list[float]] = {}
    with settings_with(_BY_HAND), _place(settings, say) as place:
        for _ in range(2):
            timed_job(place.stage)
        for turn in range(TURNS):
            for state in ("cold", "slide_warm", "image_warm", "all_warm"):
                if state in ("cold", "slide_warm"):
                    _forget_image(place)
                if state in ("cold", "image_warm"):
                    _forget_slides(place)
                time.sleep(_SETTLE_S)
                times.setdefault(state, []).append(timed_job(place.stage)["total_s"])
            for name, took in _bare(place).items():
                times.setdefault(name, []).append(took)
            say(f"{turn + 1} of {TURNS}")
        engine = place.stage.engine.name
    medians = {name: round(median(values), 3) for name, values in times.items()}
    bare = medians["bare_pull"] + medians["bare_run"]
    return {
        "benchmark": "coldstart",
        "engine": engine,
        "turns": TURNS,
        "image_bytes": IMAGE_BYTES,
        "slide_bytes": SLIDE_BYTES,
        "slide_line": {"latency_s": LATENCY_S, "bytes_per_s": LINE_BYTES_PER_S},
        "start_s": {state: medians[state] for state in ("cold", "image_warm", "slide_warm", "all_warm")},
        "bare_s": {
            "pull": medians["bare_pull"], "run": medians["bare_run"], "pull_and_run": round(bare, 3),
            "slide_download": medians["bare_download"],
        },
        "ratios": {
            "cold_to_bare_pull_and_run": round(medians["cold"] / bare, 2),
            "cold_to_bare_download_pull_and_run": round(medians["cold"] / (bare + medians["bare_download"]), 2),
            "slide_warm_to_bare_pull_and_run": round(medians["slide_warm"] / bare, 2),
            "all_warm_to_bare_run": round(medians["all_warm"] / medians["bare_run"], 2),
            "all_warm_to_cold": round(medians["all_warm"] / medians["cold"], 3),
        },
        "raw_s": {name: [round(v, 3) for v in values] for name, values in times.items()},
    }  # fmt: skip


@contextmanager
def _place(settings: Settings, say: Say) -> Iterator[_Place]:
    with stage(settings, say) as s, tempfile.TemporaryDirectory(prefix="mhs-bench-") as folder:
        say("pushing an image of many bytes")
        tools = image_tools(s.engine)
        context = Path(folder, "context")
        context.mkdir()
        for layer in range(_LAYERS):
            (context / f"weights-{layer}").write_bytes(os.urandom(IMAGE_BYTES // _LAYERS))
        copies = "".join(f"COPY weights-{layer} /weights-{layer}\n" for layer in range(_LAYERS))
        (context / "Dockerfile").write_text(f"FROM {LOCAL_IMAGE}\n{copies}")
        tag = "localhost/mhs-bench:large"
        tools.build(context, tag)
        shutil.rmtree(context)
        image = s.client.create_image("bench large")
        push = s.client.push_instructions(image["id"])
        reference = f"{push['registry']}/{push['repository']}:{push['tag']}"
        tools.tag(tag, reference)
        digest = tools.push(reference, push["username"], push["password"], tls=push["tls"])
        s.client.wait_for_image(image, digest, on_status=lambda _status: None)
        container = s.client.create_container({"image_id": image["id"], "instance_type": "g4dn.xlarge"})
        algorithm = s.client.create_algorithm({"name": "bench large", "container_id": container["id"]})
        authfile = Path(folder, "config.json")  # the name that Docker expects
        write_private(authfile, json.dumps(auth_entries(push["registry"], push["username"], push["password"])))
        slide = _slide(Path(folder))
        with slow_storage(slide, latency_s=LATENCY_S, bytes_per_s=LINE_BYTES_PER_S) as url:
            scan = s.client.add_scan({"url": url})
            place = _Place(
                replace(s, algorithm_id=algorithm["id"], scan_id=scan["id"]),
                ImageRef(push["registry"], f"trusted/{image['id']}", digest),
                ImageRef(push["registry"], push["repository"], digest),
                authfile,
                url,
            )
            for name in (tag, reference):
                _engine(place, "rmi", "--force", name)
            yield place
            for name in (str(place.trusted), str(place.pushed)):
                _engine(place, "rmi", "--force", name, check=False)


def _slide(folder: Path) -> Path:
    """Return a slide of as many bytes as wanted: what no directory of a TIFF points at is not read, only carried."""
    path = folder / "slide.svs"
    make_demo_slide(path, 2048, 2048)
    with path.open("ab") as file:
        file.write(os.urandom(SLIDE_BYTES - path.stat().st_size))
    return path


def _engine(place: _Place, *words: str, check: bool = True) -> None:
    """Run a command of the engine's own command line."""
    s = place.stage
    host = ["--host", s.settings.docker_host] if s.engine.name == "docker" and s.settings.docker_host else []
    subprocess.run([s.engine.name, *host, *words], check=check, capture_output=True, env=client_environment())


def _forget_image(place: _Place) -> None:
    _engine(place, "rmi", "--force", str(place.trusted), check=False)
    PulledImages(place.stage.settings.node_dir / "images", place.stage.engine).forget(place.trusted)


def _forget_slides(place: _Place) -> None:
    """Remove what is in the slide cache; the job before may still be letting go of its own."""
    for entry in (place.stage.settings.node_dir / "slides" / "entries").iterdir():
        shutil.rmtree(entry, ignore_errors=True)


def _bare(place: _Place) -> dict[str, float]:
    """Pull and run the image by the bare engine, download the slide by plain Python; return how long each took."""
    _forget_image(place)
    time.sleep(_SETTLE_S)
    began = time.monotonic()
    if place.stage.engine.name == "docker":
        _engine(place, "--config", str(place.authfile.parent), "pull", "--quiet", str(place.pushed))
    else:
        auth = f"--authfile={place.authfile}"
        _engine(place, "pull", "--quiet", auth, "--tls-verify=false", str(place.pushed))
    pull = time.monotonic() - began
    took = timed_run(bare_command(place.stage, str(place.pushed)))
    began = time.monotonic()
    digest, size = hashlib.sha256(), 0
    with urllib.request.urlopen(place.slide_url) as answer:  # noqa: S310 (our own storage on loopback)
        while piece := answer.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    if size != SLIDE_BYTES:
        raise RuntimeError(f"the storage sent {size} bytes of {SLIDE_BYTES}")
    download = time.monotonic() - began
    _engine(place, "rmi", "--force", str(place.pushed))
    return {"bare_pull": pull, "bare_run": took, "bare_download": download}


BENCHMARK: Final = Benchmark(
    "coldstart",
    "submission to running container: cold, image warm, slide warm, all warm; beside bare pull and run",
    run,
)
