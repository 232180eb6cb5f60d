"""The outbox to Techcyte as rows: written with what is to be delivered, in one transaction.

A delivery is claimed before anything is sent; a claim whose owner died is a request that nobody knows the end of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from mhs_ray.domain.errors import ConflictError
from mhs_ray.results.outbox import FOR_PEOPLE, Decision, DeliveryState, Kind, token_ends
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database, Lock
from mhs_ray.store.sql.scope import Page, Scoped

_OPEN = sa.text("deliveries.state IN ('pending', 'sending', 'unknown')")  # as the partial index says it


@dataclass(frozen=True, slots=True)
class Delivery:
    """One line of the outbox, for people."""

    id: int
    task_number: int
    scan_number: int | None
    job_id: int | None
    kind: Kind
    state: DeliveryState
    detail: str
    tries: int
    status_code: int | None
    not_before: datetime
    sent_at: datetime | None
    ended_at: datetime | None
    decided_by: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ResultBody:
    """What a stored result says, as it is posted."""

    scan_number: int
    report: Mapping[str, Any] | None
    external_url: str | None
    case_results: Mapping[str, Any] | None
    qc_fail_reasons: Sequence[str] | None
    workflow: Mapping[str, Any] | None
    geojson_key: str | None


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that its claimer may work on. before: PENDING is to be sent, UNKNOWN to be asked for."""

    id: int
    company_id: int
    task_number: int
    kind: Kind
    before: DeliveryState
    version: int
    tries: int
    looks: int
    sent_at: datetime | None
    token: str = field(repr=False)
    body: Mapping[str, Any] | None
    result: ResultBody | None


