"""A route that reads its own body: for the one request that comes thousands of times."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from api.deps import writer


class DirectRoute(APIRoute):
    """For an endpoint ``async (request, who: WriterDep, body: Model) -> Response``: called as declared, and no more.

    FastAPI solves dependencies and fields anew for each request, which takes longer than our share of a commit does.
    What is declared is what OpenAPI tells; what is wrong with a body is answered in the same words.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler."""
        assert self.body_field is not None
        endpoint, model = self.endpoint, self.body_field.field_info.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)

        async def handle(request: Request) -> Response:
            who = await writer(request)
            response: Response = await endpoint(request, who, _model(model, request, await request.body()))
            return response

        return handle


def _model(model: type[BaseModel], request: Request, body: bytes) -> BaseModel:
    if not body:
        raise _fault("missing", "Field required")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise _fault("content_type", "the body must be sent as Content-Type: application/json")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(
            [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors(include_url=False)]
        ) from None


def _fault(kind: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": ("body",), "msg": message, "input": None}])
