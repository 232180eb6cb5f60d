"""``/api/v3`` as a model container and Techcyte's users know it (techcyte-contract §1 and §3)."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from mhs_ray.auth.clients import hash_secret
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.ids import encode_id
from mhs_ray.domain.models import Job, Role
from mhs_ray.domain.states import JobEvent
from mhs_ray.results.examples import SCAN_NUMBER, examples
from tests.unit.api.conftest import Lab, problem

EXAMPLES = examples()


def _job(lab: Lab, **task: Any) -> Job:
    """Return a running job on the scan that the examples are for."""
    company = lab.id
    found = lab.world.scans.page(company, cursor=None, limit=1, name=None, status=None, number=SCAN_NUMBER).items
    scan = found[0] if found else lab.world.scan(company, number=SCAN_NUMBER)
    done = lab.world.tasks.submit(lab.world.submission(company, lab.world.algorithm(company), scan, **task))
    return lab.run(done.job_ids[0])


def _results(job: Job) -> str:
    return f"/api/v3/external/results/{job.task_number}"


# ------------------------------------------------------------ results


@pytest.mark.parametrize("name", sorted(EXAMPLES))
@pytest.mark.parametrize("base64", [False, True])
def test_every_report_type_is_stored_and_read_back(lab: Lab, name: str, base64: bool) -> None:
    job = _job(lab)
    task_id = encode_id("task", job.task_number) if base64 else str(job.task_number)
    with lab.server.container(job) as container:
        answer = container.post(f"/api/v3/external/results/{task_id}", json=EXAMPLES[name])
    assert answer.status_code == 201, answer.text
    assert answer.content == b"null"
    got = lab.http.get(f"/v1/jobs/{job.id}/results").json()
    (posted,), (scan,) = EXAMPLES[name]["scanResults"], got["scanResults"]
    assert scan["scanId"] == str(SCAN_NUMBER)
    assert scan["geojson"] == posted.get("geojson")
    bare = lab.http.get(f"/v1/jobs/{job.id}/results", params={"geojson": False}).json()
    assert bare["scanResults"] == [{**scan, "geojson": None}]
    assert scan["results"] == posted.get("results")
    assert scan["qcFailReasons"] == posted.get("qcFailReasons")
    assert got["caseResults"] == EXAMPLES[name].get("caseResults")


def test_one_invalid_part_rejects_all_with_the_path_of_every_fault(lab: Lab) -> None:
    first, second = lab.world.submit(lab.id, scans=2).job_ids
    job, other = lab.run(first), lab.world.jobs.find(second)
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [1, 2]}}
    body = {
        "scanResults": [
            {"scanId": str(job.scan_number), "results": {"ok": 1}},
            {"scanId": str(other.scan_number), "geojson": {"type": "FeatureCollection", "features": [feature]}},
            {"scanId": "12345", "results": {"summary": 5}},
            {"scanId": str(other.scan_number), "workflow": {"report": {"type": "Nonsense"}}},
        ]
    }
    with lab.server.container(job) as container:
        answer = container.post(_results(job), json=body)
        paths = problem(answer, 422, "invalid-input")
        assert "$.scanResults[1].geojson.features[0].properties.annotation_type" in paths
        assert "$.scanResults[2].scanId" in paths
        assert "$.scanResults[2].results.summary" in paths
        assert any(p.startswith("$.scanResults[3].workflow.report") for p in paths)
        problem(lab.http.get(f"/v1/jobs/{job.id}/results"), 404, "not-found")
        assert lab.http.get(f"/v1/tasks/{job.task_number}/results").json()["scanResults"] == []
        assert lab.world.results.standing(job.id)[1], "noted for the failure card"
        assert container.post(_results(job), json={"scanResults": body["scanResults"][:1]}).status_code == 201


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"scanResults": 5}', b"{}", b"\xff", b"[" * 300_000])
def test_a_body_that_is_no_results_request_is_refused(lab: Lab, body: bytes) -> None:
    job = _job(lab)
    with lab.server.container(job) as container:
        assert problem(container.post(_results(job), content=body), 422, "invalid-input")


def test_the_same_post_again_is_answered_alike_and_stores_nothing(lab: Lab) -> None:
    job = _job(lab)
    changed = copy.deepcopy(EXAMPLES["geojson"])
    changed["scanResults"][0]["results"] = {"changed": True}
    with lab.server.container(job) as container:
        for body in (EXAMPLES["geojson"], EXAMPLES["geojson"], changed):
            answer = container.post(_results(job), json=body)
            assert (answer.status_code, answer.content) == (201, b"null")
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda _: container.post(_results(job), json=changed), range(8))
        assert {a.status_code for a in answers} == {201}
        assert len(container.get(f"/api/v3/external/case_evaluations/{job.task_number}").json()) == 1
    assert lab.http.get(f"/v1/jobs/{job.id}/results").json()["scanResults"][0]["results"] != {"changed": True}


def test_a_token_is_good_for_its_own_task_only(lab: Lab) -> None:
    job, other = _job(lab), _job(lab)
    with lab.server.container(job) as container:
        for method, path in (
            ("POST", "results"), ("PATCH", "case"), ("GET", "case_evaluations"),
        ):  # fmt: skip
            answer = container.request(method, f"/api/v3/external/{path}/{other.task_number}", json=EXAMPLES["geojson"])
            problem(answer, 403, "forbidden")
        for path in ("/v1/jobs", f"/v1/jobs/{job.id}/log", "/v1/images"):
            problem(container.get(path), 403, "forbidden")


def test_an_attempt_that_has_ended_is_refused(lab: Lab) -> None:
    job = _job(lab)
    lab.world.jobs.transition(job.id, JobEvent.FAILED, attempt=1, failure=Failure(FailureCode.EXIT_CODE, "x", "y"))
    with lab.server.container(job) as container:
        problem(container.post(_results(job), json=EXAMPLES["geojson"]), 403, "forbidden")
        problem(container.patch(f"/api/v3/external/case/{job.task_number}", json={}), 403, "forbidden")
    problem(lab.http.get(f"/v1/jobs/{job.id}/results"), 404, "not-found")


def test_a_stale_attempt_is_answered_alike_once_the_newer_one_has_posted(lab: Lab) -> None:
    job = _job(lab)
    lost = Failure(FailureCode.NODE_LOST, "gone", "wait")
    lab.world.jobs.transition(job.id, JobEvent.RETRIED, attempt=1, failure=lost)
    again = lab.run(job.id)
    assert again.attempt == 2
    with lab.server.container(job, 1) as stale, lab.server.container(again) as fresh:
        problem(stale.post(_results(job), json=EXAMPLES["Basic"]), 403, "forbidden")
        assert fresh.post(_results(job), json=EXAMPLES["geojson"]).status_code == 201
        answer = stale.post(_results(job), json=EXAMPLES["Basic"])
        assert (answer.status_code, answer.content) == (201, b"null")
    assert lab.http.get(f"/v1/jobs/{job.id}/results").json()["scanResults"][0]["geojson"] is not None


@pytest.mark.parametrize("task_id", ["x", "0", "aHVtYW5DYXNlOjI0MjEzNjY=", "9" * 30])
def test_a_task_id_that_is_none_is_refused(lab: Lab, task_id: str) -> None:
    answer = lab.http.post(f"/api/v3/external/results/{task_id}", json=EXAMPLES["geojson"])
    assert problem(answer, 422, "invalid-input") == ["$.task_id"]


# ------------------------------------------------------------ case and evaluations


def test_triage_is_set_field_by_field(lab: Lab) -> None:
    job = _job(lab)
    path = f"/api/v3/external/case/{job.task_number}"
    with lab.server.container(job) as container:
        for body in ({}, {"triage_category": "high"}, {"triage_score": 0.5}):
            answer = container.patch(path, json=body)
            assert (answer.status_code, answer.content) == (204, b"")
        assert problem(container.patch(path, json={"triage_score": "x"}), 422, "invalid-input") == ["$.triage_score"]
        assert problem(container.patch(path, json=[]), 422, "invalid-input") == ["$"]


def test_evaluations_are_those_of_the_case_without_workflow(lab: Lab) -> None:
    first, second = _job(lab, case_number=7), _job(lab, case_number=7)
    body = {
        "caseResults": {"n": 4},
        "scanResults": [
            {
                "scanId": str(SCAN_NUMBER),
                "results": {"a": 1, "external_url": "https://viewer.example.com/1"},
                "workflow": {"ruo": True},
            }
        ],
    }
    for job in (first, second):
        with lab.server.container(job) as container:
            assert container.post(_results(job), json=body).status_code == 201
            found = container.get(f"/api/v3/external/case_evaluations/{job.task_number}").json()
    assert [e["task_id"] for e in found] == [first.task_number, second.task_number]
    assert set(found[0]) == {"id", "sample_id", "case_id", "task_id", "details"}
    assert (found[0]["sample_id"], found[0]["case_id"]) == (SCAN_NUMBER, 7)
    assert found[0]["details"] == {
        "report": {"a": 1}, "external_url": "https://viewer.example.com/1", "caseReport": {"n": 4},
    }  # fmt: skip
    with lab.viewer() as viewer:
        assert viewer.get(f"/api/v3/external/case_evaluations/{first.task_number}").json() == found
        problem(viewer.post(_results(first), json=body), 403, "forbidden")


# ------------------------------------------------------------ token


@pytest.fixture
def keys(lab: Lab) -> tuple[str, str]:
    client_id = f"mhs-keys-{lab.id}"
    lab.server.core.clients.put(client_id, lab.id, "local test", Role.LAB_USER, hash_secret("key-s3cret"))
    return client_id, "key-s3cret"


def test_api_keys_are_traded_for_a_token_by_basic_or_form(lab: Lab, keys: tuple[str, str]) -> None:
    job = _job(lab)
    url = f"{lab.server.url}/api/v3/token"
    form = {"grant_type": "client_credentials", "client_id": keys[0], "client_secret": keys[1]}
    for answer in (
        httpx.post(url, auth=keys),
        httpx.post(url, data=form),
        httpx.post(url, auth=keys, data={"grant_type": "client_credentials"}),
    ):
        assert answer.status_code == 200, answer.text
        token = answer.json()
        assert (token["token_type"], token["expires_in"]) == ("Bearer", 43200)
        with lab.server.bearer(token["access_token"]) as client:
            assert client.post(_results(job), json=EXAMPLES["geojson"]).status_code == 201
    assert httpx.get(f"{lab.server.url}/v1/jobs", auth=keys).status_code == 200


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        ({}, 401, "unauthenticated"),
        ({"auth": ("nobody", "x")}, 401, "unauthenticated"),
        ({"auth": ("a\x00b", "x")}, 401, "unauthenticated"),
        ({"headers": {"Authorization": "Basic !!!"}}, 401, "unauthenticated"),
        ({"headers": {"Authorization": "Basic bm9jb2xvbg=="}}, 401, "unauthenticated"),
        ({"data": {"client_id": "x"}}, 401, "unauthenticated"),
        ({"data": {"grant_type": "password", "client_id": "x", "client_secret": "y"}}, 422, "invalid-input"),
        ({"content": b"x" * 20_000}, 413, "too-large"),
    ],
)
def test_a_faulty_token_request_is_refused(lab: Lab, request_: dict[str, Any], status: int, kind: str) -> None:
    answer = httpx.post(f"{lab.server.url}/api/v3/token", **request_)
    problem(answer, status, kind)
    if status == 401:
        assert "Basic" in answer.headers["www-authenticate"]


def test_a_wrong_secret_is_refused_whatever_came_before(lab: Lab, keys: tuple[str, str]) -> None:
    url = f"{lab.server.url}/api/v3/token"
    assert httpx.post(url, auth=keys).status_code == 200
    for wrong in ((keys[0], "nope"), (keys[0], ""), ("", keys[1])):
        problem(httpx.post(url, auth=wrong), 401, "unauthenticated")


# ------------------------------------------------------------ downloads


def test_results_come_as_json_geojson_and_parquet(lab: Lab) -> None:
    job = _job(lab)
    with lab.server.container(job) as container:
        container.post(_results(job), json=EXAMPLES["geojson"])
    for path in (f"/v1/jobs/{job.id}/results", f"/v1/tasks/{job.task_number}/results"):
        geojson = lab.http.get(path, params={"format": "geojson"})
        assert geojson.headers["content-type"] == "application/geo+json"
        posted = EXAMPLES["geojson"]["scanResults"][0]["geojson"]["features"]
        kinds = {f["properties"]["annotation_type"] for f in geojson.json()["features"]}
        assert kinds == {f["properties"]["annotation_type"] for f in posted}
        parquet = lab.http.get(path, params={"format": "parquet"})
        assert parquet.content[:4] == parquet.content[-4:] == b"PAR1"
        assert parquet.headers["content-disposition"].endswith('.parquet"')
        assert problem(lab.http.get(path, params={"format": "xml"}), 422, "invalid-input") == ["$.format"]
        assert json.loads(lab.http.get(path).content)["scanResults"][0]["jobId"] == job.id


def test_a_debug_file_is_found_from_the_job(lab: Lab) -> None:
    job = _job(lab)
    path = f"/v1/jobs/{job.id}/debug"
    problem(lab.http.get(path), 404, "not-found")
    lab.server.core.blobs.put(f"jobs/{job.id}/attempts/1/debug", b"PK")
    answer = lab.http.get(path)
    assert answer.status_code == 307
    assert answer.headers["location"].startswith(lab.server.core.endpoints.blobs_url)
    problem(lab.http.get(path, params={"attempt": 2}), 404, "not-found")
