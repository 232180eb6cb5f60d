"""Webhook calls that a company's secret vouches for: signed (HMAC-SHA256), or with the secret as a bearer token.

``X-MHS-Signature: t=1767225600,v1=hex``, where hex is HMAC-SHA256(secret, "t.body"). A signature is good for five
minutes and once; a sender that tries again signs again, and the same ``task_id`` adds nothing. Secrets rotate: the
newest and the one before it count.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from mhs_ray.auth.clients import enabled
from mhs_ray.domain.errors import ForbiddenError, UnauthenticatedError
from mhs_ray.domain.models import Company, Principal, Role
from mhs_ray.store.sql.companies import Companies

HEADER: Final = "x-mhs-signature"
PREFIX: Final = "whsec_"
TOLERANCE: Final = timedelta(minutes=5)
_FORMAT: Final = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-fA-F]{64})")
_WRONG: Final = (
    'the webhook\'s signature is not good: it is `t=SECONDS,v1=HMAC-SHA256(secret, "SECONDS.BODY") in hex`, made with '
    "the secret of the company that the body's company_id names"
)


def sign(secret: str, body: bytes, at: int | None = None) -> str:
    """Return the header's value for a body that is sent now."""
    at = int(time.time()) if at is None else at
    return f"t={at},v1={_hex(secret, str(at), body)}"


def verify_signature(companies: Companies, header: str, posted: dict[str, Any], body: bytes) -> Principal:
    """Return who signed this call. Raises UnauthenticatedError for a signature that is wrong, old, or used before."""
    read = _FORMAT.fullmatch(header.strip())
    named = str(posted.get("company_id", ""))
    company = companies.by_external_id(named) if named.isprintable() else None
    secrets = companies.webhook_secrets(company.id) if company else []
    if read is None:
        raise UnauthenticatedError(_WRONG)
    at, given = read[1], read[2].lower()
    # With no secret to compare with, one comparison is made all the same.
    good = [hmac.compare_digest(_hex(s, at, body), given) for s in secrets or ["-"]]
    if company is None or not secrets or not any(good):
        raise UnauthenticatedError(_WRONG)
    now = datetime.now(UTC)
    if abs(now.timestamp() - int(at)) > TOLERANCE.total_seconds():
        raise UnauthenticatedError("the webhook's signature is older or newer than five minutes; check the clock")
    # Its time stamp may lie ahead of our clock by the tolerance, and is good for as long again.
    if not companies.take_call(given, now, now - 2 * TOLERANCE):
        raise UnauthenticatedError("this very call was taken before; to send it again, sign it again")
    return _sender(company)


def verify_bearer(companies: Companies, token: str, posted: dict[str, Any]) -> Principal:
    """Return who holds a webhook's secret. Raises UnauthenticatedError; ForbiddenError for another company's call."""
    number = token.removeprefix(PREFIX).partition("_")[0]
    company_id = int(number) if number.isascii() and number.isdigit() and len(number) < 16 else 0
    secrets = companies.webhook_secrets(company_id)
    good = [hmac.compare_digest(s.encode(), token.encode()) for s in secrets or ["-"]]
    if not secrets or not any(good):
        raise UnauthenticatedError("the webhook's secret is wrong or has been replaced; ask your lab's admin")
    company = companies.get(company_id)
    named = posted.get("company_id")
    if named not in (None, "") and company.external_id is not None and str(named) != company.external_id:
        raise ForbiddenError("this secret is not the one of the company that company_id names")
    return _sender(company)


def _sender(company: Company) -> Principal:
    return enabled(Principal(company.id, "webhook", Role.LAB_USER, f"webhook-{company.id}", company.mhs_enabled))


def _hex(secret: str, at: str, body: bytes) -> str:
    return hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
