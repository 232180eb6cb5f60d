"""The reference pages that are made of the code. Each maker returns Markdown and takes no argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from docs.hooks import cli_page, http_page, states_page, tables

PAGES: Final[dict[str, Callable[[], str]]] = {
    "reference/cli.md": cli_page.page,
    "reference/http-api.md": http_page.page,
    "reference/settings.md": tables.settings,
    "reference/problems.md": tables.problems,
    "reference/failures.md": tables.failures,
    "reference/states.md": states_page.page,
    "reference/instance-types.md": tables.instance_types,
}
