"""The documentation as tests read it: fenced blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

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
    "needs QuPath",
    "takes minutes",
    "is an excerpt",
    "serves until Ctrl-C",  # a test of its own runs what it prints: tests/integration/templates/test_plain_run.py
}
"""Why no test runs a block: in its title, for readers to see, or in a remark before it, for who reads the source."""

PROGRAMS = {
    "mhs", "ray", "serve", "aws", "kubectl", "podman", "docker", "python", "python3", "uv", "pip", "make", "curl",
    "sed", "QuPath", "export", "sudo", "shred", "cat", "for", "apt-get", "systemctl",
}  # fmt: skip
"""What a line of commands begins with."""

_FENCE = re.compile(
    r"(?:^ *<!-- (?P<remark>not run: [^\n]*?|ends with \d+) -->\n)?"
    r"^(?P<indent> *)```(?P<language>[\w+-]*)(?:[ \t]+(?P<info>[^\n]*))?\n(?P<text>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block. title: what is shown above it; remark: what the page's source says of its run before it."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    remark: str = ""

    @property
    def where(self) -> str:
        return f"{_short(self.page)}:{self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in SHELL

    @property
    def not_run(self) -> str:
        """Why no test runs it; empty for one that a test runs."""
        if self.remark.startswith("not run: "):
            return self.remark.removeprefix("not run: ")
        return self.title if self.is_shell else ""

    @property
    def ends_with(self) -> int:
        """The exit code that its last command has."""
        return int(self.remark.removeprefix("ends with ")) if self.remark.startswith("ends with ") else 0

    @property
    def is_run(self) -> bool:
        return (self.is_shell or self.language == "python") and not self.not_run


def pages() -> list[Path]:
    return sorted(p for p in DOCS.rglob("*.md") if "hooks" not in p.parts)


def run_pages() -> list[Path]:
    """Return the pages that have something to be run on the platform."""
    return [p for p in pages() if any(b.is_run for b in blocks(p))]


def bare_commands(page: Path) -> list[str]:
    """Return lines that look like commands and stand outside of a block of commands: nothing would run them."""
    found = []
    for block in blocks(page):
        if not block.language:  # `text` is what a command prints
            found += [f"{block.where}: {line}" for line in block.text.splitlines()[:1] if _is_command(line)]
    text = _FENCE.sub("", page.read_text())
    for line in re.findall(r"^ {4,}(?![-*|>] )(\S.*)$", text, re.MULTILINE):
        if _is_command(line):
            found.append(f"{_short(page)}: {line}")
    return found


def _short(page: Path) -> Path:
    return page.relative_to(ROOT) if page.is_relative_to(ROOT) else Path(page.name)


def _is_command(line: str) -> bool:
    words = [w for w in line.removeprefix("$ ").split() if not re.match(r"\w+=", w)]
    return len(words) > 1 and words[0].rpartition("/")[2] in PROGRAMS


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        title = re.search(r'title="([^"]*)"', match["info"] or "")
        lines = [line.removeprefix(match["indent"]) for line in match["text"].splitlines()]
        at = text.count("\n", 0, match.start("indent")) + 1
        found.append(
            Block(page, at, match["language"], title[1] if title else "", "\n".join(lines), match["remark"] or "")
        )
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
        elif first and "=" not in word and word.rpartition("/")[2] == "mhs":
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
