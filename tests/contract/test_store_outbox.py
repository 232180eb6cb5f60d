"""The outbox on both databases, against a Techcyte that speaks real HTTP and appends what it is sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import sqlalchemy as sa

from mhs_ray.domain.errors import ConflictError, NotFoundError
from mhs_ray.results.outbox import Decision, DeliveryState, Kind, Pace
from mhs_ray.results.techcyte import TechcyteHttp
from mhs_ray.services.delivery import LEASE, Courier
from mhs_ray.services.gateway import GatewayService
from mhs_ray.store.blobs.local import LocalBlobs
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.deliveries import Deliveries, Delivery
from mhs_ray.store.sql.results import Poster
from mhs_ray.store.sql.tasks import RequestedScan
from tests.store_fixtures import World
from tests.techcyte_server import FakeTechcyte, fake_techcyte

D = DeliveryState
HUNDRED = timedelta(seconds=100)


def _token(hours: float = 1) -> str:
    return jwt.encode({"exp": datetime.now(UTC) + timedelta(hours=hours), "n": time.time()}, "k" * 32, "HS256")


@dataclass
class Way:
    """A gateway, an outbox and Techcyte's side."""

    world: World
    techcyte: FakeTechcyte
    folder: Path
    company: int = field(init=False)
    algorithm: Any = field(init=False)

    def __post_init__(self) -> None:
        self.company = self.world.company()
        self.algorithm = self.world.algorithm(self.company)
        blobs = LocalBlobs(self.folder / "blobs", "http://127.0.0.1:1", b"k" * 32)
        self.gateway = GatewayService(self.world.results, blobs)
        self.deliveries = Deliveries(self.world.db)
        self.client = self.http(self.techcyte.url)
        self.courier = Courier(self.deliveries, blobs, self.client, Pace())
        self.blobs = blobs

    @staticmethod
    def http(url: str) -> TechcyteHttp:
        return TechcyteHttp(url, ca=None, timeout=timedelta(seconds=0.4), deadline=timedelta(seconds=30))

    def task(self, number: int = 5, scans: int = 1, token: str | None = None, origin: str = "techcyte") -> list[int]:
        """Take Techcyte's request on scans 100, 101, …; return the ids of its jobs."""
        wanted = tuple(
            RequestedScan(number=100 + i, urls=(f"https://s3.example.com/{i}",), path="$") for i in range(scans)
        )
        submission = self.world.submission(self.company, self.algorithm)
        values = {"number": number, "origin": origin, "techcyte_jwt": token or _token(), "scans": wanted}
        return list(self.world.tasks.submit(type(submission)(**{**_fields(submission), **values})).job_ids)

    def post(self, body: bytes, number: int = 5) -> int:
        return self.gateway.post(Poster(self.company, number), body)

    def all(self) -> list[Delivery]:
        page = self.deliveries.page(self.company, cursor=None, limit=100, task_number=None)
        return list(reversed(page.items))

    def one(self) -> Delivery:
        (found,) = self.all()
        return found

    def work(self, later: timedelta = timedelta(0)) -> int:
        return self.courier.work(datetime.now(UTC) + later)


def _fields(submission: Any) -> dict[str, Any]:
    return {name: getattr(submission, name) for name in submission.__dataclass_fields__}


def _body(scan: int = 100, **values: Any) -> bytes:
    import json

    scan_result = {"scanId": str(scan), **(values or {"results": {"score": 0.5}})}
    return json.dumps({"scanResults": [scan_result]}).encode()


@pytest.fixture
def techcyte() -> Iterator[FakeTechcyte]:
    with fake_techcyte(hang_s=0.8) as found:
        yield found


@pytest.fixture
def way(world: World, techcyte: FakeTechcyte, tmp_path: Path) -> Iterator[Way]:
    found = Way(world, techcyte, tmp_path)
    yield found
    found.client.close()


GEOJSON = (
    '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {"annotation_type": "a"}, '
    '"geometry": {"type": "Point", "coordinates": [1.50, 2]}}]}'
)


def test_everything_that_was_posted_arrives_once_with_the_tasks_own_token(way: Way) -> None:
    token = _token()
    way.task(token=token)
    body = (
        '{"caseResults": {"triage": {"category": "high", "score": 0.9}}, "scanResults": [{"scanId": "100", "results": '
        '{"summary": "µ", "external_url": "https://x"}, "geojson": ' + GEOJSON + ', "qcFailReasons": [], '
        '"workflow": {"model_name": "m", "report": {"type": "Basic", "results": [], "segments": []}}}]}'
    )
    assert way.post(body.encode()) == 1
    assert way.post(body.encode()) == 0
    assert way.work() == 1
    assert way.work(HUNDRED) == 0
    import json

    assert way.techcyte.stored == [("5", token, json.loads(body))]
    done = way.one()
    assert (done.state, done.tries, done.status_code, done.scan_number) == (D.DELIVERED, 1, 201, 100)


