"""What goes to stdout (the answer) and to stderr (notes, progress), for people or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

T = TypeVar("T")
_json: ContextVar[bool] = ContextVar("json", default=False)

STATE_STYLES = {
    "succeeded": "green", "uploaded": "green", "ready": "green", "ok": "green", "running": "cyan", "failed": "red",
    "timed out": "red", "missing": "red", "wrong": "red", "cancelled": "yellow", "optional": "yellow",
}  # fmt: skip


@contextmanager
def as_json(wanted: bool) -> Iterator[None]:
    """Within: answers are JSON, or for people."""
    token = _json.set(wanted)
    try:
        yield
    finally:
        _json.reset(token)


def is_json() -> bool:
    """Say whether the answer is wanted as JSON."""
    return _json.get()


def emit(document: T, show: Callable[[T], None]) -> None:
    """Give the answer: as one JSON document on one line, or by `show`."""
    if is_json():
        line(json.dumps(document, ensure_ascii=False))
    else:
        show(document)


def line(text: str) -> None:
    """Write one line to stdout, at once."""
    sys.stderr.flush()
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Write one line of progress to stderr."""
    Console(stderr=True, highlight=False).print(Text(text, "dim"), soft_wrap=True)


def rich(text: Text) -> None:
    """Write styled text to stdout."""
    Console(highlight=False).print(text, soft_wrap=True)


def problem(document: Mapping[str, Any]) -> None:
    """Show a problem document: on stdout as JSON, or on stderr in words."""
    if is_json():
        line(json.dumps(document, ensure_ascii=False))
        return
    console = Console(stderr=True, highlight=False)
    faults = document.get("errors") or []
    if len(faults) == 1:
        faults, detail = [], f"{faults[0].get('path')}: {faults[0].get('message')}"
    else:
        detail = str(document.get("title") if faults else document.get("detail") or document.get("title"))
    console.print(Text.assemble(("error: ", "bold red"), detail), soft_wrap=True)
    for fault in faults:
        console.print(Text(f"  {fault.get('path')}: {fault.get('message')}"), soft_wrap=True)


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], empty: str) -> None:
    """Show rows: a table on a terminal, tab-separated lines elsewhere. columns: keys, also the headings."""
    found = [[cell(row.get(c)) for c in columns] for row in rows]
    heads = [c.replace("_", " ") for c in columns]
    if not sys.stdout.isatty():
        for parts in [heads, *found]:
            line("\t".join(p.replace("\t", " ").replace("\n", " ") for p in parts))
        return
    if not found:
        note(empty)
        return
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for head in heads:
        shown.add_column(head, overflow="fold")
    for parts in found:
        shown.add_row(*(Text(p, STATE_STYLES.get(p, "")) for p in parts))
    Console(highlight=False).print(shown)


def facts(pairs: Mapping[str, Any]) -> None:
    """Show one thing as names and values; what is empty is left out."""
    given = {k.replace("_", " "): cell(v) for k, v in pairs.items() if v not in (None, "", [], {})}
    width = max((len(k) for k in given), default=0)
    for name, value in given.items():
        rich(Text.assemble((f"{name:<{width}}  ", "bold"), (value, STATE_STYLES.get(value, ""))))


def cell(value: Any) -> str:
    """Return a value as a person reads it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def local_time(at: str | None) -> str:
    """Return an RFC 3339 time as local time to the second."""
    if not at:
        return ""
    return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def seconds_between(begin: str | None, end: str | None) -> float | None:
    """Return how long something took, seconds; an end of None is now."""
    if not begin:
        return None
    last = datetime.fromisoformat(end) if end else datetime.now(UTC)
    return round((last - datetime.fromisoformat(begin)).total_seconds(), 1)


def size(count: int | None) -> str:
    """Return bytes as a person reads them."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that is told (done, total) in bytes and draws a bar on stderr when that is a terminal."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
