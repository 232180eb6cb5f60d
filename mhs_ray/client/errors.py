"""What can go wrong between a client and the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mhs_ray.domain.errors import MhsError


class ApiError(MhsError):
    """The API refused or failed; `problem` is its RFC 9457 document."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, dict(problem))
        self.status, self.problem = status, dict(problem)

    def __str__(self) -> str:
        return str(self.problem.get("detail") or self.problem.get("title") or f"HTTP {self.status}")

    @property
    def slug(self) -> str:
        """The end of the problem's type, such as ``not-found``."""
        return str(self.problem.get("type", "")).rpartition("/")[2]


class UnreachableError(MhsError):
    """Nothing answered at the API's address, or the answer broke off."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        return f"the API at {self.url} does not answer ({self.reason})"


class MissingExtraError(MhsError):
    """What was asked for needs packages that are not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, extra)
        self.package, self.extra = package, extra

    def __str__(self) -> str:
        return f"{self.package} is not installed: pip install 'mhs-ray[{self.extra}]'"
