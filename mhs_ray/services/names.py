"""Rules for names that people type."""

from __future__ import annotations

import unicodedata

from mhs_ray.domain.errors import InvalidInputError

MAX_NAME = 200


def clean_name(name: str, path: str = "$.name") -> str:
    """Return `name` without outer blanks. Raises InvalidInputError when it is empty, too long or unprintable."""
    name = name.strip()
    if not name:
        raise InvalidInputError.at(path, "a name is needed")
    if len(name) > MAX_NAME:
        raise InvalidInputError.at(path, f"longer than {MAX_NAME} characters")
    if any(unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"} for c in name):
        raise InvalidInputError.at(path, "line breaks and control characters cannot be part of a name")
    return name
