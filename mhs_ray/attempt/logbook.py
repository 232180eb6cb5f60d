"""The log of an attempt: lines with times, cut into pieces that are shipped off the node while it runs.

A piece is a blob ``jobs/<job>/attempts/<n>/log/<first line, 12 digits>`` of lines ``<time> <o|e|p> <text>\\n``
(stdout, stderr, platform), so that reading can start at any line without reading what comes before its piece.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from mhs_ray.domain.errors import BlobError
from mhs_ray.ports import BlobStore, Stream

log = logging.getLogger(__name__)

Source = Literal["stdout", "stderr", "platform"]
_MARK: Final[dict[Source, str]] = {"stdout": "o", "stderr": "e", "platform": "p"}
_SOURCE: Final[dict[str, Source]] = {mark: source for source, mark in _MARK.items()}
_PIECE_BYTES: Final = 256 * 1024
_TAIL_CHARS: Final = 2000  # of a line on the failure card
_SHIP_EVERY_S: Final = 0.5
_CLOSE_PAUSES: Final = (0.2, 1.0, 5.0, None)
# Control characters that would move a terminal or break a line; a tab stays.
_LINE_END: Final = re.compile(rb"\r*\n|\r")
_CONTROL: Final = {c: f"\\x{c:02x}" for c in (*range(9), *range(10, 32), 127, 0x85, 0x2028, 0x2029)}


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line. number: from 0, over the whole attempt."""

    number: int
    at: str  # RFC 3339, UTC, microseconds
    source: Source
    text: str


def log_prefix(job_id: int, attempt: int) -> str:
    """Return the key prefix of an attempt's pieces."""
    return f"jobs/{job_id}/attempts/{attempt}/log/"


