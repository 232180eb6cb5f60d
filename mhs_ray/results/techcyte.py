"""Techcyte's results API as its client sees it (techcyte-contract §3): what a request came to, never an exception."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import BinaryIO, Final, Protocol

import httpx

from mhs_ray.domain.ids import encode_id
from mhs_ray.domain.redact import redact_text
from mhs_ray.results.outbox import Kind, Looked, Reach, Sent, of_task

_MAX_ANSWER: Final = 64 << 20
_SHOWN: Final = 300
_PIECE: Final = 1 << 18

# Where one of these is raised no request was written yet. All other faults leave open what arrived.
_BEFORE_SENDING: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)


class Techcyte(Protocol):
    """The other side of the outbox."""

    def send(self, kind: Kind, task_number: int, token: str, body: BinaryIO) -> Sent:
        """Send one request and say how far it got."""

    def look(self, task_number: int, token: str) -> Looked:
        """Ask for the evaluations of a task."""


class TechcyteHttp:
    """Speaks HTTP. url: the base, e.g. ``https://api.app.techcyte.com``; ca: a bundle to trust instead of the system's.

    timeout: for each step of a request; deadline: for all of sending one.
    """

    def __init__(self, url: str, *, ca: Path | None, timeout: timedelta, deadline: timedelta) -> None:
        self._base = f"{url.rstrip('/')}/api/v3/external"
        self._deadline_s = deadline.total_seconds()
        verify = ssl.create_default_context(cafile=str(ca) if ca else None)
        # No connection is kept: one that the other side just closed would leave open whether a request arrived.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(verify=verify, timeout=timeout.total_seconds(), limits=limits, trust_env=False)

    def close(self) -> None:
        """Give back connections."""
        self._http.close()

    def send(self, kind: Kind, task_number: int, token: str, body: BinaryIO) -> Sent:
        """POST a result, or PATCH the triage."""
        method, path = ("PATCH", "case") if kind is Kind.TRIAGE else ("POST", "results")
        size = body.seek(0, 2)
        body.seek(0)
        request = self._http.build_request(
            method,
            f"{self._base}/{path}/{task_number}",
            content=_pieces(body, monotonic() + self._deadline_s),
            headers={**_headers(token), "Content-Type": "application/json", "Content-Length": str(size)},
        )
        try:
            answer = self._http.send(request, stream=True)
            try:
                text = _start(answer)
            finally:
                answer.close()
        except _BEFORE_SENDING as error:
            return Sent(Reach.NOT_SENT, detail=f"Techcyte cannot be reached ({_name(error)})")
        except (httpx.HTTPError, TimeoutError) as error:
            return Sent(Reach.UNKNOWN, detail=f"no answer from Techcyte ({_name(error)})")
        return Sent(
            Reach.ANSWERED,
            answer.status_code,
            _shown(text, token) if answer.status_code < 500 else f"Techcyte answered {answer.status_code}",
            _seconds(answer.headers.get("retry-after")),
        )

    def look(self, task_number: int, token: str) -> Looked:
        """GET the evaluations of the task's case and keep the task's."""
        try:
            with self._http.stream(
                "GET", f"{self._base}/case_evaluations/{task_number}", headers=_headers(token)
            ) as answer:
                if answer.status_code != 200:
                    return Looked(None, answer.status_code, f"it answered {answer.status_code}")
                data = bytearray()
                for piece in answer.iter_bytes():
                    data += piece
                    if len(data) > _MAX_ANSWER:
                        return Looked(None, None, f"it answered more than {_MAX_ANSWER >> 20} MiB")
            found = json.loads(data)
        except httpx.HTTPError as error:
            return Looked(None, None, f"no answer ({_name(error)})")
        except (ValueError, RecursionError):
            return Looked(None, None, "its answer is no JSON")
        if not isinstance(found, list):
            return Looked(None, None, "its answer is no list of evaluations")
        return Looked(of_task(found, frozenset({str(task_number), encode_id("task", task_number)})), 200)


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "User-Agent": "mhs-ray"}


def _pieces(body: BinaryIO, deadline: float) -> Iterator[bytes]:
    while piece := body.read(_PIECE):
        if monotonic() > deadline:
            raise TimeoutError("sending took too long")
        yield piece


def _start(answer: httpx.Response) -> str:
    data = bytearray()
    try:
        for piece in answer.iter_bytes():
            data += piece
            if len(data) >= 4 * _SHOWN:
                break
    except httpx.HTTPError:  # the status line was the answer
        pass
    return data.decode("utf-8", "replace")


def _shown(text: str, token: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in redact_text(text.replace(token, "…")))
    return plain[:_SHOWN].strip()


def _seconds(value: str | None) -> float | None:
    return min(float(value), 3600.0) if value and value.isascii() and value.isdigit() and len(value) < 8 else None


def _name(error: Exception) -> str:
    words: dict[type[Exception], str] = {
        httpx.ConnectTimeout: "connecting took too long",
        httpx.ReadTimeout: "the answer took too long",
        httpx.WriteTimeout: "sending took too long",
    }
    return words.get(type(error), redact_text(str(error))[:_SHOWN] or type(error).__name__)
