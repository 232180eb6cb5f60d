"""What the registry tells us of pushes: hints only, since they can be lost, come twice or be late."""

from __future__ import annotations

import hmac
import re
from typing import Any, Final

_QUARANTINE: Final = re.compile(r"quarantine/([1-9][0-9]{0,17})")


def authentic(header: str | None, secret: str) -> bool:
    """Say whether an ``Authorization`` header holds the registry's own secret; takes as long whatever it holds."""
    return hmac.compare_digest((header or "").encode(), f"Bearer {secret}".encode())


def pushed_images(envelope: Any) -> set[int]:
    """Return the ids of image definitions to which a manifest was pushed; whatever is unknown or odd is passed over."""
    events = envelope.get("events") if isinstance(envelope, dict) else None
    found = set()
    for event in events if isinstance(events, list) else ():
        target = event.get("target") if isinstance(event, dict) else None
        repository = target.get("repository") if isinstance(target, dict) else None
        match = _QUARANTINE.fullmatch(repository) if isinstance(repository, str) else None
        if match and event.get("action") == "push":
            found.add(int(match[1]))
    return found
