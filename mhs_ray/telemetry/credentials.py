"""When certificates that the platform depends on end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from mhs_ray.domain.settings import Settings

log = logging.getLogger(__name__)


def expiries(settings: Settings) -> Iterator[tuple[str, float]]:
    """Yield (name, Unix time) of what this process can read; of a bundle its first certificate to end."""
    files = {"registry-token": settings.home / "keys" / "registry" / "token.crt", "techcyte-ca": settings.techcyte.ca}
    for name, file in files.items():
        if file is None:
            continue
        end = _first_end(file)
        if end is not None:
            yield name, end


def _first_end(file: Path) -> float | None:
    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError) as error:
        log.warning("when %s ends cannot be read: %s", file, type(error).__name__)
        return None
    return min(c.not_valid_after_utc.timestamp() for c in found)
