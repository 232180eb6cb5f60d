"""Keep signatures out of every message, log line and label."""

from __future__ import annotations

import logging
import re
from typing import Final
from urllib.parse import urlsplit

_URL: Final = re.compile(r"\b(?:https?|ftp|s3)://[^\s\"'<>]+", re.IGNORECASE)
_MAX: Final = 300


def redact_url(url: str) -> str:
    """Return scheme, host, port and path of `url`; its user, query and fragment become ``…`` or go.

    A presigned URL's query is its credential. The rest is cut at 300 characters and made printable.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "(a malformed URL)"
    shown_host = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme}://{shown_host}{f':{port}' if port else ''}{parts.path}"
    shown = "".join(c if c.isprintable() else "?" for c in shown)
    if len(shown) > _MAX:
        shown = shown[:_MAX] + "…"
    return shown + ("?…" if parts.query else "")


def redact_text(text: str) -> str:
    """Return `text` with every URL in it redacted."""
    return _URL.sub(lambda match: redact_url(match.group()), text)


class RedactUrls(logging.Filter):
    """A log filter that redacts every URL of a record, for loggers of libraries that know no better."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record's message; never drops a record."""
        record.msg, record.args = redact_text(record.getMessage()), ()
        return True
