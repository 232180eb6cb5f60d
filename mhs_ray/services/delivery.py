"""The courier: delivers results to Techcyte from the outbox, never twice."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Final, cast

from mhs_ray.domain.models import Principal
from mhs_ray.ports import BlobStore
from mhs_ray.results.outbox import (
    Decision,
    DeliveryState,
    Kind,
    Pace,
    after_looking,
    after_sending,
    details_of,
    same_json,
)
from mhs_ray.results.techcyte import Techcyte
from mhs_ray.store.sql.deliveries import Claimed, Deliveries, Delivery, ResultBody, token_ended

log = logging.getLogger(__name__)

LEASE: Final = timedelta(seconds=60)
_LOOK_S: Final = 30.0
_DB_BACK_S: Final = 2.0
_SPOOL: Final = 4 << 20


OnTry = Callable[[Claimed, Decision, int | None, datetime], None]
"""Told of each try once it is stored: what came of it, the answer's status, when it began. Must not raise."""


class DeliveryService:
    """What people decide about deliveries. wake: tells the courier; must not block."""

    def __init__(self, deliveries: Deliveries, wake: Callable[[], None]) -> None:
        self.deliveries = deliveries
        self._wake = wake

    def retry(self, who: Principal, delivery_id: int) -> Delivery:
        """Send what is parked or refused (again). Raises NotFoundError, ConflictError."""
        decided = self.deliveries.decide(who.company_id, delivery_id, who.name, DeliveryState.PENDING)
        self._wake()
        return decided

    def discard(self, who: Principal, delivery_id: int) -> Delivery:
        """Give up what is parked or refused. Raises NotFoundError, ConflictError."""
        return self.deliveries.decide(who.company_id, delivery_id, who.name, DeliveryState.DISCARDED)


