"""Runs the blocks of a page of the documentation in order, as a reader would who begins with a fresh platform."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.docs_pages import Block, blocks, commands
from tests.e2e.platform.harness import Platform

_CREATES: Final = re.compile(r"\bmhs (image|container|algorithm) create\b|\bmhs (scan) add\b|\bmhs (submit)\b")
_IDS: Final = {
    "image": (r"mhs image (?:push|show|versions|instructions|rename|delete) ", r"--image ", r"/v1/images/"),
    "container": (r"mhs container (?:show|update|delete) ", r"--container ", r"/v1/containers/"),
    "scan": (r"mhs scan (?:show|url|delete) ", r"--scan ", r"/v1/scans/"),
    "job": (r"mhs (?:logs|results|job (?:show|events|cancel|rerun)) ", r"/v1/jobs/"),
}
"""Where ids stand in commands. A page counts from 1, as on a fresh platform; here the numbers are others."""


@dataclass
class Reader:
    """Somebody at a shell in `folder`. made: ids of what the page made, by kind, in order."""

    platform: Platform
    folder: Path
    made: dict[str, list[int]] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)

    def read(self, page: Path) -> None:
        """Run every block of a page that does not say why not."""
        self.made.clear()
        for block in blocks(page):
            if block.is_shell and not block.title:
                for command in commands(block):
                    self.run(block, command)
            elif block.language == "python" and " in place of " in block.title:
                self.edit(block)
            elif block.language == "python":
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

    def run(self, block: Block, command: str) -> str:
        """Run one command; it must end with 0."""
        command = self.with_ids(command)
        env = self.env | (self.client_env if "$MHS_" in command else {})
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], cwd=self.folder, env=env, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block.where}: {command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        print(f"{time.monotonic() - began:5.1f} s  {command.splitlines()[0]}")
        self.ran.append(command)
        if kind := _CREATES.search(command):
            self.note(next(filter(None, kind.groups())), done.stdout + done.stderr)
        return done.stdout

    def build_small(self, name: str) -> None:
        """Give an image of a few bytes this name on the reader's machine."""
        context = self.folder / "small"
        context.mkdir()
        (context / "model").write_text("x")
        (context / "Dockerfile").write_text('FROM scratch\nCOPY model /model\nENTRYPOINT ["/model"]\n')
        subprocess.run(["docker", "build", "-t", name, "."], cwd=context, env=self.env, capture_output=True, check=True)

    def note(self, kind: str, said: str) -> None:
        """Remember the id of what a command made, as it tells it."""
        found = re.search(r"\bjob (\d+)" if kind == "submit" else r"^id +(\d+)$", said, re.MULTILINE)
        assert found, f"no id of a new {kind} in: {said}"
        self.made.setdefault("job" if kind == "submit" else kind, []).append(int(found[1]))

    def with_ids(self, command: str) -> str:
        """Put the ids of this platform in the place of the page's."""
        for kind, places in _IDS.items():
            for place in places:
                command = re.sub(rf"({place})(\d+)", lambda m, k=kind: f"{m[1]}{self.id(k, int(m[2]))}", command)
        return command

    def id(self, kind: str, number: int) -> int:
        """Return the id of the page's n-th image, container, scan or job; else of the newest that serves."""
        here = self.made.get(kind, [])
        if number <= len(here):
            return here[number - 1]
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
            with contextlib.chdir(self.folder):
                yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def edit(self, block: Block) -> None:
        """Put a function of a file in the place of the one that it has."""
        file, _, name = block.title.partition(", in place of ")
        path = self.folder / file
        text = path.read_text()
        [old] = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == name]
        lines = text.splitlines()
        path.write_text(
            "\n".join([*lines[: old.lineno - 1], *block.text.splitlines(), *lines[old.end_lineno :]]) + "\n"
        )
