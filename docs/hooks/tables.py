"""Reference pages that are one table of the code each: settings, problems, failures, instance types."""

from __future__ import annotations

import inspect
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ByteSize, SecretStr, TypeAdapter

from api.errors import KINDS, TABLE
from docs.hooks.source import remarks, table
from mhs_ray.domain import settings as s
from mhs_ray.domain.failures import _FINAL_PLATFORM, Failure, FailureClass, FailureCode
from mhs_ray.domain.instances import INSTANCE_TYPES

# ---------------------------------------------------------------- settings

_CLIENT: Final = {
    "MHS_URL": "address of the platform that `mhs` and `Client()` talk to, when it is not this machine's",
    "MHS_CLIENT_ID": "id of a client there",
    "MHS_CLIENT_SECRET": "its secret",
}


def settings() -> str:
    """Return the page of settings."""
    sections: list[tuple[str, type[BaseModel], str]] = [("Platform", s.Settings, "MHS_")]
    for name, field in s.Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            title = {"api": "API"}.get(name, name.capitalize())
            sections.append((title, kind, f"MHS_{name.upper()}__"))
    body = "\n\n".join(_section(*each) for each in sections)
    rows = [(f"`{name}`", _CLIENT.get(name, "")) for name in sorted(s.CLIENT_VARIABLES)]
    return f"""# Settings

Environment variables; two underscores enter a section: `MHS_API__PORT=9000`. A misspelt name, or a value that does not
fit, is an error at the start that names every bad variable. Sizes are `8GiB`, times `PT90S` or `PT1H30M` (ISO 8601),
lists JSON (`["a", "b"]`). What they are on a machine: `mhs doctor --settings`.

{body}

## Command line and Python client

{table(("variable", "meaning"), rows)}
"""


_PLAIN: Final = {
    "home": "where everything is kept",
    "engine": "`auto`: podman where it works, else Docker",
    "docker_host": "Docker's address, `unix://…`; `DOCKER_HOST` counts too",
    "database_url": "PostgreSQL instead of SQLite",
}


def _section(title: str, kind: type[BaseModel], prefix: str) -> str:
    about, said = _described(kind)
    rows = []
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        notes = (said.get(name), remarks(kind).get(name), _PLAIN.get(name) if kind is s.Settings else None)
        note = "; ".join(n for n in notes if n)
        rows.append((f"`{prefix}{name.upper()}`", _type(field.annotation), _default(field), note))
    return f"## {title}\n\n{about}\n\n" + table(("variable", "type", "default", "note"), rows)


