"""Read what only the source says: the comment behind a line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any


def remarks(of: Any) -> dict[str, str]:
    """Return the trailing comment of each field or member of a class, without linters' own."""
    found = {}
    for line in inspect.getsource(of).splitlines():
        match = re.match(r"\s+(\w+)\s*(?::[^#]*|=[^#]*)#\s*(.*)", line)
        if match:
            found[match[1]] = re.sub(r"noqa:\s*\S+(\s*\([^)]*\))?\s*", "", match[2]).strip()
    return found


def cell(text: object) -> str:
    """Return `text` as it can stand in a cell of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell(c) for c in line)} |" for line in lines)
