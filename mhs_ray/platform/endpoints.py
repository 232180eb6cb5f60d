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

    def to_json(self) -> dict[str, str]:
        """Return them as JSON has them."""
        return asdict(self)

    def save(self, home: Path) -> None:
        """Write them to ``run/endpoints.json``."""
        write_private(home / "run" / "endpoints.json", json.dumps(self.to_json(), indent=1).encode())

    @staticmethod
    def are_here(home: Path) -> bool:
        """Say whether the platform was started in this home, which a cluster's node has not."""
        return (home / "run" / "endpoints.json").exists()

    @classmethod
    def load(cls, home: Path) -> Endpoints:
        """Read them. Raises ConflictError when the platform was never started there."""
        try:
            return cls(**json.loads((home / "run" / "endpoints.json").read_text()))
        except FileNotFoundError:
            raise ConflictError(f"the platform is not running in {home}; start it with `mhs up`") from None
