"""Instance types, images, containers, algorithms, scans over HTTP: the happy path and every bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.api.conftest import Lab, problem

DIGEST = "sha256:" + "ab" * 32
TILE = Path(__file__).parents[4] / "shared" / "data" / "CMU-1-Small-Region.svs"


# ------------------------------------------------------------ happy paths


def test_the_instance_types_are_the_contracts(lab: Lab) -> None:
    types = lab.http.get("/v1/instance-types").json()
    assert len(types) == 8
    assert types[0] == {"name": "g4dn.xlarge", "vcpu": 4, "memory_gb": 16, "gpu": "T4", "vram_gb": 16}


def test_an_image_is_created_pushed_shown_renamed_and_deleted(lab: Lab) -> None:
    made = lab.http.post("/v1/images", json={"name": "  Mitosis  "})
    assert made.status_code == 201
    image = made.json()
    assert (image["name"], image["status"], image["current"], image["created_by"]) == (
        "Mitosis",
        "created",
        None,
        "Ada",
    )
    access = lab.http.get(f"/v1/images/{image['id']}/push-instructions").json()
    assert len(access["commands"]) == 4
    assert access["repository"] == f"quarantine/{image['id']}"
    lab.server.registry.digests[image["id"]] = DIGEST
    assert lab.server.core.images.reconcile([image["id"]]) == 1
    shown = lab.http.get(f"/v1/images/{image['id']}").json()
    assert (shown["status"], shown["current"]["digest"]) == ("uploaded", DIGEST)
    assert [v["number"] for v in lab.http.get(f"/v1/images/{image['id']}/versions").json()] == [1]
    assert lab.http.patch(f"/v1/images/{image['id']}", json={"name": "New"}).json()["name"] == "New"
    assert lab.http.delete(f"/v1/images/{image['id']}").status_code == 204
    assert image["id"] in lab.server.registry.removed
    assert problem(lab.http.get(f"/v1/images/{image['id']}"), 404, "not-found") == []


def test_a_container_is_created_changed_and_deleted_and_never_shows_a_secret(lab: Lab) -> None:
    image = lab.world.image(lab.id)
    env = [{"name": "A", "value": "1"}, {"name": "K", "value": "k-s3cret", "secret": True}]
    made = lab.http.post("/v1/containers", json={"image_id": image.id, "instance_type": "g4dn.xlarge", "env": env})
    assert made.status_code == 201
    container = made.json()
    assert container["name"] == f"{image.name} on g4dn.xlarge"
    assert container["time_limit_s"] == 5400
    assert container["env"] == [
        {"name": "A", "value": "1", "secret": False},
        {"name": "K", "value": None, "secret": True},
    ]
    path = f"/v1/containers/{container['id']}"
    env = [{"name": "K", "secret": True}, {"name": "B", "value": "2"}]
    changed = lab.http.patch(path, json={"name": "Mine", "time_limit_s": 60, "env": env})
    assert (changed.json()["name"], changed.json()["time_limit_s"]) == ("Mine", 60)
    kept = lab.world.containers.get(lab.id, container["id"]).env
    assert {v.name: v.value for v in kept} == {"K": "k-s3cret", "B": "2"}
    assert "k-s3cret" not in made.text + changed.text + lab.http.get(path).text + lab.http.get("/v1/containers").text
    assert lab.http.delete(path).status_code == 204
    problem(lab.http.get(path), 404, "not-found")


def test_an_algorithm_is_created_changed_and_deleted(lab: Lab) -> None:
    container = lab.world.container(lab.id)
    made = lab.http.post("/v1/algorithms", json={"name": "Mitosis count", "container_id": container.id})
    assert made.status_code == 201
    algorithm = made.json()
    assert (algorithm["provider"], algorithm["container_name"]) == ("Model Hosting Service", container.name)
    path = f"/v1/algorithms/{algorithm['id']}"
    problem(lab.http.delete(f"/v1/containers/{container.id}"), 409, "conflict")
    assert lab.http.patch(path, json={"provider": "External", "container_id": None}).json()["container_id"] is None
    assert lab.http.get(path).json()["provider"] == "External"
    assert lab.http.delete(path).status_code == 204
    problem(lab.http.get(path), 404, "not-found")


def test_a_scan_is_registered_by_path_and_has_the_facts_of_its_slide(lab: Lab) -> None:
    if not TILE.exists():
        pytest.skip("no sample slide beside the project")
    made = lab.http.post("/v1/scans", json={"path": str(TILE), "scan_id": "8946136"})
    assert made.status_code == 201, made.text
    scan = made.json()
    assert (scan["scan_id"], scan["status"], scan["source"]) == ("8946136", "ready", "path")
    assert scan["facts"]["width"] == 2220
    assert lab.http.get(f"/v1/scans/{scan['id']}").json() == scan
    assert problem(
        lab.http.post("/v1/scans", json={"path": str(TILE), "scan_id": "8946136"}), 422, "invalid-input"
    ) == ["$.number"]
    assert lab.http.get("/v1/scans", params={"scan_id": "8946136"}).json()["items"] == [scan]
    problem(lab.http.get(f"/v1/scans/{scan['id']}/url"), 409, "conflict")
    assert lab.http.delete(f"/v1/scans/{scan['id']}").status_code == 204


def test_a_scan_is_uploaded_checked_and_then_has_a_signed_url(lab: Lab) -> None:
    if not TILE.exists():
        pytest.skip("no sample slide beside the project")
    scan = lab.http.post("/v1/scans", json={"filename": "a/b/CMU.svs", "name": "My slide"}).json()
    assert (scan["status"], scan["name"]) == ("uploading", "My slide")
    assert scan["upload_url"].startswith(lab.server.core.endpoints.blobs_url)
    path = f"/v1/scans/{scan['id']}"
    problem(lab.http.post(f"{path}/complete"), 409, "conflict")
    problem(lab.http.get(f"{path}/url"), 409, "conflict")
    with TILE.open("rb") as slide:
        lab.server.core.blobs.put(f"scans/{lab.id}/{scan['id']}/slide", slide)
    done = lab.http.post(f"{path}/complete").json()
    assert (done["status"], done["size_bytes"], done["upload_url"]) == ("ready", TILE.stat().st_size, None)
    assert lab.http.post(f"{path}/complete").json() == done
    assert lab.http.get(f"{path}/url", params={"expires_in": 60}).json()["url"].startswith("http")


def test_an_upload_that_is_no_slide_leaves_neither_scan_nor_blob(lab: Lab) -> None:
    scan = lab.http.post("/v1/scans", json={"filename": "x.svs"}).json()
    key = f"scans/{lab.id}/{scan['id']}/slide"
    lab.server.core.blobs.put(key, b"this is no slide" * 100)
    problem(lab.http.post(f"/v1/scans/{scan['id']}/complete"), 422, "slide")
    problem(lab.http.get(f"/v1/scans/{scan['id']}"), 404, "not-found")
    assert lab.server.core.blobs.stat(key) is None


# ------------------------------------------------------------ lists


def test_lists_are_paged_and_filtered(lab: Lab) -> None:
    names = [f"image {i}" for i in range(5)]
    for name in names:
        lab.http.post("/v1/images", json={"name": name})
    seen: list[str] = []
    cursor = None
    while True:
        page = lab.http.get("/v1/images", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [i["name"] for i in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == names[::-1]
    assert [i["name"] for i in lab.http.get("/v1/images?name=AGE%203").json()["items"]] == ["image 3"]
    assert lab.http.get("/v1/images?status=uploaded").json() == {"items": [], "next_cursor": None}


@pytest.mark.parametrize("kind", ["images", "containers", "algorithms", "scans", "tasks", "jobs", "deliveries"])
@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("limit=0", "$.limit"),
        ("limit=501", "$.limit"),
        ("limit=x", "$.limit"),
        ("cursor=x", "$.cursor"),
        ("cursor=djE6" + "OTk5" * 20, "$.cursor"),
    ],
)
def test_a_list_refuses_what_is_no_page(lab: Lab, kind: str, query: str, path: str) -> None:
    assert problem(lab.http.get(f"/v1/{kind}?{query}"), 422, "invalid-input") == [path]


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("images?status=gone", "$.status"), ("images?name=%00", "$.name"), ("scans?status=x", "$.status"),
        ("scans?scan_id=x", "$.scan_id"), ("containers?image_id=0", "$.image_id"), ("tasks?origin=x", "$.origin"),
        ("jobs?state=x", "$.state[0]"), ("jobs?task_id=x", "$.task_id"), ("jobs?failure_class=x", "$.failure_class"),
        ("jobs?created_after=yesterday", "$.created_after"),
        ("jobs?created_before=2026-01-01T00:00:00", "$.created_before"),
        ("jobs?algorithm=%00", "$.algorithm"), ("jobs?created_by=%00", "$.created_by"),
        ("jobs?container_id=99999999999999999999", "$.container_id"),
    ],
)  # fmt: skip
def test_a_filter_that_cannot_be_is_named(lab: Lab, query: str, path: str) -> None:
    assert problem(lab.http.get(f"/v1/{query}"), 422, "invalid-input") == [path]


# ------------------------------------------------------------ bad input

GOOD_CONTAINER: dict[str, Any] = {"image_id": 1, "instance_type": "g4dn.xlarge"}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"instance_type": "p5.48xlarge"}, "$.instance_type"),
        ({"instance_type": 4}, "$.instance_type"),
        ({"image_id": 999_999}, "$.image_id"),
        ({"image_id": "x"}, "$.image_id"),
        ({"image_id": 0}, "$.image_id"),
        ({"image_id": 1 << 60}, "$.image_id"),
        ({"env": [{"name": "1A", "value": ""}]}, "$.env[0].name"),
        ({"env": [{"name": "A", "value": ""}, {"name": "HOST", "value": "evil"}]}, "$.env[1].name"),
        ({"env": [{"name": "HTTPS_PROXY", "value": "x"}]}, "$.env[0].name"),
        ({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}, "$.env[1].name"),
        ({"env": [{"name": "A"}]}, "$.env[0].value"),
        ({"env": [{"name": "A", "secret": True}]}, "$.env[0].value"),
        ({"env": [{"name": "A", "value": "a\x00b"}]}, "$.env[0].value"),
        ({"env": [{"name": "A", "value": "x" * 33_000}]}, "$.env[0].value"),
        ({"env": {"A": "1"}}, "$.env"),
        ({"time_limit_s": 0}, "$.time_limit_s"),
        ({"time_limit_s": 5401}, "$.time_limit_s"),
        ({"retry_exit_codes": [0]}, "$.retry_exit_codes"),
        ({"max_model_retries": -1}, "$.max_model_retries"),
        ({"name": "a\nb"}, "$.name"),
        ({"name": "x" * 201}, "$.name"),
        ({"instancetype": "g4dn.xlarge"}, "$.instancetype"),
    ],
)
def test_a_faulty_container_is_refused_at_its_field_and_not_made(lab: Lab, change: dict[str, Any], path: str) -> None:
    image = lab.world.image(lab.id)
    body = {**GOOD_CONTAINER, "image_id": image.id, **change}
    assert problem(lab.http.post("/v1/containers", json=body), 422, "invalid-input") == [path]
    assert lab.http.get("/v1/containers").json()["items"] == []
    if "image_id" not in change or change["image_id"] == 999_999:
        container = lab.world.container(lab.id, image)
        answer = lab.http.patch(f"/v1/containers/{container.id}", json=change)
        assert problem(answer, 422, "invalid-input") == [path]
        assert lab.world.containers.get(lab.id, container.id) == container


def test_a_container_needs_an_image_that_is_uploaded(lab: Lab) -> None:
    image = lab.world.image(lab.id, uploaded=False)
    answer = lab.http.post("/v1/containers", json={**GOOD_CONTAINER, "image_id": image.id})
    assert problem(answer, 422, "invalid-input") == ["$.image_id"]
    assert "not uploaded yet" in answer.json()["detail"]


@pytest.mark.parametrize("field", ["name", "image_id", "instance_type", "time_limit_s", "retry_exit_codes"])
def test_a_field_of_a_container_cannot_be_set_to_null(lab: Lab, field: str) -> None:
    container = lab.world.container(lab.id)
    answer = lab.http.patch(f"/v1/containers/{container.id}", json={field: None})
    assert problem(answer, 422, "invalid-input") == [f"$.{field}"]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "$.name"), ({"name": ""}, "$.name"), ({"name": "  "}, "$.name"), ({"name": 5}, "$.name"),
        ({"name": "a\x00"}, "$.name"), ({"name": "\u202eevil"}, "$.name"), ({"name": None}, "$.name"),
        ({"name": "x", "nam": 1}, "$.nam"), ([], "$"), ("x", "$"), (None, "$"),
    ],
)  # fmt: skip
def test_a_faulty_image_is_refused(lab: Lab, body: Any, path: str) -> None:
    assert problem(lab.http.post("/v1/images", json=body), 422, "invalid-input") == [path]


def test_a_name_that_is_taken_is_refused(lab: Lab) -> None:
    for _ in range(2):
        answer = lab.http.post("/v1/images", json={"name": "Mitosis"})
    assert problem(answer, 422, "invalid-input") == ["$.name"]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"name": "x"}, "$.container_id"), ({"name": "x", "container_id": 999_999}, "$.container_id"),
        ({"name": "x", "provider": "External", "container_id": 1}, "$.container_id"),
        ({"name": "x", "provider": "Nobody"}, "$.provider"), ({"container_id": 1}, "$.name"),
    ],
)  # fmt: skip
def test_a_faulty_algorithm_is_refused(lab: Lab, body: Any, path: str) -> None:
    assert problem(lab.http.post("/v1/algorithms", json=body), 422, "invalid-input") == [path]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "$"), ({"path": "/a", "url": "http://x"}, "$"), ({"path": "relative.svs"}, "$.path"),
        ({"path": "/no/such/file.svs"}, "$.path"), ({"path": "/a\x00b"}, "$.path"), ({"filename": ""}, "$.filename"),
        ({"filename": "x" * 300}, "$.filename"), ({"filename": "x.svs", "scan_id": "abc"}, "$.scan_id"),
        ({"filename": "x.svs", "scan_id": "-1"}, "$.scan_id"), ({"filename": "x.svs", "scan_id": 5}, "$.scan_id"),
    ],
)  # fmt: skip
def test_a_faulty_scan_is_refused(lab: Lab, body: Any, path: str) -> None:
    assert problem(lab.http.post("/v1/scans", json=body), 422, "invalid-input") == [path]
    assert lab.http.get("/v1/scans").json()["items"] == []


def test_a_file_that_is_no_slide_is_refused_and_not_registered(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "x.svs").write_bytes(b"no slide")
    problem(lab.http.post("/v1/scans", json={"path": str(tmp_path / "x.svs")}), 422, "slide")
    assert lab.http.get("/v1/scans").json()["items"] == []


@pytest.mark.parametrize("url", ["ftp://x/a.svs", "nonsense", "http://127.0.0.1:1/a.svs?sig=url-s3cret", "http://"])
def test_a_url_without_a_slide_behind_it_is_refused_without_showing_its_query(lab: Lab, url: str) -> None:
    answer = lab.http.post("/v1/scans", json={"url": url})
    problem(answer, 422, "slide")
    assert "url-s3cret" not in answer.text
    assert lab.http.get("/v1/scans").json()["items"] == []


@pytest.mark.parametrize("path", ["/v1/images/x", "/v1/images/0", "/v1/jobs/-1", "/v1/scans/99999999999999999999"])
def test_an_id_that_is_none_is_refused(lab: Lab, path: str) -> None:
    (fault,) = problem(lab.http.get(path), 422, "invalid-input")
    assert fault.endswith("_id")


@pytest.mark.parametrize(
    "path",
    [
        "images/9999999",
        "containers/9999999",
        "algorithms/9999999",
        "scans/9999999",
        "jobs/9999999",
        "tasks/9999999",
        "deliveries/9999999",
    ],
)
def test_an_unknown_id_is_not_found(lab: Lab, path: str) -> None:
    assert problem(lab.http.get(f"/v1/{path}"), 404, "not-found") == []


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"name": "\\ud800"}', b'{"name": NaN}', b""])
def test_a_body_that_cannot_be_read_is_a_problem_not_a_crash(lab: Lab, body: bytes) -> None:
    answer = lab.http.post("/v1/images", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_without_end_is_cut_off(lab: Lab) -> None:
    def endless() -> Any:
        for _ in range(64):
            yield b" " * (1 << 20)

    problem(lab.http.post("/v1/images", content=b" " * (9 << 20)), 413, "too-large")
    headers = {"Content-Type": "application/json"}
    try:
        answer = lab.http.post("/v1/images", content=endless(), headers=headers)
    except httpx.TransportError:  # the server may hang up before all is sent
        return
    problem(answer, 413, "too-large")


def test_an_unreachable_registry_is_said_and_a_used_image_stays(lab: Lab) -> None:
    image = lab.world.image(lab.id)
    lab.world.container(lab.id, image)
    problem(lab.http.delete(f"/v1/images/{image.id}"), 409, "conflict")
    lab.server.registry.down = True
    try:
        problem(lab.http.delete(f"/v1/images/{lab.world.image(lab.id).id}"), 502, "registry")
    finally:
        lab.server.registry.down = False