class Deliveries:
    """The outbox of all companies; people's calls name theirs."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # ------------------------------------------------------------ for people

    def page(
        self, company_id: int, *, cursor: str | None, limit: int, states: Sequence[str] = (), task_number: int | None
    ) -> Page[Delivery]:
        """Return a page, newest first."""
        filters: list[sa.ColumnElement[bool]] = []
        if states:
            filters.append(t.deliveries.c.state.in_(states))
        if task_number is not None:
            filters.append(t.tasks.c.number == task_number)
        with self._db.read() as conn:
            scope = Scoped(conn, company_id)
            return scope.page(_query(), t.deliveries, filters=filters, cursor=cursor, limit=limit).map(_delivery)

    def get(self, company_id: int, delivery_id: int) -> Delivery:
        """Return one. Raises NotFoundError."""
        with self._db.read() as conn:
            Scoped(conn, company_id).get(t.deliveries, delivery_id, "delivery")
            return _delivery(conn.execute(_query().where(t.deliveries.c.id == delivery_id)).one())

    def decide(self, company_id: int, delivery_id: int, by: str, state: DeliveryState) -> Delivery:
        """Take a person's word: PENDING sends it (again), DISCARDED gives it up. Raises ConflictError."""
        with self._db.write() as conn:
            row = Scoped(conn, company_id).get(t.deliveries, delivery_id, "delivery")
            allowed = FOR_PEOPLE | ({DeliveryState.DISCARDED} if state is DeliveryState.PENDING else set())
            changed = conn.execute(
                sa.update(t.deliveries)
                .where(t.deliveries.c.id == delivery_id, t.deliveries.c.state.in_(sorted(allowed)))
                .values(
                    state=state,
                    detail=f"{'sent again' if state is DeliveryState.PENDING else 'given up'} on the word of {by}",
                    decided_by=by,
                    not_before=datetime.now(UTC),
                    looks=0,
                    ended_at=datetime.now(UTC) if state is DeliveryState.DISCARDED else None,
                )
            )
            if not changed.rowcount:
                raise ConflictError(
                    f"delivery {delivery_id} is {row.state}; a person decides only about one that is parked or refused"
                )
        return self.get(company_id, delivery_id)

    # ------------------------------------------------------------ for the courier

    def claim(self, limit: int, now: datetime, lease: timedelta) -> list[Claimed]:
        """Take up to `limit` due deliveries, oldest first, for `lease`.

        One of whom the claim passed without a word is taken as UNKNOWN: its request may have been sent.
        """
        d = t.deliveries.c
        with self._db.write() as conn:
            self._db.lock(conn, Lock.DELIVER)
            busy = t.deliveries.alias("busy")
            # One at a time of each task: else nobody could tell whose evaluation it is that Techcyte has.
            alone = ~sa.exists().where(
                busy.c.task_id == d.task_id,
                busy.c.id != d.id,
                busy.c.kind != Kind.TRIAGE,
                busy.c.state.in_([DeliveryState.SENDING, DeliveryState.UNKNOWN]),
            )
            due = sa.select(d.id, d.state, d.task_id, d.kind).where(
                _OPEN, d.not_before <= now, alone | (d.kind == Kind.TRIAGE)
            )
            rows = list(conn.execute(due.order_by(d.id).limit(limit)))
            claimed: list[Claimed] = []
            tasks: set[int] = set()
            for row in rows:
                if row.kind != Kind.TRIAGE and row.task_id in tasks:
                    continue
                if row.kind != Kind.TRIAGE:
                    tasks.add(row.task_id)
                before = DeliveryState.UNKNOWN if row.state == DeliveryState.SENDING else DeliveryState(row.state)
                values: dict[str, Any] = {"state": DeliveryState.SENDING, "not_before": now + lease}
                if before is DeliveryState.PENDING:
                    values |= {"sent_at": now, "tries": t.deliveries.c.tries + 1, "looks": 0}
                else:
                    values["looks"] = t.deliveries.c.looks + 1
                conn.execute(sa.update(t.deliveries).where(d.id == row.id).values(**values))
                claimed.append(self._claimed(conn, row.id, before))
        return claimed

    def _claimed(self, conn: sa.Connection, delivery_id: int, before: DeliveryState) -> Claimed:
        row = conn.execute(
            sa.select(t.deliveries, t.tasks.c.number.label("task_number"), t.tasks.c.techcyte_jwt)
            .join_from(t.deliveries, t.tasks, t.deliveries.c.task_id == t.tasks.c.id)
            .where(t.deliveries.c.id == delivery_id)
        ).one()
        result = None
        if row.result_id is not None:
            r = conn.execute(
                sa.select(t.results, t.scans.c.number)
                .join_from(t.results, t.scans, t.results.c.scan_id == t.scans.c.id)
                .where(t.results.c.id == row.result_id)
            ).one()
            result = ResultBody(
                r.number, r.report, r.external_url, r.case_results, r.qc_fail_reasons if r.qc_touched else None,
                r.workflow, r.geojson_key,
            )  # fmt: skip
        return Claimed(
            id=row.id, company_id=row.company_id, task_number=row.task_number, kind=Kind(row.kind), before=before,
            version=row.version, tries=row.tries, looks=row.looks, sent_at=row.sent_at,
            token=self._db.vault.open(row.techcyte_jwt), body=row.body, result=result,
        )  # fmt: skip

    def settle(self, claimed: Claimed, decision: Decision, status_code: int | None, now: datetime) -> bool:
        """Write what became of a claim; returns whether the claim was still this one's.

        A body that changed while it was sent is pending again.
        """
        d = t.deliveries.c
        with self._db.write() as conn:
            row = conn.execute(
                self._db.for_update(
                    sa.select(d.version).where(
                        d.id == claimed.id,
                        d.state == DeliveryState.SENDING,
                        d.tries == claimed.tries,
                        d.looks == claimed.looks,
                    )
                )
            ).first()
            if row is None:
                return False
            state = decision.state
            if row.version != claimed.version:
                decision = Decision(DeliveryState.PENDING, "changed while it was sent; it is sent again", 0.0)
                state = decision.state
            conn.execute(
                sa.update(t.deliveries)
                .where(d.id == claimed.id)
                .values(
                    state=state,
                    detail=decision.detail[:2000],
                    status_code=status_code,
                    not_before=now + timedelta(seconds=decision.retry_in_s or 0),
                    ended_at=None if state.is_open else now,
                )
            )
            return True

    def renew(self, claims: Sequence[Claimed], until: datetime) -> None:
        """Say that these are still worked on."""
        d = t.deliveries.c
        with self._db.write() as conn:
            for c in claims:
                mine = (d.id == c.id) & (d.state == DeliveryState.SENDING) & (d.tries == c.tries) & (d.looks == c.looks)
                conn.execute(sa.update(t.deliveries).where(mine).values(not_before=until))

    def others(self, claimed: Claimed) -> list[tuple[ResultBody | None, Mapping[str, Any] | None, bool]]:
        """Return (result, body, certain) of the task's other deliveries that are, or may be, at Techcyte."""
        d = t.deliveries.c
        maybe = d.state.in_([DeliveryState.PARKED, DeliveryState.DISCARDED]) & (d.tries > 0)
        with self._db.read() as conn:
            rows = conn.execute(
                sa.select(t.results, d.body, d.state.label("delivery_state"), d.decided_by)
                .join_from(t.deliveries, t.results, d.result_id == t.results.c.id, isouter=True)
                .join(t.tasks, d.task_id == t.tasks.c.id)
                .where(
                    t.tasks.c.number == claimed.task_number,
                    d.company_id == claimed.company_id,
                    d.id != claimed.id,
                    d.kind != Kind.TRIAGE,
                    (d.state == DeliveryState.DELIVERED) | maybe,
                )
            )
            return [
                (
                    ResultBody(0, r.report, r.external_url, r.case_results, None, None, None) if r.digest else None,
                    r.body,
                    r.delivery_state == DeliveryState.DELIVERED and not r.decided_by,
                )
                for r in rows
            ]

    def next_due(self) -> datetime | None:
        """Return when the next delivery is due, None when nothing is open."""
        with self._db.read() as conn:
            return conn.execute(sa.select(sa.func.min(t.deliveries.c.not_before)).where(_OPEN)).scalar()


