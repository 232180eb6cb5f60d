"""What a lab starts from: folders that ``mhs init`` copies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from mhs_ray.domain.errors import ConflictError, NotFoundError

_HERE: Final = Path(__file__).resolve().parent
_BASES: Final = {
    "tiles": ("plain",),
    "warm": ("plain",),
    "torch": ("plain", "_polygons"),
    "dicom": ("plain", "_polygons"),
}
"""A template that is others with some files changed and added."""
TEMPLATES: Final = {
    "plain": "four squares on any slide, and all that is around a model",
    "tiles": "tiles from the platform, decoded, at a size and resolution of yours; nothing is downloaded",
    "warm": "a model that is loaded once and takes scan after scan",
    "torch": "a small PyTorch model with its weights and its training: brown stain in immunohistochemistry",
    "dicom": "every level of a DICOM slide, from SCAN_URL_ZIP",
}
"""Name → what it does, in one line."""
_LEFT_OUT: Final = shutil.ignore_patterns("__pycache__", "*.pyc", ".pytest_cache", ".ruff_cache", ".mypy_cache")


def template_names() -> list[str]:
    """Return the templates there are."""
    return list(TEMPLATES)


def write_template(name: str, dest: Path) -> list[Path]:
    """Copy template `name` into `dest`, made if missing; return the files, relative to it, sorted.

    Raises NotFoundError for an unknown template, ConflictError when `dest` holds something already.
    """
    if name not in template_names():
        raise NotFoundError("template", f"{name}; there is: {', '.join(template_names())}")
    if dest.exists() and not dest.is_dir():
        raise ConflictError(f"{dest} is a file; name a folder that is empty or does not exist")
    if dest.is_dir() and any(dest.iterdir()):
        raise ConflictError(f"{dest} is not empty; name a folder that is empty or does not exist")
    try:
        for base in _BASES.get(name, ()):
            shutil.copytree(_HERE / base, dest, ignore=_LEFT_OUT, dirs_exist_ok=True)
            shutil.rmtree(dest / "tests", ignore_errors=True)  # they try what is changed here
        shutil.copytree(_HERE / name, dest, ignore=_LEFT_OUT, dirs_exist_ok=True)
    except OSError as error:
        raise ConflictError(f"cannot write to {dest}: {error.strerror or error}") from error
    return sorted(p.relative_to(dest) for p in dest.rglob("*") if p.is_file())
