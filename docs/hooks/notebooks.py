"""Notebooks as pages: their text, and their code as it is run."""

from __future__ import annotations

import json


def as_markdown(text: str) -> str:
    """Return a notebook as Markdown; outputs, which git does not hold, are left out."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts) + "\n"
