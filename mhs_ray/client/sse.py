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


class EventReader:
    """Makes events of lines; an event that the stream's end cuts off is dropped."""

    def __init__(self) -> None:
        self._kind, self._data, self._last_id = "message", list[str](), ""

    def take(self, line: str) -> Event | None:
        """Return the event that `line` ends, if it ends one."""
        if not line:
            found = Event(self._kind, "\n".join(self._data), self._last_id) if self._data else None
            self._kind, self._data = "message", []
            return found
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._kind = value
        elif name == "id" and "\0" not in value:
            self._last_id = value
        return None


def events(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events of a stream of lines."""
    reader = EventReader()
    for line in lines:
        if event := reader.take(line):
            yield event
