"""Faults beside the fields they are about: services name JSON paths, forms name fields."""

from __future__ import annotations

from collections.abc import Mapping

from mhs_ray.domain.errors import ConflictError, InvalidInputError, MhsError

WHOLE = ""
"""The key of what is wrong with the form as a whole."""


def by_field(error: MhsError, names: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return field → what is wrong with it. names: JSON path → field where ``$.field`` is not its name."""
    if isinstance(error, ConflictError):
        return {WHOLE: _sentence(str(error))}
    found: dict[str, str] = {}
    for fault in error.faults if isinstance(error, InvalidInputError) else ():
        field = (names or {}).get(fault.path, fault.path.removeprefix("$.").removeprefix("$"))
        text = _sentence(fault.message)
        found[field] = f"{found[field]} {text}" if field in found else text
    return found or {WHOLE: _sentence(str(error))}


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
