"""What an ended job ran, for whoever runs it again."""

from __future__ import annotations

from tests.unit.api.conftest import Lab, problem


def test_an_ended_job_is_told_with_a_login_for_its_image(lab: Lab) -> None:
    job = lab.job()
    path = f"/v1/jobs/{job.id}/replay"
    problem(lab.http.get(path), 409, "conflict")
    lab.http.post(f"/v1/jobs/{job.id}/cancel")
    answer = lab.http.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found = answer.json()
    image = found["image"]
    assert image["reference"] == f"{image['registry']}/{image['repository']}@{job.image_digest}"
    assert (image["username"], image["password"]) == ("node", "pull-s3cret")
    assert (found["state"], found["scan_id"]) == ("cancelled", str(job.scan_number))
    assert found["slide"]["sha256"] == []
    assert found["results_digest"] is None


def test_who_may_not_write_or_is_of_another_company_gets_no_login(lab: Lab, other_lab: Lab) -> None:
    job = lab.job()
    lab.http.post(f"/v1/jobs/{job.id}/cancel")
    with lab.viewer() as viewer:
        problem(viewer.get(f"/v1/jobs/{job.id}/replay"), 403, "forbidden")
    problem(other_lab.http.get(f"/v1/jobs/{job.id}/replay"), 404, "not-found")
