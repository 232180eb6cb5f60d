"""Where the running platform's parts are, written by ``mhs up`` and read by everything else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mhs_ray.domain.errors import ConflictError, InvalidInputError
from mhs_ray.domain.settings import Settings
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

    @classmethod
    def of(cls, settings: Settings) -> Endpoints:
        """Return those of this machine's platform, or on a node of a cluster those that the settings name."""
        if settings.api.internal_url is None:
            if settings.cluster.placement == "label" and not (settings.home / "run" / "endpoints.json").exists():
                raise InvalidInputError.at(
                    "MHS_API__INTERNAL_URL", "is needed on every node of a cluster: http://HEAD:PORT of the API"
                )
            return cls.load(settings.home)
        return cls(
            api_url=settings.api.internal_url,
            blobs_url=settings.blobs.endpoint_url or "",
            registry=settings.registry.address or "",
            ray_address="auto",
            dashboard_url=f"http://127.0.0.1:{settings.cluster.dashboard_port}",
        )
