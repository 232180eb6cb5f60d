"""Where the running platform's parts are, written by ``mhs up`` and read by everything else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mhs_ray.domain.errors import ConflictError
from mhs_ray.platform.keys import write_private


@dataclass(frozen=True, slots=True)
class Endpoints:
    """URLs have no trailing slash; registry is host:port."""

    api_url: str
    blobs_url: str
    registry: str
    ray_address: str
    dashboard_url: str

    def save(self, home: Path) -> None:
        """Write them to ``run/endpoints.json``."""
        write_private(home / "run" / "endpoints.json", json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, home: Path) -> Endpoints:
        """Read them. Raises ConflictError when the platform was never started there."""
        try:
            return cls(**json.loads((home / "run" / "endpoints.json").read_text()))
        except FileNotFoundError:
            raise ConflictError(f"the platform is not running in {home}; start it with `mhs up`") from None