def _described(kind: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """Return what a section's docstring says of all of it, and of each field (``name, name: text``)."""
    text = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    names = "|".join(kind.model_fields)
    parts = re.split(rf"(?:^|(?<=[.;]) )((?:{names})(?:, (?:{names}))*): ", text)
    said = {}
    for who, what in zip(parts[1::2], parts[2::2], strict=True):
        for name in who.split(", "):
            said[name] = what.strip().rstrip(".;")
    return parts[0].strip(), said


def _type(kind: Any) -> str:
    names = {"ByteSize": "size", "timedelta": "time", "SecretStr": "secret text", "NoneType": "nothing", "str": "text",
             "Path": "path", "int": "whole number", "float": "number", "bool": "true or false"}  # fmt: skip
    told = getattr(kind, "__name__", "")
    if told in names:
        return names[told]
    text = str(kind)
    if text.startswith("typing.Literal"):
        return " or ".join(f"`{v}`" for v in kind.__args__)
    if text.startswith("tuple"):
        return "list"
    parts = [_type(part) for part in getattr(kind, "__args__", ()) if part is not type(None)]
    return " or ".join(parts) or told or text


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return "`/var/lib/mhs` for root, else `~/.mhs`" if field.annotation is Path else "made at the start"
    value = field.default
    if value is None or isinstance(value, SecretStr):
        return "not set"
    if isinstance(value, ByteSize):
        return f"`{value.human_readable().replace('.0', '')}`"
    if isinstance(value, timedelta):
        return f"`{TypeAdapter(timedelta).dump_python(value, mode='json')}`"
    if isinstance(value, tuple):
        return "`[]`" if not value else f"`{list(value)}`"
    if isinstance(value, dict):
        return f"`{json.dumps(value)}`"
    if value == "":
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


# ---------------------------------------------------------------- problems


def problems() -> str:
    """Return the page of problem documents."""
    causes: dict[str, list[str]] = {}
    for error, kind in TABLE.items():
        causes.setdefault(kind.slug, []).append(inspect.cleandoc(error.__doc__ or "").split("\n")[0])
    rows = [
        (f"`/problems/{k.slug}`", k.status, k.title, " ".join(dict.fromkeys(causes.get(k.slug, ()))))
        for k in sorted(KINDS, key=lambda k: (k.status, k.slug))
    ]
    return f"""# Problems

Every refusal of the HTTP API is a problem document (RFC 9457, `application/problem+json`): `type`, `title`, `status`,
`detail`, and `errors`, a list of `{{path, message}}` where parts of the request are at fault. Programs tell problems
apart by `type`, which stays; in Python it is `ApiError.slug`. With `--json` the command line prints the same documents.

{table(("type", "status", "title", "when"), rows)}

503 and 507 carry `Retry-After`: nothing was stored, and the same request may be sent again then.
"""


# ---------------------------------------------------------------- failures

MEANINGS: Final = {
    "node-lost": "the node, or Ray on it, went away while the attempt was there",
    "pull-failed": "the image could not be fetched from the registry",
    "fetch-failed": "the slide's host failed in a way that may pass",
    "engine-failed": "podman or Docker failed",
    "sandbox-failed": "isolation could not be set up on the node, or did not hold",
    "no-such-instance-type": "no node of the cluster has, or can get, the container's instance type",
    "internal": "a fault of the platform; its log has the cause",
    "exit-code": "the container ended with an exit code other than 0",
    "out-of-memory": "the container needed more memory than its instance type has",
    "no-results": "the container ended with exit code 0 and had posted nothing for its scan",
    "invalid-results": "what the container posted was refused, and nothing valid followed",
    "time-limit": "the container still ran at its time limit and was stopped; the job is then `timed out`",
    "not-executable": "the image's entrypoint is missing, not executable, or for another processor",
    "slide-unreadable": "the slide cannot be opened",
    "slide-truncated": "the slide ends early",
    "slide-forbidden": "the slide's host refused (401, 403), or its address may not be fetched from",
    "slide-not-found": "there is no slide at its URL or path",
    "slide-expired": "the presigned URL had ended",
    "slide-too-large": "the slide is larger than the limit",
    "token-expired": "Techcyte's token ends before a result could be delivered",
}


def failures() -> str:
    """Return the page of failure codes."""
    rows = []
    for code in FailureCode:
        kind = Failure(code, "", "").failure_class
        again = {FailureClass.PLATFORM: "yes", FailureClass.MODEL: "no", FailureClass.INPUT: "no"}[kind]
        if code is FailureCode.EXIT_CODE:
            again = "where the container asks for it"
        if code in _FINAL_PLATFORM:
            again = "no"
        rows.append((f"`{code}`", kind, again, MEANINGS.get(code) or remarks(FailureCode).get(code.name, "")))
    return f"""# Failures

A failed job has one card: `failure_class`, `code`, `cause` (one sentence), `mend` (one thing to do), `excerpt` (the
last traceback or lines), `exit_code`. Class and code are stable words to filter and alert by:
`mhs jobs --failure-class model`.

- **platform**: ours. Tried again with a growing pause (`MHS_JOBS__BACKOFF`), `MHS_JOBS__MAX_PLATFORM_ATTEMPTS`
  attempts in all.
- **model**: the container's. Not tried again, unless it ended with one of its `retry_exit_codes`, then at most
  `max_model_retries` times.
- **input**: the slide's. Found before a GPU is used, not tried again.

{table(("code", "class", "tried again", "meaning"), rows)}
"""


# ---------------------------------------------------------------- instance types


def instance_types() -> str:
    """Return the page of instance types."""
    rows = [(f"`{t.name}`", t.vcpu, t.memory_gb, t.gpu, t.vram_gb) for t in INSTANCE_TYPES.values()]
    return (
        "# Instance types\n\nWhat a runnable container can ask for. A container's limits are those of its type.\n\n"
        + table(("type", "vCPU", "RAM (GB)", "GPU", "VRAM (GB)"), rows)
    )
