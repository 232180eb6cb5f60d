"""Wire types of usage."""

from __future__ import annotations

from datetime import date

from pydantic import Field

from api.schemas.base import Wire


class DayUsageOut(Wire):
    """What a company used of an instance type in attempts that ended on a day (UTC)."""

    day: date
    company_id: int
    company: str
    instance_type: str
    attempts: int
    jobs: int = Field(description="that ended for good")
    failed: int
    gpu_s: float = Field(description="seconds that containers held a GPU")
    platform_gpu_s: float = Field(description="the part of gpu_s that failures of the platform wasted")


class UsageOut(Wire):
    """Usage from one day to another, both included."""

    since: date
    until: date
    items: list[DayUsageOut]
