"""Who has access: clients, roles, companies, the feature flag, the webhook's secret, rates, and the audit."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi.routing import APIRoute

from api.app import build_app
from api.audited import AuditedRoute
from api.console.pages import ConsoleRoute
from api.webhook_example import WEBHOOK_EXAMPLE
from mhs_ray.auth.buckets import Buckets
from mhs_ray.auth.webhook import sign
from mhs_ray.domain.models import Role
from mhs_ray.store.sql import tables as t
from tests.api_fixtures import api_server
from tests.oidc_fixtures import open_id_provider
from tests.unit.api.conftest import Lab, problem


@pytest.fixture
def operator(lab: Lab) -> Iterator[httpx.Client]:
    with lab.server.user(lab.id, Role.OPERATOR, "Olga") as client:
        yield client


# ------------------------------------------------------------ clients


def test_a_client_is_made_used_and_revoked_and_its_secret_shown_once(lab: Lab) -> None:
    made = lab.http.post("/v1/clients", json={"name": "LIMS", "role": "Lab User"}).json()
    client_id, secret = made["client"]["id"], made["client_secret"]
    assert made["client"]["created_by"] == "Ada"
    with httpx.Client(base_url=lab.server.url, auth=(client_id, secret)) as client:
        assert client.get("/v1/me").json() | {"company": ""} == {
            "client_id": client_id, "name": "LIMS", "role": "Lab User", "company_id": lab.id, "company": "",
        }  # fmt: skip
        listed = {c["id"]: c for c in lab.http.get("/v1/clients").json()}
        assert listed[client_id]["last_used_at"] is not None
        assert secret not in json.dumps(listed)
        assert lab.http.post(f"/v1/clients/{client_id}/revoke").json()["revoked_at"] is not None
        problem(client.get("/v1/me"), 401, "unauthenticated")
    with lab.server.core.db.read() as conn:
        (kept,) = conn.execute(sa.select(t.clients.c.secret_hash).where(t.clients.c.id == client_id)).one()
    assert kept.startswith("$argon2")


@pytest.mark.parametrize("role", [Role.LAB_USER, Role.VIEWER])
def test_only_an_admin_says_who_has_access(lab: Lab, role: Role) -> None:
    with lab.server.user(lab.id, role, "Uwe") as user:
        for method, path, body in (
            ("GET", "/v1/clients", None), ("POST", "/v1/clients", {"name": "x"}), ("GET", "/v1/audit", None),
            ("POST", "/v1/webhook-secret", None), ("DELETE", "/v1/webhook-secret", None),
            ("GET", "/v1/companies", None), ("POST", "/v1/companies", {"name": "x"}),
            ("PATCH", f"/v1/companies/{lab.id}", {"mhs_enabled": False}),
            ("POST", f"/v1/clients/mhs-{lab.id}-LAB_ADMIN-Ada/revoke", None),
        ):  # fmt: skip
            problem(user.request(method, path, json=body), 403, "forbidden")


def test_an_admin_rules_over_its_company_only_and_makes_no_operator(lab: Lab, other_lab: Lab) -> None:
    problem(lab.http.post("/v1/clients", json={"name": "x", "role": "Operator"}), 403, "forbidden")
    problem(lab.http.post("/v1/clients", json={"name": "x", "company_id": other_lab.id}), 403, "forbidden")
    for path in ("clients", "audit"):
        problem(lab.http.get(f"/v1/{path}?company_id={other_lab.id}"), 403, "forbidden")
    problem(lab.http.get("/v1/companies"), 403, "forbidden")
    assert all(c["company_id"] == lab.id for c in lab.http.get("/v1/clients").json())
    own = f"mhs-{lab.id}-{Role.LAB_ADMIN.name}-Ada"
    problem(lab.http.post(f"/v1/clients/{own}/revoke"), 409, "conflict")


# ------------------------------------------------------------ companies


def test_an_operator_makes_a_company_with_its_first_admin(lab: Lab, operator: httpx.Client) -> None:
    name = f"lab of {lab.id}"
    made = operator.post("/v1/companies", json={"name": name, "external_id": f"x{lab.id}"}).json()
    assert (made["mhs_enabled"], made["has_webhook_secret"]) == (True, False)
    problem(operator.post("/v1/companies", json={"name": name}), 409, "conflict")
    body = {"name": "first", "role": "Lab Admin", "company_id": made["id"]}
    admin = operator.post("/v1/clients", json=body).json()
    with httpx.Client(base_url=lab.server.url, auth=(admin["client"]["id"], admin["client_secret"])) as client:
        assert client.get("/v1/me").json()["company"] == name
    assert name in {c["name"] for c in operator.get("/v1/companies").json()}


def test_the_feature_flag_shuts_a_company_out_and_says_so(lab: Lab, other_lab: Lab, operator: httpx.Client) -> None:
    made = other_lab.http.post("/v1/clients", json={"name": "LIMS"}).json()
    off = operator.patch(f"/v1/companies/{other_lab.id}", json={"mhs_enabled": False})
    assert off.json()["mhs_enabled"] is False
    with httpx.Client(base_url=lab.server.url, auth=(made["client"]["id"], made["client_secret"])) as client:
        answer = client.get("/v1/images")
        problem(answer, 403, "forbidden")
        assert "switched off for your company" in answer.json()["detail"]
    with httpx.Client(base_url=lab.server.url, auth=(made["client"]["id"], "wrong")) as stranger:
        problem(stranger.get("/v1/images"), 401, "unauthenticated")  # nobody learns of it without the secret
    operator.patch(f"/v1/companies/{other_lab.id}", json={"mhs_enabled": True})
    with httpx.Client(base_url=lab.server.url, auth=(made["client"]["id"], made["client_secret"])) as client:
        assert client.get("/v1/images").status_code == 200
    noted = [e["target"] for e in operator.get("/v1/audit").json()["items"]]
    assert noted[:2] == [f"/v1/companies/{other_lab.id} mhs_enabled={on}" for on in (True, False)]
    problem(operator.patch(f"/v1/companies/{lab.id}", json={"mhs_enabled": False}), 409, "conflict")
    problem(operator.patch("/v1/companies/999999", json={"name": "x"}), 404, "not-found")
    assert problem(operator.patch(f"/v1/companies/{lab.id}", json={"name": None}), 422, "invalid-input") == ["$.name"]


# ------------------------------------------------------------ the webhook's secret


@pytest.fixture
def hooked(lab: Lab, operator: httpx.Client) -> tuple[str, dict[str, Any]]:
    """Return (secret, body) of a company whose webhook is set up."""
    external = str(800_000 + lab.id)
    operator.patch(f"/v1/companies/{lab.id}", json={"external_id": external})
    algorithm = lab.world.algorithm(lab.id)
    body = copy.deepcopy(WEBHOOK_EXAMPLE) | {"company_id": external, "model_name": algorithm.name}
    return lab.http.post("/v1/webhook-secret").json()["secret"], body


def _signed(lab: Lab, secret: str, body: Any, header: str | None = None) -> httpx.Response:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"X-MHS-Signature": sign(secret, raw) if header is None else header}
    return httpx.post(f"{lab.server.url}/v1/webhook", content=raw, headers=headers)


def test_a_signed_webhook_is_taken_once_and_signed_again_adds_nothing(
    lab: Lab, hooked: tuple[str, dict[str, Any]]
) -> None:
    secret, body = hooked
    raw = json.dumps(body).encode()
    header = sign(secret, raw, int(time.time()) - 1)
    assert _signed(lab, secret, raw, header).status_code == 201
    replay = _signed(lab, secret, raw, header)
    problem(replay, 401, "unauthenticated")
    assert "taken before" in replay.json()["detail"]
    assert _signed(lab, secret, raw).status_code == 200
    task = lab.http.get(f"/v1/tasks/{body['task_id']}").json()
    assert (task["created_by"], task["origin"]) == ("webhook", "techcyte")


def test_the_same_signature_many_times_at_once_is_taken_once(lab: Lab, hooked: tuple[str, dict[str, Any]]) -> None:
    secret, body = hooked
    raw = json.dumps(body).encode()
    header = sign(secret, raw)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(_signed(lab, secret, raw, header).status_code))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201, 401, 401, 401, 401, 401]


def test_a_signature_that_is_wrong_old_or_foreign_is_refused(
    lab: Lab, other_lab: Lab, hooked: tuple[str, dict[str, Any]]
) -> None:
    secret, body = hooked
    raw, now = json.dumps(body).encode(), int(time.time())
    good = sign(secret, raw)
    tampered = json.dumps(body | {"case_id": "1"}).encode()
    cases: list[tuple[bytes, str]] = [
        (raw, ""), (raw, "t=1"), (raw, good[:-1]), (raw, good.replace("v1=", "v2=")), (raw, sign("whsec_1_x", raw)),
        (raw, sign(secret, raw, now - 301)), (raw, sign(secret, raw, now + 3600)), (tampered, good), (b"{", good),
        (b"[]", sign(secret, b"[]")), (json.dumps(body | {"company_id": "nobody"}).encode(), good),
    ]  # fmt: skip
    for content, header in cases:
        problem(_signed(lab, secret, content, header), 401, "unauthenticated")
    problem(lab.http.get(f"/v1/tasks/{body['task_id']}"), 404, "not-found")
    assert other_lab.http.get("/v1/tasks").json()["items"] == []


def test_a_webhooks_secret_is_a_bearer_token_too_and_rotates(lab: Lab, hooked: tuple[str, dict[str, Any]]) -> None:
    first, body = hooked

    def post(secret: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}"}
        return httpx.post(f"{lab.server.url}/v1/webhook", json=body | more, headers=headers)

    assert post(first).status_code == 201
    problem(post(first, company_id="another"), 403, "forbidden")
    problem(post(first[:-1]), 401, "unauthenticated")
    problem(post("whsec_99999999999999999999_x"), 401, "unauthenticated")
    second = lab.http.post("/v1/webhook-secret").json()["secret"]
    assert {post(first).status_code, post(second).status_code} == {200}
    third = lab.http.post("/v1/webhook-secret").json()["secret"]
    problem(post(first), 401, "unauthenticated")
    assert {post(second).status_code, post(third).status_code} == {200}
    assert lab.http.delete("/v1/webhook-secret").status_code == 204
    problem(post(third), 401, "unauthenticated")
    with lab.server.bearer(second) as thief:  # good for the webhook only
        problem(thief.get("/v1/images"), 401, "unauthenticated")


def test_a_webhook_secret_needs_the_id_that_calls_are_known_by(lab: Lab) -> None:
    assert problem(lab.http.post("/v1/webhook-secret"), 422, "invalid-input") == ["$.company_id"]


# ------------------------------------------------------------ rates


def test_a_client_that_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    with api_server(tmp_path, auth={"rate": 0.5, "burst": 3}) as server:
        first, second = server.world.company(), server.world.company()
        with server.user(first) as eager, server.user(second) as other:
            statuses = [eager.get("/v1/me").status_code for _ in range(5)]
            assert statuses == [200, 200, 200, 429, 429]
            answer = eager.get("/v1/me")
            problem(answer, 429, "rate-limited")
            assert answer.headers["retry-after"] in {"1", "2"}
            assert other.get("/v1/me").status_code == 200, "one client's haste is not another's"
            time.sleep(float(answer.headers["retry-after"]))
            assert eager.get("/v1/me").status_code == 200


def test_secrets_are_not_guessed_at_leisure(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.server.core.verifier, "_wrong", Buckets(0.2, 2))  # each guess costs a hash
    made = lab.http.post("/v1/clients", json={"name": "LIMS"}).json()
    url, client_id = f"{lab.server.url}/v1/me", made["client"]["id"]
    statuses = [httpx.get(url, auth=(client_id, f"guess {n}")).status_code for n in range(4)]
    assert statuses == [401, 401, 429, 429]


# ------------------------------------------------------------ audit


def test_who_did_what_is_noted_also_what_was_refused(lab: Lab, other_lab: Lab) -> None:
    image = lab.http.post("/v1/images", json={"name": "a"}).json()["id"]
    lab.http.patch(f"/v1/images/{image}", json={"name": "b"})
    lab.http.get(f"/v1/images/{image}/push-instructions")
    lab.http.patch("/v1/images/999999", json={"name": "b"})  # nothing happened
    with lab.viewer() as viewer:
        viewer.delete(f"/v1/images/{image}")
    algorithm = lab.world.algorithm(lab.id)
    made = lab.http.post("/v1/tasks", json={"algorithm_id": algorithm.id, "scan_ids": [lab.world.scan(lab.id).id]})
    client = lab.http.post("/v1/clients", json={"name": "LIMS"}).json()["client"]["id"]
    entries = lab.http.get("/v1/audit").json()["items"]
    assert [(e["who"], e["action"], e["target"]) for e in reversed(entries)] == [
        ("Ada", "create image", f"/v1/images/{image}"),
        ("Ada", "rename image", f"/v1/images/{image}"),
        ("Ada", "get push instructions", f"/v1/images/{image}/push-instructions"),
        ("Vera", "refused: delete image", f"/v1/images/{image}"),
        ("Ada", "create task", f"task {made.json()['task_id']} (job {made.json()['job_ids'][0]})"),
        ("Ada", "create client", f"/v1/clients/{client} as Lab User"),
    ]
    only = lab.http.get(f"/v1/audit?client_id=mhs-{lab.id}-VIEWER-Vera").json()["items"]
    assert [e["who"] for e in only] == ["Vera"]
    assert other_lab.http.get("/v1/audit").json()["items"] == []


# ------------------------------------------------------------ tokens of a provider


def test_a_providers_token_opens_the_api(tmp_path: Path) -> None:
    with open_id_provider() as provider:
        issuers = [{"issuer": provider.url, "audience": "mhs"}]
        with api_server(tmp_path, auth={"issuers": issuers}) as server:
            server.world.company("North Lab", external_id="1052")
            provider.claims = {"company_id": "1052", "role": "Viewer", "name": "Ada"}
            with server.bearer(provider.token("k1")) as client:
                assert client.get("/v1/me").json()["company"] == "North Lab"
                problem(client.post("/v1/images", json={"name": "x"}), 403, "forbidden")
            for wrong in ({"aud": "another"}, {"exp": 1}, {"iss": "http://127.0.0.1:9"}):
                with server.bearer(provider.token("k1", **wrong)) as client:
                    problem(client.get("/v1/me"), 401, "unauthenticated")


def _routes(router: Any) -> Iterator[APIRoute]:
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield route
        elif (included := getattr(route, "original_router", None)) is not None:
            yield from _routes(included)


def test_every_route_that_changes_something_is_audited() -> None:
    app = build_app(lambda: pytest.fail("the routes need no services"))
    by_transaction = {"create_task", "webhook"}  # noted by what stores the task
    open_to_all = {"post_token", "registry_token", "registry_events"}
    writes = [route for route in _routes(app) if set(route.methods) - {"GET", "HEAD"}]
    assert {r.name for r in writes} > {"create_image", "revoke_client", "post_results", "create_webhook_secret"}
    assert [
        route.name
        for route in writes
        if not isinstance(route, AuditedRoute | ConsoleRoute) and route.name not in by_transaction | open_to_all
    ] == []


def test_no_secret_of_a_client_or_a_webhook_lies_open_in_the_database(lab: Lab, operator: httpx.Client) -> None:
    operator.patch(f"/v1/companies/{lab.id}", json={"external_id": f"e{lab.id}"})
    secrets = [lab.http.post("/v1/webhook-secret").json()["secret"]]
    secrets.append(lab.http.post("/v1/clients", json={"name": "LIMS"}).json()["client_secret"])
    kept = b"".join(p.read_bytes() for p in lab.server.core.settings.home.glob("mhs.db*"))
    assert str(lab.id).encode() in kept
    assert [s for s in secrets if s.encode() in kept] == []
