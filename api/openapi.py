"""The OpenAPI page: FastAPI's own, with lifelike examples, problem documents as what they are, and how to sign in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.examples import EXAMPLES
from mhs_ray.results.triage import CasePatchBody
from mhs_ray.results.wire import ResultsBody

_PREFIX: Final = "#/components/schemas/"
_PUBLIC: Final = frozenset({"/healthz", "/readyz", "/api/v3/token"})
_READ_BY_HAND: Final = (ResultsBody, CasePatchBody)
"""Bodies that routes name but read themselves, so that FastAPI does not know their schemas."""

_SECURITY: Final = {
    "basic": {"type": "http", "scheme": "basic", "description": "id and secret of a client"},
    "bearer": {"type": "http", "scheme": "bearer", "description": "a token from `POST /api/v3/token`"},
}


_PROBLEM: Final = {
    "description": "problem document (RFC 9457)",
    "content": {"application/problem+json": {"schema": {"$ref": f"{_PREFIX}Problem"}, "example": EXAMPLES["Problem"]}},
}


def install(app: FastAPI) -> None:
    """Make `app` describe itself so."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(app: FastAPI) -> dict[str, Any]:
    page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    page["components"]["securitySchemes"] = _SECURITY
    for model in _READ_BY_HAND:
        schema = model.model_json_schema(ref_template=f"{_PREFIX}{{model}}")
        page["components"]["schemas"] |= {**schema.pop("$defs", {}), model.__name__: schema}
    page["security"] = [{name: []} for name in _SECURITY]
    for path, operation in _operations(page):
        if path in _PUBLIC:
            operation["security"] = []
        if "requestBody" in operation:  # one that is no text at all, and one beyond `api.max_body`
            for status in ("400", "413"):
                operation["responses"].setdefault(status, _PROBLEM)
        for content in _contents(operation.get("requestBody", {})):
            _add_example(content)
        for status, response in operation["responses"].items():
            if status >= "400" and f"{_PREFIX}Problem" in str(response):
                response["content"] = {
                    "application/problem+json": {
                        "schema": {"$ref": f"{_PREFIX}Problem"},
                        "example": EXAMPLES["Problem"],
                    }
                }
            for content in _contents(response):
                _add_example(content)
    return page


def _operations(page: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in page["paths"].items():
        for operation in item.values():
            yield path, operation


def _contents(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for media, content in part.get("content", {}).items():
        if media == "application/json":
            yield content


def _add_example(content: dict[str, Any]) -> None:
    found = _example(content.get("schema", {}))
    if found is not None:
        content.setdefault("example", found)


def _example(schema: dict[str, Any]) -> Any:
    if schema.get("type") == "array":
        item = _example(schema.get("items", {}))
        return None if item is None else [item]
    name = str(schema.get("$ref", "")).removeprefix(_PREFIX)
    if name.startswith("PageOut_"):
        item = EXAMPLES.get(name.removeprefix("PageOut_").rstrip("_"))
        return None if item is None else {"items": [item], "next_cursor": "djE6NDI"}
    return EXAMPLES.get(name)