def test_nothing_of_our_own_tasks_or_of_debug_requests_is_delivered(way: Way) -> None:
    way.task(number=5, origin="local")
    way.post(_body())
    submission = way.world.submission(way.company, way.algorithm)
    wanted = (RequestedScan(number=300, urls=("https://s3.example.com/x",), path="$"),)
    way.world.tasks.submit(
        type(submission)(**{**_fields(submission), "number": 6, "origin": "techcyte", "scans": wanted})
    )
    way.post(_body(300), number=6)
    assert way.all() == []


def test_a_platform_that_is_down_is_tried_again_and_gets_it_once(way: Way) -> None:
    way.task()
    way.post(_body())
    way.courier._techcyte = way.http("http://127.0.0.1:9")
    way.work()
    waiting = way.one()
    assert (waiting.state, waiting.tries) == (D.PENDING, 1)
    assert "cannot be reached" in waiting.detail
    assert way.work() == 0  # not before its time
    way.courier._techcyte = way.client
    way.work(HUNDRED)
    assert way.techcyte.times() == {("5", "100"): 1}


def test_a_name_that_does_not_resolve_and_a_server_without_tls_have_got_nothing(way: Way) -> None:
    way.task()
    way.post(_body())
    for i, url in enumerate(("http://no-such-host.invalid", way.techcyte.url.replace("http:", "https:"))):
        way.courier._techcyte = way.http(url)
        assert way.work(HUNDRED * (i + 1)) == 1
        assert way.one().state is D.PENDING
    assert way.techcyte.requests == 0


@pytest.mark.parametrize("fault", ["500", "hang", "reset", "503"])
def test_what_was_not_stored_is_sent_again_after_asking(way: Way, fault: Any) -> None:
    way.task()
    way.post(_body())
    way.techcyte.script(fault)
    way.work()
    assert way.one().state is D.UNKNOWN
    way.work(timedelta(seconds=10))
    assert way.one().state is D.UNKNOWN  # it may still be on its way into Techcyte's store
    way.work(HUNDRED)
    assert way.one().state is D.PENDING
    way.work(HUNDRED)
    assert way.one().state is D.DELIVERED
    assert way.techcyte.times() == {("5", "100"): 1}


@pytest.mark.parametrize("fault", ["500 after storing", "hang after storing"])
def test_what_was_stored_without_an_answer_is_found_and_never_sent_again(way: Way, fault: Any) -> None:
    way.task(scans=2)
    way.post(_body(100))
    way.techcyte.script(fault)
    way.work()
    assert way.one().state is D.UNKNOWN
    way.post(_body(101))  # of the same content: it waits until it is clear whose is there
    way.work(timedelta(seconds=10))
    assert [d.state for d in way.all()] == [D.DELIVERED, D.PENDING]
    way.work(timedelta(seconds=10))
    assert [d.state for d in way.all()] == [D.DELIVERED, D.DELIVERED]
    assert way.techcyte.times() == {("5", "100"): 1, ("5", "101"): 1}


def test_of_two_results_with_the_same_content_the_second_ones_timeout_is_told_from_the_first(way: Way) -> None:
    way.task(scans=2)
    way.post(_body(100))
    way.work()
    way.post(_body(101))
    way.techcyte.script("hang")
    way.work()
    way.work(HUNDRED)
    assert [d.state for d in way.all()] == [D.DELIVERED, D.PENDING]


def test_a_refusal_is_kept_with_its_answer_and_without_the_token(way: Way) -> None:
    token = _token()
    way.task(token=token)
    way.post(_body())
    way.techcyte.script("422")
    way.work()
    refused = way.one()
    assert (refused.state, refused.status_code) == (D.REFUSED, 422)
    assert '"no: …"' in refused.detail
    assert token not in refused.detail
    assert way.work(HUNDRED * 100) == 0


def test_a_person_sends_or_gives_up_what_was_refused_and_nothing_else(way: Way) -> None:
    way.task()
    way.post(_body())
    with pytest.raises(ConflictError):
        way.deliveries.decide(way.company, way.one().id, "ann", D.PENDING)
    way.techcyte.script("401")
    way.work()
    delivery = way.one().id
    with pytest.raises(NotFoundError):
        way.deliveries.decide(way.world.company(), delivery, "eve", D.PENDING)
    assert way.deliveries.decide(way.company, delivery, "ann", D.DISCARDED).state is D.DISCARDED
    assert way.work(HUNDRED) == 0
    assert way.deliveries.decide(way.company, delivery, "ann", D.PENDING).decided_by == "ann"
    way.work(HUNDRED)
    assert way.one().state is D.DELIVERED
    for state in (D.PENDING, D.DISCARDED):
        with pytest.raises(ConflictError):
            way.deliveries.decide(way.company, delivery, "ann", state)
    assert way.techcyte.times() == {("5", "100"): 1}


def test_without_anything_to_know_it_by_an_unanswered_result_waits_for_a_person(way: Way) -> None:
    way.task()
    way.post(_body(qcFailReasons=["blurry"]))
    way.techcyte.script("hang")
    way.work()
    way.work(HUNDRED)
    assert way.one().state is D.PARKED
    assert "recognised" in way.one().detail


