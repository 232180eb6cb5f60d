"""Wire types of whether the platform works."""

from __future__ import annotations

from api.schemas.base import Wire


class AliveOut(Wire):
    """The replica answers."""

    status: str = "ok"


class HealthOut(Wire):
    """Whether the platform can do its work; `parts` says which one cannot."""

    ready: bool
    parts: dict[str, str]
