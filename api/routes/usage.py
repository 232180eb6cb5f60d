"""What companies used, for bills: the same rows that the console's cluster page sums up."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Response

from api.audited import AuditedRoute
from api.deps import CoreDep, WhoDep, problems
from api.schemas.usage import DayUsageOut, UsageOut
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.models import Role
from mhs_ray.store.sql.usage import UsageBook
from mhs_ray.telemetry.usage_file import write_usage

router = APIRouter(route_class=AuditedRoute, tags=["usage"], responses=problems())
_PARQUET: Final = "application/vnd.apache.parquet"
_LONGEST: Final = timedelta(days=1100)


@router.get(
    "/v1/usage", summary="Get GPU-seconds by day, company and instance type", response_model=UsageOut,
    responses={200: {"content": {_PARQUET: {"schema": {"type": "string", "format": "binary"}}}}},
)  # fmt: skip
def get_usage(
    core: CoreDep,
    who: WhoDep,
    since: Annotated[
        date | None, Query(description="first day (UTC); 30 days before the last one unless given")
    ] = None,
    until: Annotated[date | None, Query(description="last day (UTC), included; today unless given")] = None,
    kind: Annotated[Literal["json", "parquet"], Query(alias="format")] = "json",
) -> Response:
    """An attempt counts on the day it ended; a day that is over never changes. Operators see every company."""
    last = until or datetime.now(UTC).date()
    if not date(1970, 1, 1) <= last < date.max:
        raise InvalidInputError.at("$.until", f"{last} is no day of this age")
    first = since or last - timedelta(days=30)
    if not timedelta(0) <= last - first <= _LONGEST:
        raise InvalidInputError.at("$.since", f"{first} to {last} is no period of 0 to {_LONGEST.days} days")
    company = None if who.role is Role.OPERATOR else who.company_id
    midnight = time(tzinfo=UTC)
    rows = UsageBook(core.db).by_day(
        datetime.combine(first, midnight), datetime.combine(last + timedelta(days=1), midnight), company
    )
    if kind == "parquet":
        out = io.BytesIO()
        write_usage(rows, out)
        name = f"usage-{first}-{last}.parquet"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(out.getvalue(), media_type=_PARQUET, headers=headers)
    items = [DayUsageOut.model_validate(row) for row in rows]
    found = UsageOut(since=first, until=last, items=items)
    return Response(found.model_dump_json(), media_type="application/json")
