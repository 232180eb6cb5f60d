"""The script that draws diagrams, fetched once from npm and checked: no reader's browser asks elsewhere for it."""

from __future__ import annotations

import base64
import hashlib
import logging
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from api.console.assets import AssetError, npm_command

log = logging.getLogger("mkdocs.hooks.mermaid")

VERSION: Final = "11.17.2"
SHA512: Final = "V6K3C8EBdEsPFZXSKMJe6ppQOENxuHARr9GvHX4hh47lAbhMRD9qf4oEK7LoaRQxULMa80/qt5gHO73aCleBBg=="
PATH: Final = "assets/vendor/mermaid.min.js"
_FILES: Final = {"package/dist/mermaid.min.js": PATH, "package/LICENSE": "assets/vendor/mermaid.LICENSE.txt"}


def available(docs: Path) -> bool:
    """Say whether the script is in `docs`; it is fetched at the first time."""
    stamp = docs / "assets" / "vendor" / "mermaid.version"
    if stamp.is_file() and stamp.read_text() == VERSION:
        return True
    try:
        _fetch(docs)
    except (AssetError, OSError, subprocess.SubprocessError) as error:
        log.info("diagrams are shown as text: their script cannot be fetched (%s)", error)
        return False
    stamp.write_text(VERSION)
    return True


def _fetch(docs: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="mhs-docs-") as name:
        command = [*npm_command(), "pack", f"mermaid@{VERSION}", "--loglevel=error", "--pack-destination", name]
        done = subprocess.run(command, cwd=name, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise AssetError(f"npm pack failed: {done.stderr.strip()[-300:]}")
        (archive,) = Path(name).glob("*.tgz")
        if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != SHA512:
            raise AssetError(f"mermaid {VERSION} is not the file that docs/hooks/mermaid.py names")
        with tarfile.open(archive) as tar:
            for source, target in _FILES.items():
                member = tar.extractfile(source)
                assert member is not None
                path = docs / target
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(member.read())
