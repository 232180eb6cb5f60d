"""The documentation as tests read it: fenced blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SHELL = {"sh", "console", "shell", "bash"}
REASONS = {
    "needs a new machine",
    "needs a parked delivery",
    "needs the extra geo",
    "needs an AWS account",
    "needs a GPU",
    "needs a Kubernetes cluster",
    "needs a cluster",
    "needs PostgreSQL",
    "needs the internet",
}
"""What a block that no test runs may say in its title, for readers to see."""

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w+-]*)(?:[ \t]+(?P<info>[^\n]*))?\n(?P<text>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block. title: what is shown above it."""

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in SHELL


def pages() -> list[Path]:
    return sorted(p for p in DOCS.rglob("*.md") if "hooks" not in p.parts)


def meta(page: Path) -> dict[str, Any]:
    """Return the front matter of a page."""
    found = re.match(r"---\n(.*?)\n---\n", page.read_text(), re.DOTALL)
    return dict(yaml.safe_load(found[1]) or {}) if found else {}


def run_pages() -> list[Path]:
    """Return the pages whose blocks are run on the platform."""
    return [p for p in pages() if meta(p).get("run") == "platform"]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        title = re.search(r'title="([^"]*)"', match["info"] or "")
        lines = [line.removeprefix(match["indent"]) for line in match["text"].splitlines()]
        at = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, at, match["language"], title[1] if title else "", "\n".join(lines)))
    return found


def commands(block: Block) -> Iterator[str]:
    """Yield the commands of a shell block, each with its continuation lines and here-documents.

    In a `console` block only what stands behind a prompt is one.
    """
    lines = block.text.splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith(("$ ", "# "))]
    taken: list[str] = []
    until = None
    for line in lines:
        taken.append(line)
        if until is not None:
            if line.strip() != until:
                continue
            until = None
        elif opened := re.search(r"<<-?\s*'?\"?(\w+)", line):
            until = opened[1]
            continue
        elif line.endswith("\\"):
            continue
        text = "\n".join(taken).strip()
        taken = []
        if text and not text.startswith("#"):
            yield text


def mhs_calls(command: str) -> Iterator[list[str]]:
    """Yield the words behind each `mhs` in a command line."""
    command = re.sub(r"<<-?\s*'?\"?(\w+).*", "", command, flags=re.DOTALL).replace("\\\n", " ")
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;()")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    call: list[str] | None = None
    first = True
    for word in lexer:
        if set(word) <= set("|&;()"):
            if call is not None:
                yield call
            call, first = None, True
        elif call is not None:
            call.append(word)
        elif first and word.rpartition("/")[2] == "mhs":
            call = []
        elif not re.fullmatch(r"\w+=.*|sudo|time|exec", word):
            first = False
        if call is None and word.endswith("$"):
            first = True  # IMAGE=$(mhs …)
    if call is not None:
        yield call


def faults(words: list[str], root: click.Command) -> list[str]:
    """Return what the command line does not know of a call; what is behind an ellipsis is not looked at."""
    command = root
    at = 0
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        group: Any = command
        if at >= len(words) or words[at].startswith(("-", "…", "...", "<", "{", "[")):
            break
        if words[at] not in group.commands:
            return [f"there is no command {' '.join(['mhs', *words[: at + 1]])!r}"]
        command = group.commands[words[at]]
        at += 1
    options: dict[str, Any] = {o: p for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("-")}
    found = []
    takes_value = False
    for word in words[at:]:
        if takes_value:
            takes_value = False
            continue
        if word in {"…", "..."} or word.startswith((">", "<", "2>")):
            break
        name = word.partition("=")[0]
        if not re.match(r"-{1,2}[A-Za-z]", word) or name == "--help":
            continue
        if name not in options and not name.startswith("--"):
            name = name[:2]  # -eNAME=value
        if name not in options:
            found.append(f"{' '.join(['mhs', *words[:at]])!r} has no option {word.partition('=')[0]}")
            continue
        takes_value = "=" not in word and not getattr(options[name], "is_flag", False)
    return found
