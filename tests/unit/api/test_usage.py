"""Usage over HTTP: a company's own, everybody's for operators, JSON and Parquet of one source."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from mhs_ray.domain.models import Role
from mhs_ray.domain.states import JobEvent
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.overview import Overview
from tests.unit.api.conftest import Lab, problem


@pytest.fixture
def used(lab: Lab, other_lab: Lab) -> tuple[Lab, Lab]:
    """Two companies, each with an attempt that ran for 100 s and ended now."""
    for one in (lab, other_lab):
        job = one.job()
        with one.world.db.write() as conn:
            ago = datetime.now(UTC) - timedelta(seconds=100)
            e = t.job_events.c
            conn.execute(sa.update(t.job_events).where(e.job_id == job.id, e.event == JobEvent.STARTED).values(at=ago))
        one.world.jobs.transition(job.id, JobEvent.EXITED, attempt=1)
        one.world.jobs.transition(job.id, JobEvent.SUCCEEDED, attempt=1)
    return lab, other_lab


def _items(lab: Lab, **params: Any) -> list[dict[str, Any]]:
    answer = lab.http.get("/v1/usage", params=params)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


def test_a_company_sees_its_own_use_and_an_operator_everybodys(used: tuple[Lab, Lab]) -> None:
    lab, other = used
    (row,) = _items(lab)
    assert (row["company_id"], row["jobs"], row["failed"]) == (lab.id, 1, 0)
    assert row["gpu_s"] == pytest.approx(100, abs=40)
    assert row["day"] == str(datetime.now(UTC).date())
    with lab.server.user(lab.id, Role.OPERATOR, "Oda") as operator:
        found = {item["company_id"] for item in operator.get("/v1/usage").json()["items"]}
    assert {lab.id, other.id} <= found


def test_the_parquet_file_has_the_same_rows(used: tuple[Lab, Lab]) -> None:
    lab, _ = used
    answer = lab.http.get("/v1/usage", params={"format": "parquet"})
    assert answer.headers["content-disposition"].startswith('attachment; filename="usage-')
    rows = pq.read_table(io.BytesIO(answer.content)).to_pylist()
    assert [{**row, "day": str(row["day"])} for row in rows] == _items(lab)


def test_the_consoles_cluster_page_shows_the_same_gpu_seconds(used: tuple[Lab, Lab]) -> None:
    lab, _ = used
    (shown,) = Overview(lab.world.db).usage(datetime.now(UTC) - timedelta(days=1), lab.id)
    assert (shown.jobs, shown.failed) == (1, 0)
    assert shown.gpu_s == sum(row["gpu_s"] for row in _items(lab))


def test_a_period_is_of_whole_days_and_of_bounded_length(used: tuple[Lab, Lab]) -> None:
    lab, _ = used
    today = datetime.now(UTC).date()
    assert len(_items(lab, since=today, until=today)) == 1
    assert _items(lab, until=today - timedelta(days=1)) == []
    assert problem(lab.http.get("/v1/usage?since=2026-03-02&until=2026-03-01"), 422, "invalid-input") == ["$.since"]
    assert problem(lab.http.get("/v1/usage?since=2001-01-01&until=2026-03-01"), 422, "invalid-input") == ["$.since"]
    for wrong in ("0001-01-01", "9999-12-31", "yesterday"):
        problem(lab.http.get(f"/v1/usage?until={wrong}"), 422, "invalid-input")
