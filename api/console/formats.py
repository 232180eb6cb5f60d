"""How values look on a page: times in the reader's zone, sizes, durations, states."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from markupsafe import Markup, escape

from mhs_ray.domain.cohorts import CohortState, SlideState
from mhs_ray.domain.models import ImageStatus, ScanStatus
from mhs_ray.domain.states import JobState

TONES: Final[Mapping[str, str]] = {
    **{s.value: "run" for s in JobState if s.is_active},
    JobState.QUEUED: "wait", JobState.SUCCEEDED: "good", JobState.FAILED: "bad", JobState.TIMED_OUT: "bad",
    JobState.CANCELLED: "off",
    ImageStatus.CREATED: "wait", ImageStatus.CHECKING: "run", ImageStatus.UPLOADED: "good",
    ScanStatus.UPLOADING: "run", ScanStatus.READY: "good",
    CohortState.DRAFT: "wait", CohortState.CANARY: "run", CohortState.STOPPED: "bad", CohortState.DONE: "good",
    SlideState.PENDING: "wait", SlideState.UNDER_WAY: "run", SlideState.DUPLICATE: "good", SlideState.LEFT_OUT: "off",
}  # fmt: skip
"""State or status → the colour of its badge."""


def zone(name: str) -> tzinfo:
    """Return the time zone that the browser named in a cookie, UTC for one that is none."""
    try:
        return ZoneInfo(name) if name and len(name) < 64 and not name.startswith(("/", ".")) else UTC
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def time_filter(tz: tzinfo) -> Callable[..., Markup]:
    """Return a filter that writes ``<time>`` elements in `tz`."""

    def when(value: datetime | None, empty: str = "–", seconds: bool = False) -> Markup:
        if value is None:
            return Markup("<span class='quiet'>{}</span>").format(empty)
        local = value.astimezone(tz)
        text = f"{local.day} {local:%b %Y, %H:%M:%S}" if seconds else f"{local.day} {local:%b %Y, %H:%M}"
        full = f"{local:%Y-%m-%d %H:%M:%S} {local.tzname()}"
        return Markup('<time datetime="{}" title="{}">{}</time>').format(
            value.astimezone(UTC).isoformat(timespec="seconds"), full, text
        )

    return when


def ago(value: datetime | None) -> str:
    """Return how long ago, in words."""
    if value is None:
        return "–"
    seconds = (datetime.now(UTC) - value).total_seconds()
    if seconds < 60:
        return "just now"
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"


def duration(seconds: float | None) -> str:
    """Return ``850 ms``, ``12.4 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    if seconds is None:
        return "–"
    if seconds < 0.9995:
        return f"{max(0, round(seconds * 1000))} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    whole = round(seconds / 60)
    return f"{whole // 60} h {whole % 60:02d} min"


def size(value: float | None) -> str:
    """Return bytes as people read them, in powers of 1024."""
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return "–"


def number(value: Any) -> str:
    """Return a number with thin groups of thousands; at most four significant digits behind the point."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "–"
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.1f}".replace(",", "\u202f")


def badge(value: str) -> Markup:
    """Return a state as a coloured label; its text says it, the colour only helps."""
    return Markup('<span class="badge {}">{}</span>').format(TONES.get(value, "bad"), value)


def short_digest(value: str) -> Markup:
    """Return the start of a digest; the whole of it is the title."""
    text = value.removeprefix("sha256:")[:12]
    return Markup('<code title="{}">{}</code>').format(escape(value), text)
