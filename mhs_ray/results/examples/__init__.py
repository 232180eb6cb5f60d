"""Lifelike bodies, one per report type and for plain annotations: for tests, docs and the OpenAPI page."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

SCAN_NUMBER = 8946136
"""The scan that every example is posted for."""


def examples() -> dict[str, dict[str, Any]]:
    """Return the bodies by name: a report type, ``geojson`` or ``qc_fail``."""
    found = {f.name: f for f in files(__name__).iterdir() if f.name.endswith(".json")}
    return {name.removesuffix(".json"): json.loads(found[name].read_text("utf-8")) for name in sorted(found)}
