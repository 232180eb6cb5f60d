"""Notice that this machine is about to be taken away, as a cloud gives it to spot instances."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol

import httpx

log = logging.getLogger(__name__)

AWS_METADATA: Final = "http://169.254.169.254"
_TOKEN_S: Final = 21600
_EVERY_S: Final = 5.0  # as AWS advises; a notice comes two minutes ahead


class Notices(Protocol):
    """Where a cloud says that a machine goes."""

    def goes_at(self) -> datetime | None:
        """Return when this machine is taken away, None while nothing is planned. Raises httpx.HTTPError."""


class AwsNotices:
    """The spot notice of EC2's instance metadata, version 2."""

    def __init__(self, url: str = AWS_METADATA, timeout_s: float = 2.0) -> None:
        self._client = httpx.Client(base_url=url, timeout=timeout_s, trust_env=False)
        self._token = ""

    def goes_at(self) -> datetime | None:
        """Return the time of a planned ``terminate`` or ``stop``."""
        answer = self._ask()
        if answer.status_code == 401:  # the token's life is over
            self._token = ""
            answer = self._ask()
        if answer.status_code == 404:
            return None
        told = answer.raise_for_status().json()
        return datetime.fromisoformat(told["time"]) if told.get("action") in {"terminate", "stop"} else None

    def _ask(self) -> httpx.Response:
        if not self._token:
            asked = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
            self._token = self._client.put("/latest/api/token", headers=asked).raise_for_status().text
        return self._client.get(
            "/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": self._token}
        )


def watch(
    notices: Notices, drain: Callable[[datetime], None], ended: threading.Event, every_s: float = _EVERY_S
) -> None:
    """Ask until there is a notice and `drain` took it, or until told to end. What fails is tried again."""
    told = ""
    while not ended.is_set():
        try:
            when = notices.goes_at()
            if when is not None:
                log.warning("this machine is taken away at %s: its Ray node is drained", when.isoformat())
                drain(when)
                return
            told = ""
        except Exception as error:  # a watcher that ends would lose the notice
            if type(error).__name__ != told:
                told = type(error).__name__
                log.warning("notices cannot be looked for (%s); it is tried again", told)
        ended.wait(every_s)
