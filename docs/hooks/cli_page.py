"""The page of the command line, made by typer of the commands themselves."""

from __future__ import annotations

import re

import typer
from typer.cli import get_docs_for_click

from mhs_ray.cli.main import app


def page() -> str:
    """Return the page."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="mhs")
    text = get_docs_for_click(obj=command, ctx=context, name="mhs")
    text = re.sub(r"^# `mhs`\n", "# Command line\n", text)
    text = re.sub(r"^\* `--(install|show)-completion`.*\n", "", text, flags=re.MULTILINE)
    # Commands by name, and those of a group under it.
    return re.sub(r"^(#{2,4}) `(mhs [^`]*)`$", r"\1 \2", text, flags=re.MULTILINE)
