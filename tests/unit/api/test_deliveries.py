"""The outbox over HTTP, and intake that stops before room runs out."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from api.webhook_example import WEBHOOK_EXAMPLE
from mhs_ray.services.room import Room
from mhs_ray.store.sql import tables as t
from tests.unit.api.conftest import Lab


@pytest.fixture
def delivery(lab: Lab) -> int:
    """A result of Techcyte's task that is to be delivered; nobody delivers here."""
    lab.world.algorithm(lab.id, name="Mitosis count")
    job_id = lab.http.post("/webhook", json=WEBHOOK_EXAMPLE).json()["job_ids"][0]
    job = lab.run(job_id)
    with lab.server.container(job) as container:
        body = {"scanResults": [{"scanId": str(job.scan_number), "results": {"score": 1}}]}
        assert container.post(f"/api/v3/external/results/{job.task_number}", json=body).status_code == 201
    (found,) = lab.http.get("/v1/deliveries").json()["items"]
    assert (found["state"], found["kind"], found["task_id"], found["job_id"]) == ("pending", "result", "185714", job_id)
    return int(found["id"])


def _state(lab: Lab, delivery: int, state: str) -> None:
    with lab.server.core.db.write() as conn:
        conn.execute(sa.update(t.deliveries).where(t.deliveries.c.id == delivery).values(state=state))


def test_a_person_decides_about_what_was_refused(lab: Lab, delivery: int) -> None:
    assert lab.http.post(f"/v1/deliveries/{delivery}/retry").status_code == 409
    _state(lab, delivery, "refused")
    assert lab.http.post(f"/v1/deliveries/{delivery}/discard").json()["state"] == "discarded"
    assert lab.http.post(f"/v1/deliveries/{delivery}/retry").json()["state"] == "pending"
    assert lab.http.get(f"/v1/deliveries/{delivery}").json()["decided_by"] == "Ada"


def test_deliveries_are_listed_by_state_and_task(lab: Lab, delivery: int) -> None:
    def ids(query: str) -> list[int]:
        return [d["id"] for d in lab.http.get(f"/v1/deliveries?{query}").json()["items"]]

    assert ids("state=pending&state=parked") == [delivery]
    assert ids("state=parked") == []
    assert ids("task_id=dGFzazoxODU3MTQ=") == [delivery]
    assert ids("task_id=1") == []
    assert lab.http.get("/v1/deliveries?state=gone").status_code == 422


def test_a_delivery_is_its_companys_alone_and_a_viewer_only_looks(lab: Lab, delivery: int) -> None:
    with lab.server.user(lab.world.company()) as stranger:
        assert stranger.get("/v1/deliveries").json()["items"] == []
        for path in (f"/v1/deliveries/{delivery}", f"/v1/deliveries/{delivery + 1000}"):
            assert stranger.get(path).status_code == 404
        assert stranger.post(f"/v1/deliveries/{delivery}/discard").status_code == 404
    with lab.viewer() as viewer:
        assert viewer.get(f"/v1/deliveries/{delivery}").status_code == 200
        assert viewer.post(f"/v1/deliveries/{delivery}/discard").status_code == 403


def test_new_work_waits_while_room_is_short_and_results_of_accepted_work_are_taken(lab: Lab, monkeypatch: Any) -> None:
    lab.world.algorithm(lab.id, name="Mitosis count")
    job_id = lab.http.post("/webhook", json=WEBHOOK_EXAMPLE).json()["job_ids"][0]
    job = lab.run(job_id)
    core = lab.server.core
    limits = core.settings.blobs.model_copy(update={"min_free": 1 << 60})
    monkeypatch.setattr(Room, "is_known", False)
    monkeypatch.setattr(core.room, "_settings", limits)

    def refused(answer: httpx.Response) -> None:
        assert (answer.status_code, answer.json()["type"]) == (507, "/problems/storage-full")
        assert int(answer.headers["Retry-After"]) > 0

    refused(lab.http.post("/webhook", json={**WEBHOOK_EXAMPLE, "task_id": "dGFzazo5"}))
    refused(lab.http.post("/v1/scans", json={"filename": "a.svs"}))
    refused(lab.http.post(f"/v1/jobs/{job_id}/rerun"))
    with lab.server.container(job) as container:
        geojson = {"type": "FeatureCollection", "features": []}
        body = {"scanResults": [{"scanId": str(job.scan_number), "geojson": geojson}]}
        assert container.post(f"/api/v3/external/results/{job.task_number}", json=body).status_code == 201
    monkeypatch.undo()
    assert lab.http.post("/webhook", json={**WEBHOOK_EXAMPLE, "task_id": "dGFzazo5"}).status_code == 201


def test_the_last_of_the_quota_is_for_results(lab: Lab, monkeypatch: Any) -> None:
    core = lab.server.core
    core.blobs.put("filler/x", b"x" * 960)
    used = core.blobs.used_bytes()  # type: ignore[attr-defined]
    limits = type(core.blobs.limits)(quota_bytes=used + 10, min_free_bytes=0)  # type: ignore[attr-defined]
    monkeypatch.setattr(core.blobs, "limits", limits)
    monkeypatch.setattr(Room, "is_known", False)
    answer = lab.http.post("/v1/scans", json={"filename": "a.svs"})
    assert answer.status_code == 507
    assert "quota" in answer.json()["detail"]
    core.blobs.put("filler/y", b"12345")
    for key in ("filler/x", "filler/y"):
        core.blobs.delete(key)
