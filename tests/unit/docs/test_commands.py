"""No command in the documentation is one that there is not; what no test runs says why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from mhs_ray.actors.names import DISPATCHER, REGISTRAR
from mhs_ray.cli.main import app
from tests.docs_pages import (
    DOCS,
    REASONS,
    ROOT,
    Block,
    blocks,
    commands,
    faults,
    mhs_calls,
    pages,
    run_pages,
)

ROOT_COMMAND = typer.main.get_command(app)
OURS = {"tutorial.md", *(f"how-to/{n}.md" for n in (
    "deliveries", "push-an-image", "qupath", "results-in-python", "security", "techcyte-webhook", "tile-feed",
))}  # fmt: skip


def calls_of(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (where, words) of each call of `mhs` on a page: in blocks, and in the text as code."""
    for block in blocks(page):
        if block.is_shell:
            for command in commands(block):
                for words in mhs_calls(command):
                    yield block.where, words
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`(mhs [^`\n]+)`", text):
        if code in {DISPATCHER, REGISTRAR}:  # names of actors
            continue
        for words in mhs_calls(code):
            yield f"{page.relative_to(ROOT)}: `{code}`", words
    for line in re.findall(r"^ {4}(mhs .+)$", text, re.MULTILINE):
        for words in mhs_calls(re.sub(r"\s{3,}.*|\s→.*", "", line)):
            yield f"{page.relative_to(ROOT)}: {line}", words


@pytest.mark.parametrize("page", [ROOT / "README.md", *pages()], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_and_option_of_mhs_exists(page: Path) -> None:
    assert [f"{where}: {fault}" for where, words in calls_of(page) for fault in faults(words, ROOT_COMMAND)] == []


def test_the_check_sees_calls_wherever_they_stand_and_what_is_wrong_with_them() -> None:
    block = Block(
        DOCS / "x.md", 1, "sh", "", "A=$(mhs image create 'a b' --json | jq .id) && sudo mhs down --now; mhs x\n"
    )
    [command] = commands(block)
    calls = list(mhs_calls(command))
    assert calls == [["image", "create", "a b", "--json"], ["down", "--now"], ["x"]]
    said = [fault for words in calls for fault in faults(words, ROOT_COMMAND)]
    assert said == ["'mhs down' has no option --now", "there is no command 'mhs x'"]
    assert faults(["container", "create", "--image", "-1", "-eA=b", "-e", "--b=c", "…", "--any"], ROOT_COMMAND) == []
    assert faults(["image", "psh"], ROOT_COMMAND) == ["there is no command 'mhs image psh'"]


def test_here_documents_and_continued_lines_are_one_command_each() -> None:
    text = "cat > a <<'JSON'\n{\n  mhs nothing\n}\nJSON\nmhs up \\\n  --json\n# a remark\nmhs down"
    found = list(commands(Block(DOCS / "x.md", 1, "sh", "", text)))
    assert found == ["cat > a <<'JSON'\n{\n  mhs nothing\n}\nJSON", "mhs up \\\n  --json", "mhs down"]
    assert [words for c in found for words in mhs_calls(c)] == [["up", "--json"], ["down"]]
    console = Block(DOCS / "x.md", 1, "console", "", "$ mhs up\nready  yes\n")
    assert list(commands(console)) == ["mhs up"]


def test_the_tutorial_and_the_how_tos_are_run_and_what_is_not_run_says_what_it_needs() -> None:
    run = {str(p.relative_to(DOCS)) for p in run_pages()}
    assert run >= OURS
    for page in run_pages():
        for block in blocks(page):
            if block.is_shell and block.title:
                assert block.title in REASONS, block.where
    assert (DOCS / "tutorial.md").read_text().count("```sh\n") >= 8
