"""The smallest model that succeeds: this machine's Python, a few lines that work a while and post a result."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from mhs_ray.engines.build import image_tools
from mhs_ray.ports import ContainerEngine
from mhs_ray.sandbox.audit.image import LOADER, VARIABLES, interpreter_files

_MODULES: Final = ("http.client", "json", "os", "ssl", "time", "urllib.error", "urllib.request")
_MAIN: Final = """\
import json, os, time, urllib.error, urllib.request
with urllib.request.urlopen(os.environ["SCAN_URL"]) as slide:
    print("read", len(slide.read(1000)), "bytes", flush=True)
time.sleep(float(os.environ.get("WORK_S", "0")))
url = "https://api.%s/api/v3/external/results/%s" % (os.environ["HOST"], os.environ["TASK_ID"])
body = {"scanResults": [{"scanId": os.environ["SCAN_ID"], "results": {"task": os.environ["TASK_ID"]}}]}
headers = {"Authorization": "Bearer " + os.environ["JWT_TOKEN"], "Content-Type": "application/json"}
for last in 30 * [False] + [True]:
    try:
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=20) as answer:
            print("posted:", answer.status, flush=True)
            break
    except OSError as error:
        if last or getattr(error, "code", 500) < 500:
            raise
        time.sleep(1)
"""


def ensure_posting_image(engine: ContainerEngine) -> str:
    """Return the tag of the image, made if it is not there. WORK_S: a variable, seconds of work before the result."""
    files = interpreter_files(engine.name, _MODULES)
    facts = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in sorted(files.items())]
    tag = f"localhost/mhs-posting:{hashlib.sha256(repr((facts, _MAIN)).encode()).hexdigest()[:16]}"
    tools = image_tools(engine)
    if tools.image_id(tag) is None:
        with tempfile.TemporaryDirectory(prefix="mhs-posting-") as folder:
            tar = Path(folder, "rootfs.tar")
            _pack(files, tar)
            entry = json.dumps([*LOADER, "-S", "-s", "-B", "/app/main.py"])
            changes = [f"ENV {name}={value}" for name, value in VARIABLES.items()]
            tools.import_rootfs(tar, tag, (*changes, f"ENTRYPOINT {entry}"))
    return tag


def _pack(files: dict[str, Path], tar_path: Path) -> None:
    with tarfile.open(tar_path, "w") as tar:
        for folder in ("tmp", "proc", "sys", "dev", "etc", "app", "scratch"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        for name, content in [*((n, p.read_bytes()) for n, p in files.items()), ("app/main.py", _MAIN.encode())]:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
