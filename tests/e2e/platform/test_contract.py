"""Containers that other people wrote for the contract run unchanged, and get exactly what it promises."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from tests.e2e.platform.clients import Client
from tests.e2e.platform.conftest import push
from tests.e2e.platform.harness import HOST, Platform
from tests.e2e.platform.slide_host import SlideHost

CONTRACT = {"HOST", "TASK_ID", "SCAN_ID", "SCAN_URL", "JWT_TOKEN", "DEBUG_FILE_UPLOAD_URL"}
SANDBOX = {
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO", "PIP_CERT",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "HOME", "LD_PRELOAD", "NVIDIA_VISIBLE_DEVICES",
}  # fmt: skip
IMAGE = {"PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
ENGINE = {"HOSTNAME", "container", "TERM", "LC_CTYPE"}


@pytest.mark.both_engines
def test_a_standard_library_container_runs_unchanged(
    platform: Platform, docker: Client, context: Path, scan: int, slide: Path
) -> None:
    image = push(platform, docker, context, "stdlib_lab", "A lab's own")
    algorithm = platform.algorithm(image, "Stdlib lab")
    [job] = platform.submit(algorithm, scan, case_id="aHVtYW5DYXNlOjI0MjEzNjY=")
    ended = platform.succeeded(job)
    assert platform.events(job) == ["submitted", "dispatched", "placed", "started", "exited", "succeeded"]
    assert ended["image_digest"] == platform.get(f"/v1/images/{image}")["current"]["digest"]

    log = platform.lines(job)
    # stdout and stderr are two pipes: what comes by both at one moment has no order, what comes by one has.
    assert log.index("read the whole slide") < log.index("done")
    assert "evaluations: 1" in log
    assert "[mhs] container exited with code 0" in log

    results = platform.get(f"/v1/jobs/{job}/results")
    [result] = results["scanResults"]
    assert results["caseResults"]["mitosisCount"] == 1
    task = platform.get(f"/v1/tasks/{ended['task_id']}")
    assert (task["triage_category"], task["triage_score"]) == ("urgent", 0.9)
    assert result["scanId"] == ended["scan_id"]
    size = slide.stat().st_size
    assert result["results"] == {"summary": "one mitosis", "bytes": size, "external_url": "https://lab.example/r/1"}
    assert result["qcFailReasons"] == []
    assert result["workflow"]["report"]["results"] == [{"name": "count", "result": "1"}]
    assert [f["properties"]["annotation_type"] for f in result["geojson"]["features"]] == ["mitosis", "cell"]

    geojson = platform.get(f"/v1/jobs/{job}/results", format="geojson")
    assert [f["geometry"]["type"] for f in geojson["features"]] == ["Polygon", "Point"]
    parquet = platform.api.get(f"/v1/jobs/{job}/results", params={"format": "parquet"})
    table = pq.read_table(io.BytesIO(parquet.content))
    assert table.num_rows == 2
    assert platform.get(f"/v1/tasks/{ended['task_id']}/results")["scanResults"][0]["jobId"] == job

    debug = platform.api.get(f"/v1/jobs/{job}/debug", follow_redirects=False)
    assert debug.status_code == 307
    packed = httpx.get(debug.headers["location"], trust_env=False).raise_for_status()
    assert zipfile.ZipFile(io.BytesIO(packed.content)).namelist() == ["debug/steps.txt"]
    platform.nothing_left(job)


def test_a_container_with_requests_and_its_own_trust_store_runs_unchanged(
    platform: Platform, docker: Client, context: Path, scan: int, slide: Path
) -> None:
    image = push(platform, docker, context, "requests_lab", "With requests")
    details = platform.get(f"/v1/images/{image}")["current"]["details"]
    assert details["ca_bundles"] == ["/app/vendor/certifi/cacert.pem"]
    algorithm = platform.algorithm(image, "Requests lab", env=[{"name": "THRESHOLD", "value": "0.5"}])
    [job] = platform.submit(algorithm, scan)
    platform.succeeded(job)
    assert platform.report(job) == {"size": slide.stat().st_size, "threshold": "0.5"}
    log = platform.lines(job)
    assert "POST 201 null" in log
    assert any(line.startswith("no way out: ") for line in log)


@pytest.mark.both_engines
def test_the_environment_is_the_contracts_with_the_containers_own_under_it(
    platform: Platform, zoo: int, scan: int
) -> None:
    own = {
        "PLAIN": "0.5", "EMPTY": "", "LINES": "one\ntwo\n", "QUOTES": "\"double\" 'single' `tick` $HOME \\n #no",
        "UNICODE": "µm² – Zellkern 細胞", "SPACES": "  around  ", "EQUALS": "a=b=c",
    }  # fmt: skip
    show = json.dumps([*own, "PASSWORD", "HOST", "TASK_ID", "SCAN_ID"])
    env: list[dict[str, object]] = [{"name": name, "value": value} for name, value in own.items()]
    env += [{"name": "PASSWORD", "value": "correct horse", "secret": True}, {"name": "SHOW", "value": show}]
    env += [{"name": "BEHAVIOUR", "value": "env"}]
    algorithm = platform.algorithm(zoo, "Environment", env=env)
    [container] = platform.get("/v1/containers", name="Environment")["items"]
    assert {v["name"]: v["value"] for v in container["env"]}["PASSWORD"] is None
    [job] = platform.submit(algorithm, scan, task_id="dGFzazoxODU3MTQ=")
    ended = platform.succeeded(job)
    report = platform.report(job)
    assert ended["task_id"] == "185714"
    expected = {"PASSWORD": "correct horse", "HOST": HOST, "TASK_ID": "185714", "SCAN_ID": ended["scan_id"]}
    assert report["own"] == own | expected
    given = {v["name"] for v in env}
    assert set(report["names"]) - SANDBOX - IMAGE - ENGINE == CONTRACT | given


@pytest.mark.parametrize("name", ["HOST", "JWT_TOKEN", "1ST", "HTTPS_PROXY"])
def test_a_name_that_is_none_or_reserved_is_refused(platform: Platform, zoo: int, name: str) -> None:
    before = len(platform.get("/v1/containers", limit=500)["items"])
    body = {"name": "x", "image_id": zoo, "instance_type": "g4dn.xlarge", "env": [{"name": name, "value": "x"}]}
    answer = platform.api.post("/v1/containers", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert "$.env[0].name" in answer.text
    assert len(platform.get("/v1/containers", limit=500)["items"]) == before


def test_a_task_of_several_scans_is_one_job_each(platform: Platform, zoo: int, scan: int, slide: Path) -> None:
    algorithm = platform.algorithm(zoo, "Posts", env=[{"name": "BEHAVIOUR", "value": "post"}])
    second = platform.scan(path=str(slide), name="the same again")
    jobs = platform.submit(algorithm, scan, second)
    assert len(jobs) == 2
    ended = [platform.succeeded(job) for job in jobs]
    assert len({job["scan_id"] for job in ended}) == 2
    assert len({job["task_id"] for job in ended}) == 1
    results = platform.get(f"/v1/tasks/{ended[0]['task_id']}/results")["scanResults"]
    assert {r["scanId"] for r in results} == {job["scan_id"] for job in ended}


def webhook_body(task: int, algorithm: str, urls: dict[str, list[str]]) -> dict[str, object]:
    """Return a request as Techcyte makes it, with a key that nobody knows yet."""
    return {
        "company_id": "31", "scans": {scan: each[0] for scan, each in urls.items()}, "scan_urls": urls,
        "stains": {scan: {"value": "HE", "label": "H&E"} for scan in urls}, "case_id": "aHVtYW5DYXNlOjI0MjEzNjY=",
        "task_id": base64.b64encode(f"task:{task}".encode()).decode(), "model_id": "", "model_name": algorithm,
        "jwt_token": "techcytes.own.token", "a_new_key": {"of": "tomorrow"},
    }  # fmt: skip


def test_the_webhook_runs_and_the_same_task_again_adds_nothing(platform: Platform, zoo: int, hosted: SlideHost) -> None:
    algorithm = platform.algorithm(zoo, "Posts", env=[{"name": "BEHAVIOUR", "value": "post"}])
    body = webhook_body(700001, algorithm, {"8946136": [hosted.url("/ok/slide")], "8946137": [hosted.url("/ok/slide")]})
    first = platform.post("/webhook", body)
    assert first["created"]
    assert len(first["job_ids"]) == 2
    again = platform.post("/v1/webhook", body, status=200)
    assert again == first | {"created": False}
    for job in first["job_ids"]:
        platform.succeeded(job)
    after = platform.post("/webhook", body | {"stains": {}, "jwt_token": "another"}, status=200)
    assert after == first | {"created": False}
    task = platform.get("/v1/tasks/700001")
    assert (task["origin"], task["case_id"]) == ("techcyte", "aHVtYW5DYXNlOjI0MjEzNjY=")
    assert [j["id"] for j in task["jobs"]] == first["job_ids"]
    assert {j["scan_id"] for j in task["jobs"]} == {"8946136", "8946137"}
    log = "".join(platform.log(job) for job in first["job_ids"])
    assert "s3cr3tsignature" not in log
    assert "techcytes.own.token" not in log


def test_a_dicom_series_is_given_whole_as_a_zip(
    platform: Platform, zoo: int, hosted: SlideHost, dicom_series: list[bytes]
) -> None:
    algorithm = platform.algorithm(zoo, "Zip", env=[{"name": "BEHAVIOUR", "value": "zip"}])
    hosted.files |= {f"layer{i}": data for i, data in enumerate(dicom_series)}
    urls = [hosted.url(f"/ok/layer{i}") for i in range(len(dicom_series))]
    [job] = platform.post("/webhook", webhook_body(700002, algorithm, {"55": urls}))["job_ids"]
    platform.succeeded(job)
    report = platform.report(job)
    assert report["sizes"] == sorted(len(data) for data in dicom_series)
    assert len(set(report["names"])) == len(dicom_series)
    assert all(name.endswith(".dcm") for name in report["names"])
    assert report["dicom"]
    assert report["first_is_inside"]
