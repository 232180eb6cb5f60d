"""Runs the blocks of a page of the documentation in order, as a reader would who begins with a fresh platform."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.docs_pages import Block, blocks, commands
from tests.e2e.platform.harness import Platform

_CREATES: Final = re.compile(
    r"\bmhs (image|container|algorithm|client|company) create\b|\bmhs (scan) add\b|\bmhs (submit)\b"
)
_IDS: Final = {
    "image": (r"mhs image (?:push|show|versions|instructions|rename|delete) ", r"--image ", r"/v1/images/"),
    "container": (r"mhs container (?:show|update|delete) ", r"--container ", r"/v1/containers/"),
    "scan": (r"mhs scan (?:show|url|delete) ", r"--scan ", r"/v1/scans/"),
    "job": (r"mhs (?:logs|results|replay|job (?:show|events|cancel|rerun)) ", r"/v1/jobs/"),
    "cohort": (r"mhs cohort (?:status|results|cancel|resume|rerun) ",),
    "company": (r"mhs company (?:on|off) ", r"--company "),
}
"""Where ids stand in commands. A page counts from 1, as on a fresh platform; here the numbers are others."""
_CLIENT: Final = re.compile(r"\bmhs-[0-9a-f]{16}\b")


@dataclass
class Reader:
    """Somebody who has done the tutorial in `folder`, and reads each other page in a folder of its own.

    made: ids of what the page made, by kind, in order.
    """

    platform: Platform
    folder: Path
    made: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.here = self.folder

    def begin(self, page: Path) -> None:
        """Begin a page in an empty folder that has the tutorial's slide."""
        self.made.clear()
        self.here = self.folder / page.stem
        self.here.mkdir()
        self.here.chmod(0o755)
        shutil.copy(self.folder / "slide.svs", self.here)

    def read(self, page: Path) -> None:
        """Run every block of a page that does not say why not."""
        for block in blocks(page):
            if not block.is_run:
                continue
            if block.is_shell:
                found = list(commands(block))
                for command in found:
                    self.run(block, command, ends_with=block.ends_with if command is found[-1] else 0)
            elif " in place of " in block.title:
                self.edit(block)
            else:
                self.python(block)

    # ------------------------------------------------------------ shell

    @property
    def client_env(self) -> dict[str, str]:
        """What the documentation asks to be set: where the platform is and who calls."""
        keys = self.platform.home / "keys"
        return {
            "MHS_URL": self.platform.endpoints["api_url"],
            "MHS_CLIENT_ID": (keys / "client-id").read_text().strip(),
            "MHS_CLIENT_SECRET": (keys / "client-secret").read_text().strip(),
        }

    @property
    def env(self) -> dict[str, str]:
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        docker = programs / "docker"
        docker.write_text('#!/bin/sh\nexec podman "$@"\n')  # Debian's podman-docker
        docker.chmod(0o755)
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        # Where tests run, a build's steps may get no container of their own.
        return {**self.platform.env, "PATH": path, "BUILDAH_ISOLATION": "chroot"}

    @property
    def ray_env(self) -> dict[str, str]:
        """What Ray's own commands need: where Ray is, and its token."""
        return {
            "RAY_API_SERVER_ADDRESS": self.platform.endpoints["dashboard_url"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.platform.home / "keys" / "ray-token"),
        }

    @property
    def places(self) -> dict[str, str]:
        """What pages call so, and where it is here; the first that fits counts."""
        return {
            "MHS_HOME=/var/lib/mhs ": f"MHS_HOME={self.here}/new-home ",  # in an empty home, the page says
            "/var/lib/mhs/": f"{self.platform.home}/",
            " /backup/": f" {self.here}/backup/",
            " /data/results": f" {self.here}/data/results",
            "http://127.0.0.1:8080/": f"{self.platform.endpoints['api_url']}/",
        }

    def run(self, block: Block, command: str, *, ends_with: int = 0) -> str:
        """Run one command; it must end with the exit code that the page tells, 0 unless said otherwise."""
        command = self.with_ids(command)
        places = self.places
        command = re.sub("|".join(map(re.escape, places)), lambda m: places[m[0]], command)
        env = self.env | (self.client_env if "$MHS_" in command else {})
        env |= self.ray_env if command.startswith("ray ") else {}
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], cwd=self.here, env=env, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        said = f"{block.where}: {command}\nends with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == ends_with, said
        print(f"{time.monotonic() - began:5.1f} s  {command.splitlines()[0]}")
        self.ran.append(command)
        if kind := _CREATES.search(command):
            self.note(next(filter(None, kind.groups())), done.stdout + done.stderr)
        return done.stdout

    def docker(self, *words: str, cwd: Path | None = None) -> None:
        """Run a command of the engine as the reader could have done before."""
        subprocess.run(["docker", *words], cwd=cwd or self.here, env=self.env, capture_output=True, check=True)

    def note(self, kind: str, said: str) -> None:
        """Remember the id of what a command made, as it tells it."""
        found = re.search(r"\bjob (\d+)" if kind == "submit" else r"^id +(\S+)$", said, re.MULTILINE)
        assert found, f"no id of a new {kind} in: {said}"
        self.made.setdefault("job" if kind == "submit" else kind, []).append(found[1])

    def with_ids(self, command: str) -> str:
        """Put the ids of this platform in the place of the page's."""
        for kind, places in _IDS.items():
            for place in places:
                command = re.sub(rf"({place})(\d+)", lambda m, k=kind: f"{m[1]}{self.id(k, int(m[2]))}", command)
        return _CLIENT.sub(lambda m: self.made["client"][0] if "client" in self.made else m[0], command)

    def id(self, kind: str, number: int) -> int:
        """Return the id of the page's n-th image, container, scan or job; else of the newest that serves."""
        here = self.made.get(kind, [])
        if kind == "company":
            number -= 1  # the platform makes the first one
        if 0 < number <= len(here):
            return int(here[number - 1])
        if kind == "company":
            return number + 1
        filters = {"state": "succeeded"} if kind == "job" else {}
        return int(self.platform.get(f"/v1/{kind}s", limit=1, **filters)["items"][0]["id"])

    # ------------------------------------------------------------ Python

    def python(self, block: Block) -> None:
        """Run a block in the names that the page's blocks before it left."""
        code = compile(block.text, block.where, "exec")
        with self.settled():
            exec(code, self.names)
        self.ran.append(block.text)

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Within: this process is in the reader's folder, with the reader's environment."""
        before = dict(os.environ)
        os.environ.update(self.client_env)
        try:
            with contextlib.chdir(self.here):
                yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def edit(self, block: Block) -> None:
        """Put a function of a file in the place of the one that it has."""
        file, _, name = block.title.partition(", in place of ")
        path = self.here / file
        text = path.read_text()
        [old] = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == name]
        lines = text.splitlines()
        path.write_text(
            "\n".join([*lines[: old.lineno - 1], *block.text.splitlines(), *lines[old.end_lineno :]]) + "\n"
        )
