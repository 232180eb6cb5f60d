"""What people import, and that the two clients and the API's own document agree."""

from __future__ import annotations

import inspect
import re
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

import mhs_ray.client
from api.app import build_app
from api.schemas.base import Wire
from api.schemas.catalog import (
    AlgorithmOut,
    ContainerOut,
    EnvVarOut,
    ImageOut,
    ImageVersionOut,
    InstanceTypeOut,
    PushInstructionsOut,
    PushVariantOut,
)
from api.schemas.deliveries import DeliveryOut
from api.schemas.jobs import FailureOut, JobEventOut, JobOut, SubmittedOut, TaskOut
from api.schemas.results import ResultsOut, ScanResultOut
from api.schemas.scans import ScanOut, SignedUrlOut
from mhs_ray.client import AsyncClient, Client
from mhs_ray.client import wire as w

_OWN = {"url", "calls", "http"}


def public(kind: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(kind, callable) if not name.startswith("_")}


def test_the_exported_names_are_these() -> None:
    assert sorted(mhs_ray.client.__all__) == [
        "ApiError", "AsyncClient", "Client", "LogLine", "MissingExtraError", "UnreachableError", "is_final",
        "to_geodataframe", "to_shapely",
    ]  # fmt: skip
    assert all(hasattr(mhs_ray.client, name) for name in mhs_ray.client.__all__)


def test_the_clients_methods_are_these() -> None:
    assert sorted(public(Client)) == [
        "add_scan", "add_scan_upload", "algorithm", "algorithms", "audit", "cancel", "clients", "close", "companies",
        "container", "containers", "create_algorithm", "create_client", "create_company", "create_container",
        "create_image", "create_webhook_secret", "delete_algorithm", "delete_container", "delete_image",
        "delete_scan", "deliveries", "delivery", "discard_delivery", "features", "follow_log", "geodataframe",
        "health", "image", "image_versions", "images", "instance_types", "job", "job_events", "job_results", "jobs",
        "log", "me", "pause", "push_instructions", "remove_webhook_secret", "rename_image", "replay", "rerun",
        "results_table", "retry_delivery", "revoke_client", "save_debug_file", "save_results", "save_usage", "scan",
        "scan_url", "scans", "submit", "task", "task_results", "tasks", "update_algorithm", "update_company",
        "update_container", "usage", "wait", "wait_for_image",
    ]  # fmt: skip


def test_the_blocking_client_has_every_call_with_the_same_signature_and_words() -> None:
    waiting, blocking = public(AsyncClient), public(Client)
    assert waiting.keys() == blocking.keys()
    for name, method in waiting.items():
        twin = blocking[name]
        there, here = inspect.signature(method), inspect.signature(twin)
        assert there.parameters == here.parameters, name
        assert str(here.return_annotation) == str(there.return_annotation).replace("Async", ""), name
        assert twin.__doc__ == method.__doc__, name
        assert not inspect.iscoroutinefunction(twin), name


@pytest.mark.parametrize(
    ("told", "answered"),
    [
        (w.InstanceType, InstanceTypeOut), (w.Image, ImageOut), (w.ImageVersion, ImageVersionOut),
        (w.PushInstructions, PushInstructionsOut), (w.PushVariant, PushVariantOut), (w.EnvVar, EnvVarOut),
        (w.Container, ContainerOut), (w.Algorithm, AlgorithmOut), (w.Scan, ScanOut),
        (w.SignedUrl, SignedUrlOut), (w.Failure, FailureOut), (w.Job, JobOut), (w.Task, TaskOut),
        (w.Submitted, SubmittedOut), (w.JobEvent, JobEventOut), (w.ScanResult, ScanResultOut),
        (w.Results, ResultsOut), (w.Delivery, DeliveryOut),
    ],
)  # fmt: skip
def test_what_the_client_declares_is_what_the_api_answers(told: type, answered: type[Wire]) -> None:
    ours = get_type_hints(told)
    fields = {field.alias or name: field for name, field in answered.model_fields.items()}
    assert ours.keys() == fields.keys()
    for name, field in fields.items():
        can_be_null = NoneType in get_args(field.annotation)
        assert (NoneType in get_args(ours[name])) is can_be_null, name


def test_every_filter_of_a_list_can_be_given() -> None:
    paths = build_app().openapi()["paths"]
    for name in ("images", "containers", "algorithms", "scans", "tasks", "jobs", "deliveries"):
        asked = {p["name"] for p in paths[f"/v1/{name}"]["get"]["parameters"] if p["in"] == "query"} - {"cursor"}
        given = set(inspect.signature(getattr(Client, name)).parameters) - {"self"}
        assert asked == given, name


def test_help_says_what_a_method_does() -> None:
    text = str(inspect.signature(Client.follow_log))
    assert re.search(r"attempt: 'int \| None' = None\) -> 'Iterator\[w.LogLine\]'", text)
