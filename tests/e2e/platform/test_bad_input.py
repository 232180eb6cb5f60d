"""Requests that cannot be are refused with the field or the cause, and leave nothing."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.e2e.platform.harness import Platform

LISTS = ("images", "containers", "algorithms", "scans", "tasks", "jobs")


def rows(platform: Platform) -> dict[str, int]:
    """Return how many rows each list has."""
    return {name: len(platform.get(f"/v1/{name}", limit=500)["items"]) for name in LISTS}


@pytest.fixture(scope="module")
def known(platform: Platform, zoo: int, scan: int) -> dict[str, Any]:
    """Ids and names that bad requests can be made of."""
    waiting = platform.post("/v1/images", {"name": "Never pushed"})["id"]
    name = platform.algorithm(zoo, "Posts", env=[{"name": "BEHAVIOUR", "value": "post"}])
    return {"image": zoo, "unpushed": waiting, "scan": scan, "algorithm": name}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("containers", {"image_id": "image", "instance_type": "p5.48xlarge"}, 422, "$.instance_type"),
        ("containers", {"image_id": "unpushed", "instance_type": "g4dn.xlarge"}, 422, "$.image_id"),
        ("containers", {"image_id": 999_999, "instance_type": "g4dn.xlarge"}, 422, "$.image_id"),
        ("containers", {"image_id": "seven", "instance_type": "g4dn.xlarge"}, 422, "$.image_id"),
        (
            "containers",
            {"image_id": "image", "instance_type": "g4dn.xlarge", "time_limit_s": 5401},
            422,
            "time_limit_s",
        ),
        ("algorithms", {"name": "x", "container_id": 999_999}, 422, "$.container_id"),
        ("tasks", {"algorithm": "no such", "scan_ids": ["scan"]}, 422, "$.algorithm"),
        ("tasks", {"algorithm": "algorithm", "scan_ids": [999_999]}, 422, "$.scan_ids[0]"),
        ("tasks", {"algorithm": "algorithm", "scan_ids": []}, 422, "$.scan_ids"),
        ("tasks", {"algorithm": "algorithm", "scan_ids": ["scan"], "task_id": "bm90IGEgdGFzaw=="}, 422, "$.task_id"),
        ("images", {"name": ""}, 422, "$.name"),
        ("images", {"title": "x"}, 422, "title"),
        ("webhook", {"scans": {"1": "ftp://x"}, "task_id": "1", "model_name": "algorithm"}, 422, "$.scans"),
        ("webhook", {"scans": {"1": "https://x/y"}, "task_id": "1", "model_name": "no such"}, 422, "$.model_name"),
        ("webhook", {"scans": {}, "model_name": "algorithm"}, 422, "$.task_id"),
    ],
)
def test_a_bad_request_names_its_fault_and_leaves_no_row(
    platform: Platform, known: dict[str, Any], path: str, body: dict[str, Any], status: int, words: str
) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(v) for v in value]
        return known.get(value, value) if isinstance(value, str) else value

    before = rows(platform)
    answer = platform.api.post(f"/v1/{path}", json={key: filled(value) for key, value in body.items()})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.json()["type"]
    assert words in answer.text
    assert rows(platform) == before


@pytest.mark.parametrize("name", [*LISTS, "tasks/1/results"])
def test_an_unknown_id_is_a_404_that_says_of_what(platform: Platform, name: str) -> None:
    answer = platform.api.get(f"/v1/{name}" if "/" in name else f"/v1/{name}/999999")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("application/problem+json")


def test_api_keys_are_traded_for_a_token_as_the_template_does_locally(platform: Platform) -> None:
    url = platform.endpoints["api_url"]
    keys = platform.home / "keys"
    client, secret = ((keys / name).read_text().strip() for name in ("client-id", "client-secret"))
    ways: list[dict[str, Any]] = [
        {"auth": (client, secret), "data": {"grant_type": "client_credentials"}},
        {"data": {"grant_type": "client_credentials", "client_id": client, "client_secret": secret}},
    ]
    for way in ways:
        answer = httpx.post(f"{url}/api/v3/token", trust_env=False, **way)
        assert answer.status_code == 200, answer.text
        headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        assert httpx.get(f"{url}/v1/jobs", headers=headers, trust_env=False).status_code == 200
    assert httpx.post(f"{url}/api/v3/token", auth=(client, "wrong"), trust_env=False).status_code == 401
    assert httpx.get(f"{url}/v1/jobs", trust_env=False).status_code == 401
