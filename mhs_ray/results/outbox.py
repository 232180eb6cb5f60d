"""What may be sent to Techcyte, and when again. Pure: no clock, no network, no database.

Techcyte *appends*: a result posted twice makes two evaluations. So a result is sent again only when nothing of the
request before can have arrived, or when Techcyte was asked and has nothing of it. Where neither can be known, a
person decides.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final


class DeliveryState(StrEnum):
    """Where a delivery is. The last three wait for nobody, but a person may still retry or discard."""

    PENDING = "pending"  # to be sent
    SENDING = "sending"  # a request may be under way
    UNKNOWN = "unknown"  # a request went out and nobody knows whether it was stored
    DELIVERED = "delivered"
    PARKED = "parked"  # only a person can say what is right
    REFUSED = "refused"  # Techcyte answered no
    DISCARDED = "discarded"  # a person said so

    @property
    def is_open(self) -> bool:
        """True while the platform will do something about it by itself."""
        return self in OPEN


OPEN: Final = frozenset({DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.UNKNOWN})
FOR_PEOPLE: Final = frozenset({DeliveryState.PARKED, DeliveryState.REFUSED})


class Kind(StrEnum):
    """What is delivered. Setting the triage twice changes nothing; the other two append."""

    RESULT = "result"  # one scan's, with the case results that came along
    CASE = "case-results"  # case results that came without any scan
    TRIAGE = "triage"


class Reach(StrEnum):
    """How far a request got."""

    NOT_SENT = "not sent"  # no connection was made: nothing can have arrived
    ANSWERED = "answered"
    UNKNOWN = "unknown"  # it was sent, at least in part, and no answer came


@dataclass(frozen=True, slots=True)
class Sent:
    """How a request went. status: of the answer. detail: one sentence for people, without secrets."""

    reach: Reach
    status: int | None = None
    detail: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The delivery's next state; retry_in_s: when it is looked at again, None where it is not."""

    state: DeliveryState
    detail: str
    retry_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast things are tried again. settle: a request without an answer may still be stored for so long."""

    backoff: timedelta = timedelta(seconds=2)
    backoff_max: timedelta = timedelta(minutes=5)
    settle: timedelta = timedelta(seconds=60)

    def delay(self, tries: int, seed: int) -> float:
        """Return the pause after the `tries`-th try: doubling, ±25 %."""
        base = self.backoff.total_seconds() * 2.0 ** min(max(tries - 1, 0), 30)
        jitter: float = random.Random(seed * 1000 + tries).uniform(0.75, 1.25)
        return float(min(base, self.backoff_max.total_seconds()) * jitter)


_COME_BACK: Final = frozenset({408, 425, 429})  # Techcyte did not take the request at all


def after_sending(kind: Kind, sent: Sent, tries: int, pace: Pace, seed: int) -> Decision:
    """Say what follows a request. tries: requests so far, this one included."""
    pause = max(pace.delay(tries, seed), sent.retry_after_s or 0)
    if sent.reach is Reach.NOT_SENT:
        return Decision(DeliveryState.PENDING, f"{sent.detail}; it is sent again", pause)
    if sent.reach is Reach.ANSWERED and sent.status is not None:
        if 200 <= sent.status < 300:
            return Decision(DeliveryState.DELIVERED, "")
        if sent.status in _COME_BACK:
            return Decision(DeliveryState.PENDING, f"Techcyte answered {sent.status}; it is sent again", pause)
        if sent.status < 500:
            return Decision(DeliveryState.REFUSED, f"Techcyte answered {sent.status}: {sent.detail}".rstrip(": "))
    if kind is Kind.TRIAGE:  # setting it once more does no harm
        return Decision(DeliveryState.PENDING, f"{sent.detail}; it is sent again", pause)
    return Decision(
        DeliveryState.UNKNOWN, f"{sent.detail}; Techcyte is asked whether it was stored", pace.delay(1, seed)
    )


@dataclass(frozen=True, slots=True)
class Looked:
    """What asking for the task's evaluations said. evaluations: None when there was no answer to read."""

    evaluations: tuple[Mapping[str, Any], ...] | None
    status: int | None = None
    detail: str = ""


def after_looking(
    looked: Looked,
    wanted: Mapping[str, Any],
    *,
    known: int,
    doubtful: int,
    since_sent: timedelta,
    looks: int,
    pace: Pace,
    seed: int,
) -> Decision:
    """Say what follows from the evaluations that Techcyte has for the task.

    wanted: `details_of` what was sent. known, doubtful: other results of the task with these very details that
    are there, or may be. since_sent: since the request without an answer. looks: times asked so far, this one included.
    """
    if looked.evaluations is None:
        if looked.status is not None and 400 <= looked.status < 500 and looked.status not in _COME_BACK:
            return Decision(
                DeliveryState.PARKED,
                f"nobody knows whether Techcyte stored this, and it does not say ({looked.status}): "
                "look at the case there, then retry or discard",
            )
        return Decision(DeliveryState.UNKNOWN, f"Techcyte was asked: {looked.detail}", pace.delay(looks, seed))
    found = sum(1 for e in looked.evaluations if same_json(_details(e), wanted))
    if found > known + doubtful:
        return Decision(DeliveryState.DELIVERED, "no answer came, but Techcyte has it")
    if found != known:
        return Decision(
            DeliveryState.PARKED,
            f"Techcyte has {found} evaluations like this one where {known} were expected without it, so it cannot be "
            "told whether this one was stored: look at the case there, then retry or discard",
        )
    if not any(wanted.values()):
        return Decision(
            DeliveryState.PARKED,
            "nobody knows whether Techcyte stored this, and it has nothing by which it could be recognised there: "
            "look at the case there, then retry or discard",
        )
    if since_sent < pace.settle:
        rest = (pace.settle - since_sent).total_seconds()
        return Decision(
            DeliveryState.UNKNOWN,
            "Techcyte does not have it yet; it is asked again",
            min(rest, pace.delay(looks, seed)),
        )
    return Decision(DeliveryState.PENDING, "Techcyte does not have it; it is sent again", 0.0)


def details_of(
    report: Mapping[str, Any] | None, external_url: str | None, case_results: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what an evaluation's ``details`` says of a result (techcyte-contract §3); what is left out is empty."""
    return {"report": dict(report or {}), "external_url": external_url or "", "caseReport": dict(case_results or {})}


def _details(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    details = evaluation.get("details")
    details = details if isinstance(details, Mapping) else {}
    return {
        "report": details.get("report") or {},
        "external_url": details.get("external_url") or "",
        "caseReport": details.get("caseReport") or {},
    }


def of_task(evaluations: Iterable[object], task_ids: frozenset[str]) -> tuple[Mapping[str, Any], ...]:
    """Return the evaluations of one task of a case. task_ids: the names that the task can go by."""
    return tuple(e for e in evaluations if isinstance(e, Mapping) and str(e.get("task_id")) in task_ids)


def same_json(a: object, b: object) -> bool:
    """Compare JSON values as another program may have kept them: 1 and 1.0 are one number, keys have no order."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return float(a) == float(b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_json(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same_json(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def token_ends(token: str) -> datetime | None:
    """Return when a JWT ends (``exp``), None when it does not say. Its signature is not ours to check."""
    import jwt  # the one library that reads them; nothing is verified here

    try:
        exp = jwt.decode(token, options={"verify_signature": False, "verify_exp": False}).get("exp")
        return None if exp is None else datetime.fromtimestamp(int(exp)).astimezone()
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, OSError):
        return None
