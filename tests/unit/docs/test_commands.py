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
    bare_commands,
    blocks,
    commands,
    faults,
    mhs_calls,
    pages,
    run_pages,
)

ROOT_COMMAND = typer.main.get_command(app)


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
    for line in re.findall(r"^ {4}(mhs .+)$", text, re.MULTILINE):  # of the README; no page has any
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


@pytest.mark.parametrize("page", pages(), ids=lambda p: str(p.relative_to(DOCS)))
def test_every_command_of_a_page_is_run_or_says_why_not(page: Path) -> None:
    assert bare_commands(page) == [], "put it into a block of `sh`"
    for block in blocks(page):
        assert not block.not_run or block.not_run in REASONS, block.where
        assert not block.remark or block.is_shell or block.language == "python", block.where
    stray = re.findall(r"<!-- (?:not run|ends with).*", page.read_text())
    assert len(stray) == sum(bool(b.remark) for b in blocks(page)), "such a remark stands on the line before a block"


def test_most_commands_are_run() -> None:
    shell = [b for page in pages() for b in blocks(page) if b.is_shell]
    ran = sum(len(list(commands(b))) for b in shell if b.is_run)
    assert ran >= 2 * sum(len(list(commands(b))) for b in shell if not b.is_run)
    tutorial = [b for b in blocks(DOCS / "tutorial.md") if b.is_shell and b.is_run]
    assert len(tutorial) >= 8
    assert DOCS / "tutorial.md" in run_pages()


def test_a_command_outside_of_a_block_and_remarks_before_blocks_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# T\n\n    mhs up    starts it\n\n- a list\n\n      ray drain-node --x\n\n```\nkubectl get pods\n```\n\n"
        '    A=1\n    {"a": 1}\n\n<!-- not run: too long -->\n```sh\nmhs bench x\n```\n\n'
        '<!-- ends with 4 -->\n```sh\nmhs x\n```\n\n```python title="a.py, in place of b"\n```\n'
    )
    assert len(bare_commands(page)) == 3
    bare, long, ends, python = blocks(page)
    assert (long.not_run, long.is_run, long.where) == ("too long", False, "a.md:17")
    assert (ends.ends_with, ends.is_run, python.is_run, bare.is_run) == (4, True, True, False)