def test_an_ended_token_is_said_at_once_and_a_new_request_of_the_task_renews_it(way: Way) -> None:
    way.task(token=_token(-1))
    way.post(_body())
    way.work()
    assert way.one().state is D.PARKED
    assert "token for this task ended" in way.one().detail
    assert way.techcyte.requests == 0
    fresh = _token(2)
    way.task(token=fresh)
    way.work()
    assert way.one().state is D.DELIVERED
    assert way.techcyte.stored[0][1] == fresh
    way.task(token=_token(1))  # an older one changes nothing
    with way.world.db.read() as conn:
        sealed = conn.execute(sa.select(t.tasks.c.techcyte_jwt)).scalar_one()
    assert way.world.db.vault.open(sealed) == fresh


def test_a_courier_that_dies_while_it_sends_leaves_a_question_not_a_second_request(way: Way) -> None:
    way.task()
    way.post(_body())
    now = datetime.now(UTC)
    (claimed,) = way.deliveries.claim(10, now, LEASE)
    with way.courier._body(claimed) as body:
        way.client.send(claimed.kind, claimed.task_number, claimed.token, body)  # and then it dies
    assert way.deliveries.claim(10, now + LEASE / 2, LEASE) == []
    way.work(LEASE * 2)
    assert way.one().state is D.DELIVERED
    assert way.techcyte.times() == {("5", "100"): 1}
    assert not way.deliveries.settle(claimed, Decision(D.PENDING, "late"), None, now)
    assert way.one().state is D.DELIVERED


def test_a_renewed_claim_is_nobody_elses(way: Way) -> None:
    way.task()
    way.post(_body())
    now = datetime.now(UTC)
    claims = way.deliveries.claim(10, now, LEASE)
    way.deliveries.renew(claims, now + 3 * LEASE)
    assert way.deliveries.claim(10, now + 2 * LEASE, LEASE) == []


def test_triage_is_set_to_its_newest_values_whatever_comes_between(way: Way) -> None:
    way.task()
    poster = Poster(way.company, 5)
    way.gateway.patch_case(poster, b'{"triage_category": "high"}')
    way.techcyte.script("500")
    way.work()
    assert way.one().state is D.PENDING
    way.gateway.patch_case(poster, b'{"triage_score": 2.5}')
    (claimed,) = way.deliveries.claim(10, datetime.now(UTC), LEASE)
    way.gateway.patch_case(poster, b'{"triage_category": "low"}')  # while it is sent
    way.deliveries.settle(claimed, Decision(D.DELIVERED, ""), 204, datetime.now(UTC))
    assert way.one().state is D.PENDING
    way.work()
    assert way.one().state is D.DELIVERED
    assert way.techcyte.triage == {"5": {"triage_category": "low", "triage_score": 2.5}}
    way.gateway.patch_case(poster, b"{}")
    assert way.one().state is D.DELIVERED


def test_case_results_without_a_scan_are_delivered_once(way: Way) -> None:
    way.task()
    for _ in range(2):
        way.post(b'{"caseResults": {"mitosisCount": 4}, "scanResults": []}')
    way.work()
    assert [d.kind for d in way.all()] == [Kind.CASE]
    assert [body for _, _, body in way.techcyte.stored] == [{"caseResults": {"mitosisCount": 4}, "scanResults": []}]


def _end(way: Way, job_id: int) -> None:
    with way.world.db.write() as conn:
        conn.execute(sa.update(t.jobs).where(t.jobs.c.id == job_id).values(state="succeeded"))


def test_the_result_of_a_rerun_waits_for_a_person_and_the_same_result_is_not_sent_again(way: Way) -> None:
    (job,) = way.task()
    way.post(_body())
    way.work()
    _end(way, job)
    again = way.world.jobs.rerun(way.company, job, "ann")
    assert way.post(_body()) == 1  # stored as the rerun's, yet it is what Techcyte has already
    assert len(way.all()) == 1
    _end(way, again)
    way.world.jobs.rerun(way.company, again, "ann")
    way.post(_body(results={"score": 0.7}))
    assert [d.state for d in way.all()] == [D.DELIVERED, D.PARKED]
    assert way.work(HUNDRED) == 0
    way.deliveries.decide(way.company, way.all()[1].id, "ann", D.PENDING)
    way.work(HUNDRED)
    assert way.techcyte.times() == {("5", "100"): 2}


def _until(done: Callable[[], bool], limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_couriers_with_faults_deliver_everything_once(way: Way) -> None:
    faults: list[Any] = ["ok", "500", "500 after storing", "429", "hang after storing", "ok", "reset", "503"] * 10
    way.techcyte.script(*faults[:20])
    pace = Pace(timedelta(milliseconds=10), timedelta(milliseconds=50), settle=timedelta(seconds=1))
    couriers = [Courier(Deliveries(way.world.db), way.blobs, way.http(way.techcyte.url), pace) for _ in range(2)]
    for courier in couriers:
        courier.start()
    for number in range(1, 13):
        way.task(number=number)
        way.post(_body(results={"score": number}), number=number)
        for courier in couriers:
            courier.wake()
    _until(lambda: all(d.state is D.DELIVERED for d in way.all()))
    for courier in couriers:
        courier.close()
    assert way.techcyte.times() == {(str(n), "100"): 1 for n in range(1, 13)}
