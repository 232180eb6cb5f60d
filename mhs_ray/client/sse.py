"""Server-sent events, read line by line (WHATWG HTML, 9.2.6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event. id: "" when the stream gave none so far."""

    event: str
    data: str
    id: str


def events(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events of a stream of lines; an event that the stream's end cut off is dropped."""
    kind, data, last_id = "message", list[str](), ""
    for line in lines:
        if not line:
            if data:
                yield Event(kind, "\n".join(data), last_id)
            kind, data = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id" and "\0" not in value:
            last_id = value
