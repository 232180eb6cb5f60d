"""docker, podman and skopeo as a person uses them, each with its own storage and logins."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SMALL = "localhost/mhs-small:test"


@dataclass(frozen=True)
class Client:
    """words: how a command of this client begins, global options included."""

    name: str
    words: tuple[str, ...]
    env: Mapping[str, str]

    def run(self, *words: str, cwd: Path | None = None, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.words, *words], env=self.env, input=stdin, capture_output=True, text=True, check=False,
            timeout=180, cwd=cwd,
        )  # fmt: skip

    def ok(self, *words: str, cwd: Path | None = None, stdin: str | None = None) -> str:
        done = self.run(*words, cwd=cwd, stdin=stdin)
        assert done.returncode == 0, f"{self.name} {words[0]}: {done.stdout[-500:]} {done.stderr[-1500:]}"
        return done.stdout

    def follow(self, command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a copied command line as it is, with ``printf %s 'password' | …`` in front where it has that."""
        stdin = None
        if " | " in command:
            before, _, command = command.partition(" | ")
            stdin = shlex.split(before)[2]
        words = shlex.split(command)
        assert words[0] == self.name, command
        return self.run(*words[1:], cwd=cwd, stdin=stdin)
