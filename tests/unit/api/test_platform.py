"""What holds for every route: who may call it, what it says of itself, and whether the platform tells the truth."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter

from api import schemas
from api.app import build_app
from api.errors import KINDS, TABLE
from api.examples import EXAMPLES
from api.openapi import _PUBLIC
from api.schemas.catalog import ImageOut
from api.schemas.jobs import JobOut, TaskOut
from api.schemas.results import ResultsOut
from api.schemas.scans import ScanOut
from mhs_ray.domain import errors as domain_errors
from mhs_ray.domain.models import Principal, Role
from mhs_ray.results.triage import CasePatchBody
from mhs_ray.results.wire import ResultsBody
from tests.api_fixtures import api_server
from tests.unit.api.conftest import Lab, problem


def _app() -> FastAPI:
    return build_app(lambda: pytest.fail("the page needs no services"))


PAGE: dict[str, Any] = _app().openapi()
OPERATIONS = [(method.upper(), path, op) for path, item in PAGE["paths"].items() for method, op in item.items()]
IDS = [f"{method} {path}" for method, path, _ in OPERATIONS]
GUARDED = [(m, p) for m, p, _ in OPERATIONS if p not in _PUBLIC]
WRITES = [(m, p) for m, p in GUARDED if m != "GET" or p.endswith("push-instructions")]


def _own(lab: Lab) -> dict[str, str]:
    """Make one of everything; return the path parameters that lead to it."""
    container = lab.world.container(lab.id)
    algorithm = lab.world.algorithm(lab.id, container)
    scan = lab.world.scan(lab.id)
    done = lab.world.tasks.submit(lab.world.submission(lab.id, algorithm, scan))
    cohort, _ = lab.server.core.cohorts.create(
        Principal(lab.id, "Ada", Role.LAB_ADMIN, ""), **EXAMPLES["CohortIn"] | {"container": str(container.id)},
        canary=3, skip_known=True, mixed_formats=False,
    )  # fmt: skip
    return {
        "cohort_id": str(cohort.id),
        "image_id": str(container.image_id), "container_id": str(container.id), "algorithm_id": str(algorithm.id),
        "scan_id": str(scan.id), "task_id": str(done.task.number), "job_id": str(done.job_ids[0]), "delivery_id": "1",
        "client_id": f"mhs-{lab.id}-{Role.LAB_ADMIN.name}-Ada", "company_id": str(lab.id),
    }  # fmt: skip


def _request(client: httpx.Client, method: str, path: str, own: dict[str, str]) -> httpx.Response:
    filled = re.sub(r"\{(\w+)\}", lambda m: own[m[1]], path)
    bodies: dict[str, Any] = {
        "/v1/images": {"name": "x"}, "/v1/images/{image_id}": {"name": "stolen"},
        "/v1/containers": {"image_id": int(own["image_id"]), "instance_type": "g4dn.xlarge"},
        "/v1/containers/{container_id}": {"name": "stolen"}, "/v1/algorithms/{algorithm_id}": {"name": "stolen"},
        "/v1/algorithms": {"name": "x", "container_id": int(own["container_id"])},
        "/v1/scans": {"filename": "x.svs"}, "/v1/webhook": EXAMPLES["Webhook"],
        "/v1/tasks": {"algorithm_id": int(own["algorithm_id"]), "scan_ids": [int(own["scan_id"])]},
        "/api/v3/external/results/{task_id}": {"scanResults": []}, "/api/v3/external/case/{task_id}": {},
        "/v1/cohorts": EXAMPLES["CohortIn"] | {"container": own["container_id"]},
        "/v1/cohorts/{cohort_id}/slides": EXAMPLES["CohortRowsIn"], "/v1/cohorts/{cohort_id}/start": {},
        "/v1/clients": {"name": "x"}, "/v1/companies": {"name": "x"}, "/v1/companies/{company_id}": {"name": "stolen"},
    }  # fmt: skip
    return client.request(method, filled, json=bodies.get(path) if method in {"POST", "PATCH"} else None)


# ------------------------------------------------------------ who may call


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_nobody_gets_in_without_a_credential(lab: Lab, method: str, path: str) -> None:
    own = dict.fromkeys(
        (
            "image_id", "container_id", "algorithm_id", "scan_id", "task_id", "job_id", "delivery_id", "client_id",
            "company_id", "cohort_id",
        ), "1",
    )  # fmt: skip
    with httpx.Client(base_url=lab.server.url) as nobody, lab.server.bearer("a.b.c") as forger:
        for client in (nobody, forger):
            answer = _request(client, method, path, own)
            problem(answer, 401, "unauthenticated")
            assert "www-authenticate" in answer.headers


@pytest.mark.parametrize(("method", "path"), [(m, p) for m, p in GUARDED if "{" in p])
def test_what_belongs_to_another_company_is_not_there(lab: Lab, other_lab: Lab, method: str, path: str) -> None:
    problem(_request(other_lab.http, method, path, _own(lab)), 404, "not-found")


_NO_LISTS = {"/v1/instance-types", "/v1/me", "/v1/clients", "/v1/companies", "/v1/prices"}
_LISTS = [p for m, p in GUARDED if m == "GET" and "{" not in p and p not in _NO_LISTS]


@pytest.mark.parametrize("path", _LISTS)
def test_no_list_shows_what_belongs_to_another_company(lab: Lab, other_lab: Lab, path: str) -> None:
    _own(lab)
    assert other_lab.http.get(path).json()["items"] == []


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/containers", {"instance_type": "g4dn.xlarge", "image_id": "image_id"}),
    ("/v1/algorithms", {"name": "x", "container_id": "container_id"}),
    ("/v1/tasks", {"algorithm_id": "algorithm_id", "scan_ids": ["scan_id"]}),
])  # fmt: skip
def test_nothing_is_built_on_what_belongs_to_another_company(
    lab: Lab, other_lab: Lab, path: str, body: dict[str, Any]
) -> None:
    own = _own(lab)

    def fill(value: Any) -> Any:
        return [fill(v) for v in value] if isinstance(value, list) else int(own[value]) if value in own else value

    (fault,) = problem(other_lab.http.post(path, json={k: fill(v) for k, v in body.items()}), 422, "invalid-input")
    assert fault.startswith("$.")


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_a_viewer_changes_nothing(lab: Lab, method: str, path: str) -> None:
    own = _own(lab)
    with lab.viewer() as viewer:
        problem(_request(viewer, method, path, own), 403, "forbidden")


@pytest.mark.parametrize("role", [Role.LAB_ADMIN, Role.LAB_USER, Role.OPERATOR])
def test_everybody_else_works(lab: Lab, role: Role) -> None:
    with lab.server.user(lab.id, role, role.name) as client:
        assert client.post("/v1/images", json={"name": role.name}).status_code == 201


# ------------------------------------------------------------ what it says of itself


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=IDS)
def test_every_route_has_words_examples_and_documented_errors(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]
    responses = operation["responses"]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        assert "example" in content, media
    for status, response in responses.items():
        contents = response.get("content", {})
        if status < "300" and status != "204" and contents != {"application/json": {"schema": {}}}:
            documented = [media for media, c in contents.items() if "example" in c]
            assert documented, f"{status} has no example"
        if status >= "400" and path not in {"/readyz"}:
            assert list(contents) == ["application/problem+json"], status
    if path not in _PUBLIC:
        assert {"401", "403", "422"} <= set(responses)
        assert "{" not in path or "404" in responses
    assert (operation.get("security") == []) == (path in _PUBLIC)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_example_is_what_its_type_says(name: str) -> None:
    if name in {"Webhook"}:
        return  # read as it is by test_tasks
    known: dict[str, Any] = {"ResultsBody": ResultsBody, "CasePatchBody": CasePatchBody}
    if name == "Problem":
        from api.errors import Problem

        known["Problem"] = Problem
    [wire] = [known[name]] if name in known else {getattr(m, name) for m in _wire_modules() if hasattr(m, name)}
    TypeAdapter(wire).validate_python(EXAMPLES[name])


def _wire_modules() -> Iterator[ModuleType]:
    for module in pkgutil.iter_modules(schemas.__path__):
        yield importlib.import_module(f"{schemas.__name__}.{module.name}")


def test_the_answers_of_the_server_are_what_the_page_says(lab: Lab) -> None:
    own = _own(lab)
    for path, model in (
        ("jobs/{job_id}", JobOut), ("tasks/{task_id}", TaskOut),
        ("images/{image_id}", ImageOut),
        ("tasks/{task_id}/results", ResultsOut), ("scans/{scan_id}", ScanOut),
    ):  # fmt: skip
        answer = lab.http.get("/v1/" + re.sub(r"\{(\w+)\}", lambda m: own[m[1]], path)).json()
        TypeAdapter(model).validate_python(answer)


def test_every_problem_has_a_page_of_its_own(lab: Lab) -> None:
    assert len({k.slug for k in KINDS}) == len({(k.slug, k.status) for k in KINDS})
    for kind in KINDS:
        page = lab.http.get(f"/problems/{kind.slug}")
        assert page.status_code == 200
        assert kind.title in page.text
    problem(lab.http.get("/problems/nothing"), 404, "not-found")


def test_every_error_that_a_person_can_cause_has_a_kind() -> None:
    ours = {
        domain_errors.EngineError, domain_errors.SandboxError, domain_errors.AdmissionError, domain_errors.ExecError,
    }  # fmt: skip
    todo = [domain_errors.MhsError]
    while todo:
        cls = todo.pop()
        todo += [c for c in cls.__subclasses__() if c.__module__ == domain_errors.__name__]
        if cls is not domain_errors.MhsError and not issubclass(cls, tuple(ours)):
            assert any(issubclass(cls, known) for known in TABLE), cls


def test_what_is_nowhere_and_what_is_not_done_there_are_problems(lab: Lab) -> None:
    problem(lab.http.get("/v1/nowhere"), 404, "no-such-path")
    answer = lab.http.put("/v1/images")
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"]


def test_a_bug_is_a_problem_that_tells_nothing_and_logs_no_query(
    lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a detail of the inside")

    monkeypatch.setattr(lab.server.core.images.images, "page", broken)
    with caplog.at_level(logging.INFO):
        answer = lab.http.get("/v1/images?name=query-s3cret")
    problem(answer, 500, "internal")
    assert "inside" not in answer.text
    assert "GET /v1/images failed" in caplog.text
    assert "query-s3cret" not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("api"))


def test_the_page_and_its_json_are_served(lab: Lab) -> None:
    assert lab.http.get("/openapi.json").json()["paths"].keys() == PAGE["paths"].keys()
    assert lab.http.get("/docs").status_code == 200


# ------------------------------------------------------------ truth


def test_the_platform_is_ready_only_when_every_part_is(tmp_path: Path) -> None:
    with api_server(tmp_path) as server:
        url = server.url

        def parts() -> tuple[int, dict[str, str]]:
            answer = httpx.get(f"{url}/readyz")
            body = answer.json()
            assert body["ready"] == (answer.status_code == 200)
            return answer.status_code, {k: v for k, v in body["parts"].items() if v != "ok"}

        assert parts() == (200, {})
        server.registry.down = True
        assert parts() == (503, {"registry": "the registry does not answer"})
        server.ping_error.append(ConnectionError("secret inside"))
        assert parts() == (503, {"registry": "the registry does not answer", "dispatcher": "ConnectionError"})
        server.registry.down = False
        server.ping_error.clear()
        blobs = server.core.settings.home / "blobs" / "blobs"
        blobs.rename(blobs.with_name("away"))
        blobs.write_text("no folder")
        status, broken = parts()
        assert (status, list(broken)) == (503, ["blobs"])
        blobs.unlink()
        blobs.with_name("away").rename(blobs)
        server.core.db.engine.dispose()
        database = server.core.settings.home / "mhs.db"
        content = database.read_bytes()
        for name in ("mhs.db-wal", "mhs.db-shm"):
            (database.with_name(name)).unlink(missing_ok=True)
        database.write_bytes(b"no database" * 1000)
        status, broken = parts()
        assert (status, list(broken)) == (503, ["database"])
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}, "the replica itself is alive"
        server.core.db.engine.dispose()
        database.write_bytes(content)
        assert parts() == (200, {})


def test_the_registrys_notifications_are_hints_that_only_the_registry_gives(lab: Lab) -> None:
    url = f"{lab.server.url}/registry/events"
    good = {"Authorization": f"Bearer {lab.server.core.keys.registry_events}"}
    event = {"action": "push", "target": {"repository": "quarantine/7"}}
    problem(httpx.post(url, json={"events": [event]}), 401, "unauthenticated")
    problem(httpx.post(url, json={"events": [event]}, headers={"Authorization": "Bearer x"}), 401, "unauthenticated")
    before = len(lab.server.pushed)
    odd_ones: list[Any] = [{}, [], {"events": None}, {"events": [None, {}, {"action": "push", "target": None}]}]
    for odd in odd_ones:
        assert httpx.post(url, json=odd, headers=good).status_code == 204
    assert len(lab.server.pushed) == before
    assert httpx.post(url, json={"events": [event, event]}, headers=good).status_code == 204
    assert lab.server.pushed[before:] == [[7]]
    problem(httpx.post(url, content=b"{", headers=good), 422, "invalid-input")
