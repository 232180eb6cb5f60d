"""The outbox to Techcyte: what was delivered, what is under way, and what waits for a person's word."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.audited import AuditedRoute
from api.deps import CoreDep, CursorQuery, IdPath, LimitQuery, WhoDep, WriterDep, page_out, problems
from api.schemas.base import PageOut
from api.schemas.deliveries import DeliveryOut
from mhs_ray.domain.ids import parse_id
from mhs_ray.results.outbox import DeliveryState

router = APIRouter(prefix="/v1/deliveries", tags=["deliveries"], route_class=AuditedRoute, responses=problems())


@router.get("", summary="List deliveries to Techcyte")
def list_deliveries(
    core: CoreDep,
    who: WhoDep,
    cursor: CursorQuery = None,
    limit: LimitQuery = 50,
    state: Annotated[list[DeliveryState] | None, Query()] = None,
    task_id: Annotated[str | None, Query(max_length=60)] = None,
) -> PageOut[DeliveryOut]:
    """Newest first. `parked` and `refused` wait for a person."""
    number = parse_id(task_id, "task", "$.task_id") if task_id else None
    page = core.deliveries.deliveries.page(
        who.company_id, cursor=cursor, limit=limit, states=tuple(state or ()), task_number=number
    )
    return PageOut[DeliveryOut].model_validate(page_out(page.map(DeliveryOut.of)))


@router.get("/{delivery_id}", summary="Show a delivery", responses=problems(404))
def get_delivery(core: CoreDep, who: WhoDep, delivery_id: IdPath) -> DeliveryOut:
    """Its state and what happened last."""
    return DeliveryOut.of(core.deliveries.deliveries.get(who.company_id, delivery_id))


@router.post("/{delivery_id}/retry", summary="Send a delivery", responses=problems(404, 409))
def retry_delivery(core: CoreDep, who: WriterDep, delivery_id: IdPath) -> DeliveryOut:
    """One that is parked, refused or discarded. Look at the case in Techcyte first: it keeps all it is sent."""
    return DeliveryOut.of(core.deliveries.retry(who, delivery_id))


@router.post("/{delivery_id}/discard", summary="Give a delivery up", responses=problems(404, 409))
def discard_delivery(core: CoreDep, who: WriterDep, delivery_id: IdPath) -> DeliveryOut:
    """One that is parked or refused. It can still be sent later."""
    return DeliveryOut.of(core.deliveries.discard(who, delivery_id))
