"""Wire types of the outbox to Techcyte."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from api.schemas.base import Wire
from mhs_ray.results.outbox import DeliveryState, Kind
from mhs_ray.store.sql.deliveries import Delivery


class DeliveryOut(Wire):
    """One line of the outbox to Techcyte. detail: what happened last, or what a person is to decide."""

    id: int
    task_id: str
    scan_id: str | None
    job_id: int | None
    kind: Kind
    state: DeliveryState
    detail: str
    tries: int = Field(description="requests that were begun")
    status_code: int | None = Field(description="of Techcyte's newest answer")
    not_before: datetime = Field(description="while the platform is at it: when it looks again")
    sent_at: datetime | None
    ended_at: datetime | None
    decided_by: str
    created_at: datetime

    @classmethod
    def of(cls, d: Delivery) -> DeliveryOut:
        """Name task and scan as the contract does."""
        return cls(
            id=d.id, task_id=str(d.task_number), scan_id=None if d.scan_number is None else str(d.scan_number),
            job_id=d.job_id, kind=d.kind, state=d.state, detail=d.detail, tries=d.tries, status_code=d.status_code,
            not_before=d.not_before, sent_at=d.sent_at, ended_at=d.ended_at, decided_by=d.decided_by,
            created_at=d.created_at,
        )  # fmt: skip