# ---------------------------------------------------------------- written with what is delivered


def put_result(conn: sa.Connection, task: sa.Row[Any], result_id: int, scan_id: int, run: int, digest: str) -> None:
    """Note that a result just stored is to be delivered, once per content.

    The result of a rerun waits for a person where an earlier one went out: Techcyte would keep both.
    """
    d = t.deliveries.c
    earlier = conn.execute(
        sa.select(d.subject, d.state).where(d.task_id == task.id, d.subject.like(f"scan {scan_id} %"))
    ).all()
    subject = f"scan {scan_id} {digest}"
    if any(row.subject == subject for row in earlier):
        return
    state, detail = DeliveryState.PENDING, ""
    if run and any(DeliveryState(row.state) is not DeliveryState.DISCARDED for row in earlier):
        state = DeliveryState.PARKED
        detail = (
            "the result of a rerun: Techcyte keeps every result it is sent, and that of the earlier run went there; "
            "retry to send this one as well, or discard it"
        )
    _put(conn, task, Kind.RESULT, subject, state, detail, result_id=result_id)


def put_case_results(conn: sa.Connection, task: sa.Row[Any], case_results: Mapping[str, Any], digest: str) -> None:
    """Note that case results that came without a scan are to be delivered, once per content."""
    subject = f"case {digest}"
    known = sa.select(t.deliveries.c.id).where(t.deliveries.c.task_id == task.id, t.deliveries.c.subject == subject)
    if conn.execute(known).first() is None:
        _put(conn, task, Kind.CASE, subject, DeliveryState.PENDING, "", body=dict(case_results))


def put_triage(conn: sa.Connection, task: sa.Row[Any], changes: Mapping[str, Any]) -> None:
    """Note that triage fields are to be set; what was noted before and is not changed now is set along."""
    row = conn.execute(
        sa.select(t.deliveries).where(t.deliveries.c.task_id == task.id, t.deliveries.c.subject == "triage")
    ).first()
    if row is None:
        _put(conn, task, Kind.TRIAGE, "triage", DeliveryState.PENDING, "", body=dict(changes))
        return
    values: dict[str, Any] = {"body": {**row.body, **changes}, "version": row.version + 1}
    if row.state != DeliveryState.SENDING:  # whoever sends it now sees the new version when it is done
        values |= {"state": DeliveryState.PENDING, "not_before": datetime.now(UTC), "ended_at": None}
    conn.execute(sa.update(t.deliveries).where(t.deliveries.c.id == row.id).values(**values))


def renew_token(conn: sa.Connection, task_id: int) -> None:
    """Send what was parked only because the task's token had ended: a new one came."""
    conn.execute(
        sa.update(t.deliveries)
        .where(
            t.deliveries.c.task_id == task_id,
            t.deliveries.c.state == DeliveryState.PARKED,
            t.deliveries.c.detail.startswith(TOKEN_ENDED),
        )
        .values(state=DeliveryState.PENDING, not_before=datetime.now(UTC), detail="a new token came", ended_at=None)
    )


TOKEN_ENDED = "Techcyte's token for this task ended"  # noqa: S105 (a sentence)


def token_ended(token: str, now: datetime) -> Decision | None:
    """Return the decision for a delivery whose token is over, None while it is good or does not say."""
    end = token_ends(token)
    if end is None or end > now:
        return None
    return Decision(
        DeliveryState.PARKED,
        f"{TOKEN_ENDED} at {end.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, so nothing can be delivered with it: "
        "have Techcyte ask for the task again, which brings a new one",
    )


def _put(
    conn: sa.Connection,
    task: sa.Row[Any],
    kind: Kind,
    subject: str,
    state: DeliveryState,
    detail: str,
    *,
    result_id: int | None = None,
    body: Mapping[str, Any] | None = None,
) -> None:
    conn.execute(
        sa.insert(t.deliveries).values(
            company_id=task.company_id, task_id=task.id, kind=kind, subject=subject, state=state, detail=detail,
            result_id=result_id, body=body,
        )
    )  # fmt: skip


def _query() -> sa.Select[Any]:
    d = t.deliveries
    return (
        sa.select(d, t.tasks.c.number.label("task_number"), t.scans.c.number.label("scan_number"), t.results.c.job_id)
        .join_from(d, t.tasks, d.c.task_id == t.tasks.c.id)
        .join(t.results, d.c.result_id == t.results.c.id, isouter=True)
        .join(t.scans, t.results.c.scan_id == t.scans.c.id, isouter=True)
    )


def _delivery(row: sa.Row[Any]) -> Delivery:
    return Delivery(
        id=row.id, task_number=row.task_number, scan_number=row.scan_number, job_id=row.job_id, kind=Kind(row.kind),
        state=DeliveryState(row.state), detail=row.detail, tries=row.tries, status_code=row.status_code,
        not_before=row.not_before, sent_at=row.sent_at, ended_at=row.ended_at, decided_by=row.decided_by,
        created_at=row.created_at,
    )  # fmt: skip
