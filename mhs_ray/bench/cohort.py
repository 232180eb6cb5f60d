"""``mhs bench cohort``: twenty slides and a model that takes 5 s to load: warm, one-shot, and Ray Data doing the same.

All three have one GPU's place and do the same with each slide: read its bytes, hash them, find their mean. Ray Data has
no isolation, no log of its own per slide and no results to check; it is the floor that a loaded model can reach.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from mhs_ray.bench import Benchmark, Say
from mhs_ray.bench._stage import Stage, stage
from mhs_ray.client.cohorts import ENDED, Cohorts
from mhs_ray.cohorts.manifest import Manifest, Row
from mhs_ray.domain.settings import Settings
from mhs_ray.engines.build import image_tools
from mhs_ray.platform.base_image import DEFAULT_TAG, make_base_image
from mhs_ray.platform.up import ray_environment

SLIDES: Final = 20
LOAD_S: Final = 5.0
_POLL_S: Final = 0.1
_IMAGE: Final = "localhost/mhs-bench-cohort:1"
_MODEL: Final = f"""
import hashlib, os, time
import numpy, requests
from mhs_warm import scans

time.sleep({LOAD_S})  # the model is loaded
for scan in scans():
    with scan:
        data = requests.get(os.environ["SCAN_URL"], timeout=60).content
        found = {{"sha256": hashlib.sha256(data).hexdigest(), "mean": float(numpy.frombuffer(data, "u1").mean())}}
        answer = requests.post(
            "https://api.%s/api/v3/external/results/%s" % (os.environ["HOST"], os.environ["TASK_ID"]),
            json={{"scanResults": [{{"scanId": os.environ["SCAN_ID"], "results": found}}]}},
            headers={{"Authorization": "Bearer " + os.environ["JWT_TOKEN"]}}, timeout=60,
        )
        answer.raise_for_status()
"""


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Return seconds for all slides of each way, and the ratios between them."""
    cluster = settings.cluster.model_copy(update={"declared_gpus": 1})
    with stage(settings.model_copy(update={"cluster": cluster}), say) as s:
        slides = _slides(s)
        image = _push(s, settings.home / "cache", say)
        say(f"{SLIDES} slides, a fresh container for each")
        one_shot = _cohort(s, image, slides, warm=False)
        say(f"{SLIDES} slides in one warm container")
        warm = _cohort(s, image, slides, warm=True)
        say(f"{SLIDES} slides by ray.data map_batches")
        data = _ray_data(s, slides)
    return {
        "benchmark": "cohort",
        "slides": SLIDES,
        "load_s": LOAD_S,
        "one_shot_s": one_shot["seconds"],
        "warm_s": warm["seconds"],
        "ray_data_s": data["seconds"],
        "one_shot_to_warm": round(one_shot["seconds"] / warm["seconds"], 2),
        "warm_to_ray_data": round(warm["seconds"] / data["seconds"], 2),
        "one_shot_to_ray_data": round(one_shot["seconds"] / data["seconds"], 2),
        "warm_containers": warm["containers"],
        "raw": {"one_shot": one_shot, "warm": warm, "ray_data": data},
    }


def _slides(s: Stage) -> list[Path]:
    """Return slides whose bytes differ, so that no cache knows them."""
    first = s.settings.home / "slide.svs"
    made = []
    for i in range(SLIDES):
        path = s.settings.home / "slides" / f"{i}.svs"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(first.read_bytes() + bytes([i]))
        made.append(path)
    return made


def _push(s: Stage, cache: Path, say: Say) -> int:
    tools = image_tools(s.engine)
    cache.mkdir(parents=True, exist_ok=True)
    make_base_image(tools, cache, progress=say)
    with tempfile.TemporaryDirectory() as name:
        context = Path(name)
        shutil.copy(Path(__file__).resolve().parents[1] / "templates" / "warm" / "mhs_warm.py", context)
        (context / "main.py").write_text(_MODEL)
        (context / "Dockerfile").write_text(
            f'FROM {DEFAULT_TAG}\nWORKDIR /app\nCOPY *.py ./\nENTRYPOINT ["python3", "-u", "main.py"]\n'
        )
        tools.build(context, _IMAGE)
    image = s.client.create_image("bench cohort")
    push = s.client.push_instructions(image["id"])
    reference = f"{push['registry']}/{push['repository']}:{push['tag']}"
    tools.tag(_IMAGE, reference)
    digest = tools.push(reference, push["username"], push["password"], tls=push["tls"])
    s.client.wait_for_image(image, digest, on_status=lambda _status: None)
    return image["id"]


def _cohort(s: Stage, image: int, slides: list[Path], *, warm: bool) -> dict[str, Any]:
    """Run a cohort to its end; return how long it took from its start, and the containers that it took."""
    name = "warm" if warm else "one-shot"
    env = [{"name": "MHS_WARM", "value": "1"}] if warm else []
    container = s.client.create_container(
        {"name": name, "image_id": image, "instance_type": "g4dn.xlarge", "env": env}
    )  # fmt: skip
    cohorts = Cohorts(s.client)
    rows = [Row(i, p.stem, str(p)) for i, p in enumerate(slides, 1)]
    manifest = Manifest(rows, [], len(rows), "0" * 64)
    cohort = cohorts.create(manifest, key=name, container=str(container["id"]), canary=0, skip_known=False)
    cohorts.send_rows(cohort, manifest)
    began = time.monotonic()
    cohorts.start(cohort["id"])
    while (now := cohorts.get(cohort["id"]))["state"] not in ENDED:
        time.sleep(_POLL_S)
    took = time.monotonic() - began
    if now["counts"]["succeeded"] != len(slides):
        raise RuntimeError(f"the {name} cohort did not succeed: {now['counts']} {now['reason']}")
    jobs = [s.client.job(slide["job_id"]) for slide in cohorts.slides(cohort["id"]) if slide["job_id"]]
    held = {(j["resources"].get("warm") or {}).get("container", f"job {j['id']}") for j in jobs}
    return {"seconds": round(took, 2), "containers": len(held), "gpu_s": round(now["forecast"]["gpu_s"], 1)}


def _ray_data(s: Stage, slides: list[Path]) -> dict[str, Any]:
    environment = ray_environment(s.settings.home, os.environ)
    command = [sys.executable, "-m", "mhs_ray.actors.bench_cohort", str(LOAD_S), *map(str, slides)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"ray.data failed: {done.stderr[-1000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


BENCHMARK: Final = Benchmark(
    "cohort", "20 slides with a model that loads for 5 s: warm containers beside one-shot ones and ray.data", run
)