class LogWriter:
    """Takes raw output, makes lines, redacts secrets, echoes and ships.

    redact: strings that must not appear; those of less than 6 characters stay, or half the log would go.
    echo: called with each line's text, for the Ray worker's own output; it gets at most `echo_lines`.
    max_bytes: what is kept of the container's output; the rest is counted and said. A store that fails for a while
    costs nothing: what could not be shipped waits here.
    """

    def __init__(
        self,
        blobs: BlobStore,
        job_id: int,
        attempt: int,
        *,
        redact: Sequence[str] = (),
        max_bytes: int = 64 << 20,
        max_line: int = 64 << 10,
        echo: Callable[[str], None] = lambda _text: None,
        echo_lines: int = 20_000,
        first_line: int = 0,
    ) -> None:
        self._blobs, self._prefix = blobs, log_prefix(job_id, attempt)
        self._max_bytes, self._max_line = max_bytes, max_line
        self._echo, self._echo_left = echo, echo_lines
        self._partial: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._cut: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        self._after_cr: dict[Stream, bool] = {"stdout": False, "stderr": False}
        self._pending: list[str] = []
        self._pending_bytes = 0
        self._line, self._kept, self._dropped_lines, self._dropped_bytes = first_line, 0, 0, 0
        self._tail: list[str] = []
        self._lock = threading.Lock()
        self._redact: list[str] = []
        self.redact(redact)
        self._ship_lock = threading.Lock()
        self._wake, self._closed = threading.Event(), False
        self._shipper = threading.Thread(target=self._ship_loop, name=f"log-{job_id}-{attempt}", daemon=True)
        self._shipper.start()

    @property
    def tail(self) -> list[str]:
        """The last lines, for the failure card."""
        return list(self._tail)

    def output(self, stream: Stream, data: bytes) -> None:
        """Take a raw piece of a container's output. Never waits for the store."""
        if not data:
            return
        with self._lock:
            partial = self._partial[stream]
            start = int(self._after_cr[stream] and data[:1] == b"\n")  # the other half of a \r\n
            self._after_cr[stream] = data.endswith(b"\r")
            for end in _LINE_END.finditer(data, start):
                self._extend(stream, partial, data[start : end.start()])
                start = end.end()
                # A progress bar redraws its line: each state is a line here, and only going back is none.
                if partial or end.group() != b"\r":
                    self._finish(stream, partial)
            self._extend(stream, partial, data[start:])
            full = self._pending_bytes >= _PIECE_BYTES
        if full:
            self._wake.set()

    def redact(self, secrets: Iterable[str]) -> None:
        """Hide these strings too, from now on."""
        with self._lock:
            # The lines of a secret too: a log is made of lines. Longest first: one that holds another is hidden whole.
            found = {part for secret in secrets for part in (secret, *secret.splitlines()) if len(part) >= 6}
            self._redact = sorted(found.union(self._redact), key=len, reverse=True)

    def say(self, text: str) -> None:
        """Add a line of the platform's own."""
        with self._lock:
            self._add("platform", text)

    def close(self) -> None:
        """End partial lines, say what was left out, ship everything. Raises BlobError when the log cannot be stored."""
        with self._lock:
            if self._closed:
                return
            for stream, partial in self._partial.items():
                if partial or self._cut[stream]:
                    self._finish(stream, partial)
            if self._dropped_lines:
                self._add(
                    "platform",
                    f"log limit reached: {self._dropped_lines} more lines ({self._dropped_bytes} bytes) were left out",
                )
            self._closed = True
        self._wake.set()
        self._shipper.join(60)
        for pause in _CLOSE_PAUSES:
            try:
                self._ship()
                return
            except BlobError:
                if pause is None:
                    raise
                time.sleep(pause)

    def _extend(self, stream: Stream, partial: bytearray, data: bytes) -> None:
        room = self._max_line - len(partial)
        partial += data[:room]
        self._cut[stream] += max(0, len(data) - room)

    def _finish(self, stream: Stream, partial: bytearray) -> None:
        if self._cut[stream]:
            # The line may end within a secret, whose first half is one too many.
            secrets = [s.encode("utf-8", "replace") for s in self._redact]
            ends = [k for s in secrets for k in range(1, min(len(s), len(partial)) + 1) if partial.endswith(s[:k])]
            del partial[len(partial) - max(ends, default=0) :]
        text = partial.decode("utf-8", "backslashreplace")
        if self._cut[stream]:
            text += f" … [{self._cut[stream]} more bytes in this line]"
        partial.clear()
        self._cut[stream] = 0
        self._add(stream, text)

    def _add(self, source: Source, text: str) -> None:
        for secret in self._redact:
            text = text.replace(secret, "[redacted]")
        text = text.translate(_CONTROL)
        if source != "platform":
            self._tail.append(text[:_TAIL_CHARS])
            del self._tail[:-200]
        at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line = f"{at} {_MARK[source]} {text}\n"
        size = len(line.encode("utf-8", "backslashreplace"))
        # Nothing after the first line that is left out: a log with holes would mislead. Our own few words always stay.
        if source != "platform" and (self._dropped_lines or self._kept + size > self._max_bytes):
            self._dropped_lines += 1
            self._dropped_bytes += size
            return
        self._kept += size
        self._pending.append(line)
        self._pending_bytes += len(line)
        if self._echo_left:
            self._echo_left -= 1
            self._echo(text if self._echo_left else "… more lines are in the job's log")

    def _ship_loop(self) -> None:
        while not self._closed:
            self._wake.wait(_SHIP_EVERY_S)
            self._wake.clear()
            try:
                self._ship()
            except BlobError as error:
                log.warning("log piece of %s not stored yet: %s", self._prefix, error)

    def _ship(self) -> None:
        """Store what is pending, piece by piece. Raises BlobError, and then nothing is lost: it goes out next time."""
        with self._ship_lock:
            while True:
                with self._lock:
                    lines, size, first = [], 0, self._line
                    for line in self._pending:
                        if size >= _PIECE_BYTES:
                            break
                        lines.append(line)
                        size += len(line)
                if not lines:
                    return
                self._blobs.put(f"{self._prefix}{first:012d}", "".join(lines).encode("utf-8", "backslashreplace"))
                with self._lock:
                    del self._pending[: len(lines)]
                    self._pending_bytes -= size
                    self._line += len(lines)


def read_log(blobs: BlobStore, job_id: int, attempt: int, start: int = 0) -> Iterator[LogLine]:
    """Yield the lines from number `start` on that are stored now, in order."""
    prefix = log_prefix(job_id, attempt)
    firsts = sorted(int(info.key.removeprefix(prefix)) for info in blobs.list(prefix))
    for i, first in enumerate(firsts):
        if i + 1 < len(firsts) and firsts[i + 1] <= start:
            continue
        with blobs.open(f"{prefix}{first:012d}") as piece:
            for number, raw in enumerate(piece, start=first):
                if number >= start:
                    at, mark, text = raw.decode("utf-8", "replace").rstrip("\n").split(" ", 2)
                    yield LogLine(number, at, _SOURCE[mark], text)