class Courier:
    """Claims what is due, sends or asks, and writes down what came of it.

    Any number of couriers may work on one database, and each may die at any moment: a claim that its owner did not
    settle is taken for a request that may have been sent.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        blobs: BlobStore,
        techcyte: Techcyte,
        pace: Pace,
        slots: int = 4,
        on_try: OnTry = lambda *_: None,
    ) -> None:
        self._deliveries, self._blobs, self._techcyte, self._pace = deliveries, blobs, techcyte, pace
        self._slots, self._on_try = slots, on_try
        self._woken, self._closing = threading.Event(), threading.Event()
        self._at_work: dict[int, Claimed] = {}
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------ waiting

    def start(self) -> None:
        """Work in a thread until `close`."""
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look at the outbox now."""
        self._woken.set()

    def close(self) -> None:
        """Take nothing more and wait for what is under way."""
        self._closing.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with ThreadPoolExecutor(self._slots, thread_name_prefix="courier") as pool:
            while not self._closing.is_set():
                self._woken.clear()
                try:
                    pause = self._turn(pool)
                except Exception:
                    log.exception("the outbox could not be looked at; it is tried again")
                    pause = _DB_BACK_S
                self._woken.wait(pause)

    def _turn(self, pool: ThreadPoolExecutor) -> float:
        now = datetime.now(UTC)
        at_work = list(self._at_work.values())
        if at_work:
            self._deliveries.renew(at_work, now + LEASE)
        free = self._slots - len(at_work)
        for claimed in self._deliveries.claim(free, now, LEASE) if free else ():
            self._at_work[claimed.id] = claimed
            pool.submit(self._until_stored, claimed).add_done_callback(lambda f, i=claimed.id: self._done(i, f))  # type: ignore[misc]
        longest = LEASE.total_seconds() / 3 if self._at_work else _LOOK_S
        if len(self._at_work) >= self._slots:
            return longest
        due = self._deliveries.next_due()
        wait = longest if due is None else (due - datetime.now(UTC)).total_seconds()
        # Due, yet not taken: another of its task is under way, and its end wakes us, or it is another courier's.
        return min(longest, wait if wait > 0 else 1.0) + 0.01

    def _done(self, delivery_id: int, future: Future[None]) -> None:
        self._at_work.pop(delivery_id, None)
        if error := future.exception():
            log.error("delivery %s broke off: %s", delivery_id, type(error).__name__, exc_info=error)
        self._woken.set()

    def _until_stored(self, claimed: Claimed) -> None:
        began = datetime.now(UTC)
        decision, status = self._work(claimed)
        while True:
            try:
                self._settle(claimed, decision, status)
                self._on_try(claimed, decision, status, began)
                return
            except Exception:
                log.exception("what became of delivery %s could not be stored; it is tried again", claimed.id)
                if self._closing.wait(_DB_BACK_S):
                    return

    # ------------------------------------------------------------ working

    def work(self, now: datetime, limit: int = 100) -> int:
        """Do what is due at `now`, one after the other; return how much that was."""
        claims = self._deliveries.claim(limit, now, LEASE)
        for claimed in claims:
            self._settle(claimed, *self._work(claimed, now))
        return len(claims)

    def _settle(self, claimed: Claimed, decision: Decision, status: int | None) -> None:
        now = datetime.now(UTC)
        if not self._deliveries.settle(claimed, decision, status, now):
            log.warning(
                "delivery %s was taken over by another courier; what came of it is left to that one", claimed.id
            )
        elif decision.state in (DeliveryState.PARKED, DeliveryState.REFUSED):
            log.warning(
                "delivery %s of task %s is %s: %s", claimed.id, claimed.task_number, decision.state, decision.detail
            )

    def _work(self, claimed: Claimed, now: datetime | None = None) -> tuple[Decision, int | None]:
        now = now or datetime.now(UTC)
        if claimed.before is DeliveryState.UNKNOWN and claimed.kind is not Kind.TRIAGE:
            return self._look(claimed, now)
        over = token_ended(claimed.token, now)
        if over is not None:
            return over, None
        try:
            with self._body(claimed) as body:
                sent = self._techcyte.send(claimed.kind, claimed.task_number, claimed.token, body)
        except Exception as error:  # nothing was sent: the body could not be made
            log.exception("delivery %s: its body could not be made", claimed.id)
            pause = self._pace.delay(claimed.tries, claimed.id)
            return Decision(
                DeliveryState.PENDING, f"it could not be put together ({type(error).__name__})", pause
            ), None
        return after_sending(claimed.kind, sent, claimed.tries, self._pace, claimed.id), sent.status

    def _look(self, claimed: Claimed, now: datetime) -> tuple[Decision, int | None]:
        looked = self._techcyte.look(claimed.task_number, claimed.token)
        wanted = _details(claimed.result, claimed.body)
        others = self._deliveries.others(claimed)
        alike = [certain for result, body, certain in others if same_json(_details(result, body), wanted)]
        decision = after_looking(
            looked,
            wanted,
            known=sum(alike),
            doubtful=len(alike) - sum(alike),
            since_sent=now - (claimed.sent_at or now),
            looks=claimed.looks,
            pace=self._pace,
            seed=claimed.id,
        )
        return decision, looked.status

    def _body(self, claimed: Claimed) -> BinaryIO:
        spool = cast(BinaryIO, tempfile.SpooledTemporaryFile(_SPOOL))  # noqa: SIM115 (the caller closes it)
        try:
            if claimed.result is None:
                triage = claimed.kind is Kind.TRIAGE
                whole = claimed.body if triage else {"caseResults": claimed.body, "scanResults": []}
                spool.write(json.dumps(whole).encode())
            else:
                self._write(claimed.result, spool)
        except BaseException:
            spool.close()
            raise
        return spool

    def _write(self, result: ResultBody, out: BinaryIO) -> None:
        """Write the request; the annotations go in as the text that was posted."""
        scan: dict[str, Any] = {"scanId": str(result.scan_number)}
        if result.report is not None or result.external_url is not None:
            url = {} if result.external_url is None else {"external_url": result.external_url}
            scan["results"] = {**(result.report or {}), **url}
        if result.qc_fail_reasons is not None:
            scan["qcFailReasons"] = list(result.qc_fail_reasons)
        if result.workflow is not None:
            scan["workflow"] = result.workflow
        head = json.dumps(scan)
        case = "" if result.case_results is None else f'"caseResults": {json.dumps(result.case_results)}, '
        out.write(f'{{{case}"scanResults": [{head[:-1]}'.encode())
        if result.geojson_key is not None:
            out.write(b', "geojson": ')
            with self._blobs.open(result.geojson_key) as stored:
                shutil.copyfileobj(stored, out, 1 << 20)
        out.write(b"}]}")


def _details(result: ResultBody | None, body: Mapping[str, Any] | None) -> dict[str, Any]:
    if result is None:
        return details_of(None, None, body)
    return details_of(result.report, result.external_url, result.case_results)
