"""Logging of the platform's own processes."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from mhs_ray.domain.settings import Settings


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return one JSON object per line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure_logging(settings: Settings) -> None:
    """Send the platform's log to stderr. httpx stays quiet: its request lines hold presigned URLs."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _Json()
        if settings.log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    ours = logging.getLogger("mhs_ray")
    ours.handlers[:] = [handler]
    ours.setLevel(settings.log_level)
    ours.propagate = False
    for name in ("httpx", "httpcore", "urllib3", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)
