"""What an IAM policy document allows: enough of AWS's rules to hold ours to the calls that code makes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import botocore.client

POLICIES = Path(__file__).parents[1] / "cluster" / "aws" / "iam"
ACCOUNT, REGION, BUCKET = "123456789012", "eu-central-1", "mhs-blobs"


def policy(name: str) -> dict[str, Any]:
    text = (POLICIES / f"{name}.json").read_text()
    for old, new in (("REPLACE_ACCOUNT", ACCOUNT), ("REPLACE_REGION", REGION), ("REPLACE_BUCKET", BUCKET)):
        text = text.replace(old, new)
    document: dict[str, Any] = json.loads(text)
    return document


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def allows(document: dict[str, Any], action: str, resource: str, context: Mapping[str, str] | None = None) -> bool:
    """Say whether a document of Allow statements allows this call; a condition on what is not there fails."""
    here = context or {}
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        if not any(fnmatchcase(action.lower(), a.lower()) for a in _list(statement["Action"])):
            continue
        if not any(fnmatchcase(resource, r) for r in _list(statement["Resource"])):
            continue
        conditions = statement.get("Condition", {})
        assert conditions.keys() <= {"StringEquals", "StringLike"}
        tests = [(key, _list(values)) for rule in conditions.values() for key, values in rule.items()]
        if all(key in here and any(fnmatchcase(here[key], v) for v in values) for key, values in tests):
            return True
    return False


@dataclass
class Calls:
    """What was called of AWS: (service, operation, parameters)."""

    made: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def operations(self) -> set[str]:
        return {f"{service}:{operation}" for service, operation, _ in self.made}


@contextmanager
def recorded(answers: Mapping[str, Any] | None = None) -> Iterator[Calls]:
    """Note every call that boto3 makes meanwhile. answers: given instead of moto's, which takes long to make some."""
    calls, real = Calls(), botocore.client.BaseClient._make_api_call

    def note(self: Any, operation: str, parameters: dict[str, Any]) -> Any:
        calls.made.append((self.meta.service_model.service_name, operation, parameters))
        return (answers or {}).get(operation) or real(self, operation, parameters)

    botocore.client.BaseClient._make_api_call = note
    try:
        yield calls
    finally:
        botocore.client.BaseClient._make_api_call = real
