"""The client that waits, against the same server; it shares all but its wire with the one that blocks."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from mhs_ray.client import ApiError, AsyncClient, Client, UnreachableError
from mhs_ray.client.blocking import run
from tests.fake_api import Answer, FakeApi, events, job, ok, problem

Body = Callable[[AsyncClient], Coroutine[Any, Any, Any]]


def with_client(api: FakeApi, body: Body, **options: Any) -> Any:
    async def call() -> Any:
        async with AsyncClient(api.url, "id", "secret", **options) as mhs:
            return await body(mhs)

    return asyncio.run(call())


async def every(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def test_a_list_is_read_over_all_its_pages(api: FakeApi) -> None:
    pages = [{"items": [{"id": 1}, {"id": 2}], "next_cursor": "n"}, {"items": [{"id": 3}], "next_cursor": None}]
    api.on("GET", "/v1/jobs", *map(ok, pages))
    found = with_client(api, lambda mhs: every(mhs.jobs(state=["failed", "succeeded"])))
    assert [j["id"] for j in found] == [1, 2, 3]
    assert api.seen[1].query == {"state": ["failed", "succeeded"], "cursor": ["n"], "limit": ["200"]}
    assert api.seen[0].headers["authorization"].startswith("Basic ")


def test_a_broken_connection_is_tried_again_and_then_told(api: FakeApi) -> None:
    api.on("GET", "/v1/jobs/1", Answer(drop=True), ok(job()))
    assert with_client(api, lambda mhs: mhs.wait(1))["state"] == "succeeded"
    api.on("GET", "/v1/jobs/1", Answer(drop=True))
    with pytest.raises(UnreachableError):
        with_client(api, lambda mhs: mhs.job(1), retries=0)


def test_a_refusal_is_a_problem(api: FakeApi) -> None:
    api.on("POST", "/v1/images", problem(422, "invalid-input", "$.name: is taken"))
    with pytest.raises(ApiError, match=r"\$\.name: is taken"):
        with_client(api, lambda mhs: mhs.create_image("x"))


def test_a_log_is_followed_while_other_tasks_go_on(api: FakeApi) -> None:
    data = '{"line": 0, "at": "t", "source": "stdout", "text": "x"}'
    api.on("GET", "/v1/jobs/1", ok(job()))
    api.on("GET", "/v1/jobs/1/log", events(f"id: 1-0\ndata: {data}", "event: end\ndata: {}"))

    async def body(mhs: AsyncClient) -> list[list[Any]]:
        return list(await asyncio.gather(every(mhs.follow_log(1)), every(mhs.follow_log(1))))

    assert [[line.text for line in lines] for lines in with_client(api, body)] == [["x"], ["x"]]


def test_an_upload_comes_from_a_thread_and_carries_no_credential(api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "s.svs").write_bytes(b"slide" * 500_000)
    scan = {"id": 3, "scan_id": "9", "status": "uploading", "upload_url": f"{api.url}/put?sig=abc"}
    api.on("POST", "/v1/scans", ok(scan, 201))
    api.on("PUT", "/put", Answer(201))
    api.on("POST", "/v1/scans/3/complete", ok({**scan, "status": "ready"}))
    assert with_client(api, lambda mhs: mhs.add_scan_upload(tmp_path / "s.svs"))["status"] == "ready"
    (put,) = api.calls("PUT", "/put")
    assert put.body == b"slide" * 500_000
    assert "authorization" not in put.headers


@pytest.mark.parametrize("waits", [True, False], ids=["async", "blocking"])
def test_a_debug_file_is_fetched_from_its_signed_url_without_our_credential(api: FakeApi, waits: bool) -> None:
    api.on("GET", "/v1/jobs/1/debug", Answer(307, headers={"Location": f"{api.url}/blob?sig=s3cret"}))
    api.on("GET", "/blob", Answer(200, b"PK..."))
    out = io.BytesIO()
    if waits:
        size = with_client(api, lambda mhs: mhs.save_debug_file(1, out))
    else:
        with Client(api.url, "id", "secret") as mhs:
            size = mhs.save_debug_file(1, out)
    assert (size, out.getvalue()) == (5, b"PK...")
    (blob,) = api.calls("GET", "/blob")
    assert "authorization" not in blob.headers
    api.on("GET", "/blob", Answer(drop=True))
    with Client(api.url, "id", "secret", retries=0) as mhs, pytest.raises(UnreachableError) as caught:
        mhs.save_debug_file(1, out)
    assert "s3cret" not in str(caught.value)


def test_the_blocking_client_works_inside_a_running_loop(api: FakeApi) -> None:
    api.on("GET", "/v1/images", ok({"items": [{"id": 1}, {"id": 2}], "next_cursor": None}))

    async def notebook() -> list[Any]:
        with Client(api.url, "id", "secret") as mhs:
            return list(itertools.islice(mhs.images(), 1))  # an iterator that is left early

    assert asyncio.run(notebook()) == [{"id": 1}]


def test_leaving_a_followed_log_closes_its_stream(api: FakeApi) -> None:
    data = '{"line": %d, "at": "t", "source": "stdout", "text": "x"}'
    api.on("GET", "/v1/jobs/1", ok(job(state="running")))
    api.on("GET", "/v1/jobs/1/log", events(*(f"id: 1-{i}\ndata: {data % i}" for i in range(9))))
    with Client(api.url, "id", "secret") as mhs:
        lines = mhs.follow_log(1)
        assert next(lines).number == 0
        lines.close()  # type: ignore[attr-defined]
        assert mhs.job(1)["state"] == "running"
        wire: Any = mhs.calls.http.wire
        assert wire._http._transport._pool.connections == [] or all(
            c.is_idle() for c in wire._http._transport._pool.connections
        )


def test_a_call_that_waits_for_a_loop_is_a_bug_that_is_told() -> None:
    with pytest.raises(RuntimeError, match="event loop"):
        run(asyncio.sleep(1))
