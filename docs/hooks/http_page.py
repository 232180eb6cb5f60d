"""The page of the HTTP API, from the OpenAPI document that the API itself serves at ``/openapi.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from api.app import build_app
from docs.hooks.source import table

_METHODS = ("get", "post", "put", "patch", "delete")


def page() -> str:
    """Return the page."""
    return render(build_app().openapi())


def render(document: dict[str, Any]) -> str:
    """Return an OpenAPI 3.1 document as one page: routes by tag, then schemas."""
    by_tag: dict[str, list[str]] = {}
    for path, method, operation in operations(document):
        by_tag.setdefault((operation.get("tags") or ["other"])[0], []).append(_operation(path, method, operation))
    routes = "\n\n".join(f"## {tag}\n\n" + "\n\n".join(parts) for tag, parts in by_tag.items())
    schemas = "\n\n".join(_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items()))
    security = [
        (name, f"{scheme['scheme']}: {scheme['description']}")
        for name, scheme in document["components"]["securitySchemes"].items()
    ]
    return f"""# HTTP API

{document["info"]["description"].strip()}

The platform serves the same at `/docs`, to be tried there, and as `/openapi.json`. Lists come in pages: give
`next_cursor` back as `cursor`. Times are RFC 3339 in UTC, sizes bytes.

{table(("sign in", "how"), security)}

{routes}

## Schemas

{schemas}
"""


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (path, method, operation) in the document's order."""
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, item[method]


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"### {method.upper()} {path}".replace("{", "&#123;").replace("}", "&#125;")]
    parts.append(f"{operation.get('summary', '')}. {_text(operation.get('description', ''))}".strip())
    if operation.get("security") == []:
        parts.append("No sign-in needed.")
    rows = [
        (f"`{p['name']}`", p["in"], _kind(p["schema"]), _needed(p.get("required", False)), _text(_about(p)))
        for p in operation.get("parameters", ())
    ]
    if rows:
        parts.append(table(("parameter", "in", "type", "needed", "meaning"), rows))
    body = operation.get("requestBody", {}).get("content", {})
    for media, content in body.items():
        parts.append(f"**Body** `{media}`: {_kind(content.get('schema', {}))}")
        parts += _example(content)
    answers = []
    for status, answer in operation["responses"].items():
        for media, content in answer.get("content", {"": {}}).items():
            kind = _kind(content.get("schema", {})) if content.get("schema") else ""
            answers.append(
                (status, f"`{media}`" if media else "", kind, _text(answer.get("description", "")) or _phrase(status))
            )
    parts.append("**Answers**\n\n" + table(("status", "media type", "body", "meaning"), answers))
    for status, answer in operation["responses"].items():
        if status < "300":
            for content in answer.get("content", {}).values():
                parts += _example(content)
    return "\n\n".join(parts)


def _phrase(status: str) -> str:
    return HTTPStatus(int(status)).phrase if status.isdigit() else ""


def _example(content: dict[str, Any]) -> list[str]:
    if "example" not in content:
        return []
    example = content["example"]
    if isinstance(example, str):
        return [f"```text\n{example.rstrip()}\n```"]
    return [f"```json\n{json.dumps(example, indent=2, ensure_ascii=False)}\n```"]


def _schema(name: str, schema: dict[str, Any]) -> str:
    parts = [f"### {name} {{ #schema-{name.lower()} }}", _text(schema.get("description", ""))]
    if "enum" in schema:
        parts.append("One of " + ", ".join(f"`{v}`" for v in schema["enum"]) + ".")
    needed = set(schema.get("required", ()))
    rows = [
        (f"`{field}`", _kind(of), _needed(field in needed), _text(_about(of)))
        for field, of in schema.get("properties", {}).items()
    ]
    if rows:
        parts.append(table(("field", "type", "needed", "meaning"), rows))
    return "\n\n".join(p for p in parts if p)


def _kind(schema: dict[str, Any]) -> str:
    """Return a schema in few words, with links to those that have a name."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#schema-{name.lower()})"
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return " or ".join(_kind(s) for s in schema[word])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{v}`" for v in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    kind = schema.get("format") or schema.get("type") or "any"
    limits = [f"{sign} {schema[word]}" for word, sign in (("minimum", "≥"), ("maximum", "≤")) if word in schema]
    return f"{kind} {', '.join(limits)}".strip()


def _about(of: dict[str, Any]) -> str:
    text = str(of.get("description") or of.get("schema", {}).get("description") or "")
    default = of.get("default", of.get("schema", {}).get("default"))
    return f"{text} (default `{json.dumps(default)}`)".strip() if default is not None else text


def _needed(is_needed: bool) -> str:
    return "yes" if is_needed else ""


def _text(text: str) -> str:
    # Of a docstring the first line stands alone; nothing in it is markup but code.
    return re.sub(r"\s*\n\s*", " ", text.strip()).replace("<", "&lt;")
