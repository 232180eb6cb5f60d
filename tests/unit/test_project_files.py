"""What the project's files say is so."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from mhs_ray.domain.states import mermaid

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_shows_the_table_of_states() -> None:
    assert f"```mermaid\n{mermaid()}\n```" in (ROOT / "README.md").read_text()


def test_every_path_that_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text()
    named = {*re.findall(r"`((?:mhs_ray|api|tests)/[\w/.]+)`", text), *re.findall(r"\]\(([\w./]+)\)", text)}
    assert len(named) > 10
    assert [p for p in sorted(named) if not (ROOT / p).exists()] == []


@pytest.mark.parametrize("name", ["requirements.lock", ".ci/uv.txt"])
def test_locks_have_hashes_and_name_no_registry(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "--hash=sha256:" in text
    assert not re.search(r"https?://|^--(extra-)?index-url|^--find-links", text, re.MULTILINE)


def test_system_packages_says_what_to_install_where_there_is_no_apt(tmp_path: Path) -> None:
    for tool in ("sort", "tr", "id", "python3"):
        found = next(p for d in os.get_exec_path() if (p := Path(d, tool)).exists())
        (tmp_path / tool).symlink_to(found)
    script = (ROOT / ".ci/system-packages").read_text()
    # Without the folders that it adds, nothing but the links above is found.
    script = re.sub(r'^PATH="\$PATH:.*$', "", script, flags=re.MULTILINE)
    done = subprocess.run(
        ["/bin/sh", "-s", "test"], input=script, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert {"podman", "docker.io", "docker-registry", "catatonit", "debootstrap"} <= set(done.stderr.split())
