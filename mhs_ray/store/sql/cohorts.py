"""Cohorts as rows: made and filled in pieces, fed to the queue in batches, collected from ended jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from mhs_ray.domain.cohorts import (
    CheckedSlide,
    Cohort,
    CohortEvent,
    CohortSlide,
    CohortState,
    SlideState,
    Tally,
    advance,
    is_unread,
)
from mhs_ray.domain.errors import ConflictError, NotFoundError
from mhs_ray.domain.states import TERMINAL, JobEvent, JobState
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.cohort_jobs import insert_jobs
from mhs_ray.store.sql.database import Database, Lock
from mhs_ray.store.sql.scope import Page, Scoped

_C, _S = t.cohorts.c, t.cohort_slides.c
_PART: Final = 500
_ENDS: Final = frozenset(
    {JobEvent.SUCCEEDED, JobEvent.FAILED, JobEvent.RETRIED, JobEvent.CANCELLED, JobEvent.TIMED_OUT}
)
_OPEN: Final = sa.text("cohorts.state IN ('canary', 'running')")
_UNDER_WAY: Final = sa.text("cohort_slides.state = 'under way'")


class Cohorts:
    """The cohorts of all companies; people's calls name theirs."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # ------------------------------------------------------------ making one

    def create(self, company_id: int, by: str, key: str, values: Mapping[str, Any]) -> tuple[Cohort, bool]:
        """Make a draft, or return the cohort that has this key already (False).

        A draft whose manifest was mended is made anew. Raises ConflictError when the key stands for other work.
        """
        with self._db.write() as conn:
            self._db.lock(conn, Lock.SUBMIT)  # the same key twice at once is one cohort
            scope = Scoped(conn, company_id)
            known = conn.execute(sa.select(t.cohorts).where(scope.where(t.cohorts), _C.key == key)).first()
            if known is not None:
                same = (known.manifest, known.container_id) == (values["manifest"], values["container_id"])
                if same:
                    return _cohort(known), False
                if known.state != CohortState.DRAFT:
                    raise ConflictError(
                        f"the key {key!r} is cohort {known.id}, which has another manifest or container; "
                        "choose another key"
                    )
                self._remove(conn, known.id)
            row = {**values, "company_id": company_id, "created_by": by, "key": key, "state": CohortState.DRAFT}
            new = conn.execute(sa.insert(t.cohorts).values(**row)).inserted_primary_key
            assert new is not None
            return _cohort(scope.get(t.cohorts, int(new[0]), "cohort")), True

    def add(self, cohort: Cohort, slides: Sequence[CheckedSlide], env_mark: str) -> list[tuple[int, str]]:
        """Keep rows of a draft's manifest; those that are there already stay as they are.

        Returns (row, reason) of rows whose id another row has. Raises ConflictError once the cohort was started.
        """
        with self._db.write() as conn:
            state = str(conn.execute(self._db.for_update(sa.select(_C.state).where(_C.id == cohort.id))).scalar_one())
            if state != CohortState.DRAFT:
                raise ConflictError(f"cohort {cohort.id} is {state}; rows are taken before it is started")
            here = conn.execute(
                sa.select(_S.row, _S.slide).where(
                    _S.cohort_id == cohort.id,
                    _S.row.in_([s.row for s in slides]) | _S.slide.in_([s.slide for s in slides]),
                )
            ).all()
            rows, names = {r.row for r in here}, {r.slide: r.row for r in here}
            clashes: list[tuple[int, str]] = []
            new: list[dict[str, Any]] = []
            for s in slides:
                if s.row in rows:
                    continue
                if names.setdefault(s.slide, s.row) != s.row:
                    clashes.append((s.row, f"{s.slide!r} is also the id of row {names[s.slide]}"))
                    continue
                work = self._db.vault.mark([cohort.image_digest, s.content, env_mark]) if s.content else None
                new.append(
                    {
                        "company_id": cohort.company_id, "cohort_id": cohort.id, "row": s.row, "slide": s.slide,
                        "shown": s.shown, "location": self._db.vault.seal(dict(s.location)), "format": s.format,
                        "work": work, "labels": dict(s.labels), "state": SlideState.PENDING, "fault": s.fault,
                    }
                )  # fmt: skip
            if new:
                conn.execute(sa.insert(t.cohort_slides), new)
            return clashes

    def delete_draft(self, company_id: int, cohort_id: int) -> None:
        """Remove a cohort that was never started. Raises NotFoundError, ConflictError."""
        with self._db.write() as conn:
            row = Scoped(conn, company_id).get(t.cohorts, cohort_id, "cohort")
            if row.state != CohortState.DRAFT:
                raise ConflictError(f"cohort {cohort_id} is {row.state}; what was run is kept")
            self._remove(conn, cohort_id)

    @staticmethod
    def _remove(conn: sa.Connection, cohort_id: int) -> None:
        conn.execute(sa.delete(t.cohort_slides).where(_S.cohort_id == cohort_id))
        conn.execute(sa.delete(t.cohorts).where(_C.id == cohort_id))

    # ------------------------------------------------------------ looking

    def get(self, company_id: int, cohort_id: int) -> Cohort:
        """Return one. Raises NotFoundError."""
        with self._db.read() as conn:
            return _cohort(Scoped(conn, company_id).get(t.cohorts, cohort_id, "cohort"))

    def page(self, company_id: int, *, cursor: str | None, limit: int) -> Page[Cohort]:
        """Return a page, newest first."""
        with self._db.read() as conn:
            found = Scoped(conn, company_id).page(sa.select(t.cohorts), t.cohorts, cursor=cursor, limit=limit)
            return found.map(_cohort)

    def slides(
        self, company_id: int, cohort_id: int, *, cursor: str | None, limit: int, states: Sequence[str] = (),
        ended_after: datetime | None = None,
    ) -> Page[CohortSlide]:  # fmt: skip
        """Return a page of its slides, the manifest's last first. ended_after: those that ended then or later."""
        filters: list[sa.ColumnElement[bool]] = [_S.cohort_id == cohort_id]
        if states:
            filters.append(_S.state.in_(states))
        if ended_after is not None:
            filters.append(_S.ended_at >= ended_after)
        with self._db.read() as conn:
            query = sa.select(t.cohort_slides)
            page = Scoped(conn, company_id).page(query, t.cohort_slides, filters=filters, cursor=cursor, limit=limit)
            return page.map(_slide)

    def tally(self, cohort_ids: Iterable[int]) -> dict[int, tuple[Tally, float, int]]:
        """Return by cohort how its slides stand, the GPU seconds they took, and how many took any."""
        found: dict[int, dict[str, int]] = {i: {} for i in cohort_ids}
        spent: dict[int, tuple[float, int]] = dict.fromkeys(found, (0.0, 0))
        query = sa.select(
            _S.cohort_id, _S.state, _S.failure_class, sa.func.count().label("n"), sa.func.sum(_S.gpu_s).label("gpu_s"),
            sa.func.sum(sa.case((_S.gpu_s > 0, 1), else_=0)).label("ran"),
        )  # fmt: skip
        query = query.where(_S.cohort_id.in_(list(found))).group_by(_S.cohort_id, _S.state, _S.failure_class)
        with self._db.read() as conn:
            for row in conn.execute(query):
                counts = found[row.cohort_id]
                name = SlideState(row.state).name.lower()
                counts[name] = counts.get(name, 0) + row.n
                if row.state == SlideState.FAILED and is_unread(row.failure_class):
                    counts["unread"] = counts.get("unread", 0) + row.n
                seconds, ran = spent[row.cohort_id]
                spent[row.cohort_id] = (seconds + float(row.gpu_s or 0), ran + int(row.ran or 0))
        return {i: (Tally(**counts), *spent[i]) for i, counts in found.items()}

    def newest_ends(self, cohort_id: int, limit: int = 100) -> list[datetime]:
        """Return when the newest slides ended that were run."""
        query = sa.select(_S.ended_at).where(_S.cohort_id == cohort_id, _S.ended_at.is_not(None), _S.gpu_s > 0)
        with self._db.read() as conn:
            return list(conn.execute(query.order_by(_S.ended_at.desc()).limit(limit)).scalars())

    def running_gpu_s(self, cohort_id: int, now: datetime) -> float:
        """Return the seconds for which jobs under way have had their node, about."""
        query = (
            sa.select(sa.func.min(t.job_events.c.at))
            .join_from(t.cohort_slides, t.jobs, _S.job_id == t.jobs.c.id)
            .join(t.job_events, (t.job_events.c.job_id == t.jobs.c.id) & (t.job_events.c.attempt == t.jobs.c.attempt))
            .where(_S.cohort_id == cohort_id, _UNDER_WAY, t.job_events.c.event == JobEvent.PLACED)
            .group_by(t.jobs.c.id)
        )
        with self._db.read() as conn:
            began: list[datetime] = list(conn.execute(query).scalars())
        return sum(max(0.0, (now - at).total_seconds()) for at in began)

    def failure_codes(self, cohort_id: int) -> list[tuple[str, str, int, str]]:
        """Return (class, code, how many, cause of one) of what slides failed of, the most frequent first."""
        count = sa.func.count().label("n")
        query = (
            sa.select(_S.failure_class, _S.failure_code, count, sa.func.max(_S.cause).label("cause"))
            .where(_S.cohort_id == cohort_id, _S.state == SlideState.FAILED)
            .group_by(_S.failure_class, _S.failure_code)
            .order_by(count.desc())
        )
        with self._db.read() as conn:
            return [(r.failure_class or "", r.failure_code or "", r.n, r.cause or "") for r in conn.execute(query)]

    def faulty(self, cohort_id: int) -> list[tuple[int, str]]:
        """Return (row, fault) of every row that cannot be run."""
        query = sa.select(_S.row, _S.fault).where(_S.cohort_id == cohort_id, _S.fault != "").order_by(_S.row)
        with self._db.read() as conn:
            return [(r.row, r.fault) for r in conn.execute(query)]

    def formats(self, cohort_id: int) -> list[tuple[int, str]]:
        """Return (row, format) of every row that has no fault."""
        query = sa.select(_S.row, _S.format).where(_S.cohort_id == cohort_id, _S.fault == "").order_by(_S.row)
        with self._db.read() as conn:
            return [(r.row, r.format) for r in conn.execute(query)]

    # ------------------------------------------------------------ what people ask for

    def happen(self, company_id: int | None, cohort_id: int, event: CohortEvent, reason: str = "") -> Cohort:
        """Let `event` happen, with what it means for the slides. company_id: None for the platform's own work.

        Raises NotFoundError, ConflictError.
        """
        with self._db.write() as conn:
            row = conn.execute(self._db.for_update(sa.select(t.cohorts).where(_C.id == cohort_id))).first()
            if row is None or company_id not in (None, row.company_id):
                raise NotFoundError("cohort", cohort_id)
            before = CohortState(row.state)
            after = advance(before, event)
            values: dict[str, Any] = {"state": after}
            now = datetime.now(UTC)
            if event is CohortEvent.STARTED and before is CohortState.DRAFT:
                values["started_at"] = now
                mine = sa.and_(_S.cohort_id == cohort_id, _S.fault != "")
                conn.execute(
                    sa.update(t.cohort_slides)
                    .where(mine)
                    .values(state=SlideState.LEFT_OUT, cause=_S.fault, ended_at=now)
                )
            if event in (CohortEvent.RESUMED, CohortEvent.RERUN):
                again = {SlideState.CANCELLED} if event is CohortEvent.RESUMED else {SlideState.FAILED}
                if before is CohortState.STOPPED:
                    again = {SlideState.FAILED, SlideState.CANCELLED}  # the canary is tried once more
                conn.execute(
                    sa.update(t.cohort_slides)
                    .where(_S.cohort_id == cohort_id, _S.state.in_(again))
                    .values(state=SlideState.PENDING, cause="", failure_class=None, failure_code=None, ended_at=None)
                )
                values["reason"], values["ended_at"] = "", None
            if not after.is_open and before is not after:
                values["ended_at"], values["reason"] = now, reason
            conn.execute(sa.update(t.cohorts).where(_C.id == cohort_id).values(**values))
            self._db.notify(conn)
            return _cohort(conn.execute(sa.select(t.cohorts).where(_C.id == cohort_id)).one())

    def under_way(self, cohort_id: int) -> list[int]:
        """Return the jobs of its slides that have not ended as far as it knows."""
        with self._db.read() as conn:
            query = sa.select(_S.job_id).where(_S.cohort_id == cohort_id, _UNDER_WAY, _S.job_id.is_not(None))
            return list(conn.execute(query).scalars())

    # ------------------------------------------------------------ the platform's own work

    def at_work(self) -> list[Cohort]:
        """Return the cohorts that something is to be done for: open ones, and those that jobs still run for."""
        busy = sa.select(_S.cohort_id).where(_UNDER_WAY).distinct()
        with self._db.read() as conn:
            query = sa.select(t.cohorts).where(sa.or_(_OPEN, _C.id.in_(busy))).order_by(_C.id)
            return [_cohort(r) for r in conn.execute(query)]

    def collect(self, limit: int = 200) -> int:
        """Take in the ends of jobs of cohorts; returns how many there were."""
        query = (
            sa.select(_S.id, _S.gpu_s, t.jobs.c.id.label("job_id"), t.jobs.c.state, t.jobs.c.failure, t.jobs.c.ended_at)
            .join_from(t.cohort_slides, t.jobs, _S.job_id == t.jobs.c.id)
            .where(_UNDER_WAY, t.jobs.c.state.in_(sorted(TERMINAL)))
            .limit(limit)
        )
        with self._db.read() as conn:
            ended = conn.execute(query).all()
            if not ended:
                return 0
            held = _held(conn, [r.job_id for r in ended])
        states = {JobState.SUCCEEDED: SlideState.SUCCEEDED, JobState.CANCELLED: SlideState.CANCELLED}
        values = [
            {
                "of": r.id, "job": r.job_id, "state": states.get(JobState(r.state), SlideState.FAILED),
                "failure_class": (r.failure or {}).get("class"), "failure_code": (r.failure or {}).get("code"),
                "cause": str((r.failure or {}).get("cause", ""))[:1000], "ended_at": r.ended_at or datetime.now(UTC),
                "gpu_s": r.gpu_s + held.get(r.job_id, 0.0),
            }
            for r in ended
        ]  # fmt: skip
        with self._db.write() as conn:
            names = ("state", "failure_class", "failure_code", "cause", "ended_at", "gpu_s")
            conn.execute(
                sa.update(t.cohort_slides)
                # Collected once: a second collector, or a slide that was fed anew meanwhile, finds nothing.
                .where(_S.id == sa.bindparam("of"), _S.job_id == sa.bindparam("job"), _UNDER_WAY)
                .values({name: sa.bindparam(name) for name in names}),
                values,
            )
        return len(ended)

    def feed(self, cohort: Cohort, count: int, host: str) -> int:
        """Put up to `count` of its next slides into the queue, in one transaction; returns how many left `pending`.

        A slide whose work was done before, or is under way in this cohort, becomes a duplicate in place of a job.
        """
        with self._db.write() as conn:
            self._db.lock(conn, Lock.SUBMIT)
            kept = conn.execute(self._db.for_update(sa.select(t.cohorts).where(_C.id == cohort.id))).first()
            if kept is None or not CohortState(kept.state).is_open:  # somebody cancelled it
                return 0
            rows = conn.execute(
                sa.select(t.cohort_slides)
                .where(_S.cohort_id == cohort.id, _S.state == SlideState.PENDING)
                .order_by(_S.row)
                .limit(min(count, _PART))
            ).all()
            fresh, doubles = _split(cohort, rows, _known(conn, cohort, rows) if cohort.skip_known else {})
            if doubles:
                conn.execute(
                    _BY_ID.values({n: sa.bindparam(n) for n in ("state", "job_id", "cause", "ended_at")}), doubles
                )
            if fresh:
                self._insert(conn, kept, fresh, host)
                self._db.notify(conn)
            return len(fresh) + len(doubles)

    def _insert(self, conn: sa.Connection, cohort: sa.Row[Any], rows: Sequence[sa.Row[Any]], host: str) -> None:
        """Insert scans, tasks and jobs for `rows`, each kind in one go, and link the rows with them."""
        links = insert_jobs(conn, self._db, cohort, rows, host)
        names = ("state", "scan_id", "job_id", "ended_at")
        conn.execute(_BY_ID.values({name: sa.bindparam(name) for name in names}), links)


_BY_ID: Final = sa.update(t.cohort_slides).where(_S.id == sa.bindparam("of"))


def _known(conn: sa.Connection, cohort: Cohort, rows: Sequence[sa.Row[Any]]) -> dict[str, tuple[int | None, str]]:
    """Return by work the job that did it, or does in this cohort, and what to say of that."""
    works = [r.work for r in rows if r.work is not None]
    found: dict[str, tuple[int | None, str]] = {}
    for row in conn.execute(
        sa.select(_S.work, _S.job_id, _S.cohort_id, _S.slide, _S.state)
        .where(
            _S.company_id == cohort.company_id,
            _S.work.in_(works),
            (_S.state == SlideState.SUCCEEDED) | ((_S.cohort_id == cohort.id) & (_S.state == SlideState.UNDER_WAY)),
        )
        .order_by(_S.id.desc())
    ):
        where = "in this cohort" if row.cohort_id == cohort.id else f"in cohort {row.cohort_id}"
        found[row.work] = (row.job_id, f"the same work as {row.slide!r} {where}: job {row.job_id}")
    return found


def _split(
    cohort: Cohort, rows: Sequence[sa.Row[Any]], known: Mapping[str, tuple[int | None, str]]
) -> tuple[list[sa.Row[Any]], list[dict[str, Any]]]:
    """Return the rows that need a job, and what becomes of the others."""
    fresh: list[sa.Row[Any]] = []
    doubles: list[dict[str, Any]] = []
    now, taken = datetime.now(UTC), set[str]()
    for row in rows:
        if row.work is not None and row.work in taken:
            continue  # it stays pending: the next feed finds its twin's job
        job_id, cause = known.get(row.work, (None, "")) if row.work else (None, "")
        if cause:
            state = SlideState.DUPLICATE
            doubles.append({"of": row.id, "state": state, "job_id": job_id, "cause": cause, "ended_at": now})
        else:
            fresh.append(row)
            if cohort.skip_known and row.work is not None:
                taken.add(row.work)
    return fresh, doubles


def _held(conn: sa.Connection, job_ids: Sequence[int]) -> dict[int, float]:
    """Return for how many seconds the attempts of each job had their node, and so its GPU."""
    e = t.job_events.c
    query = sa.select(e.job_id, e.attempt, e.event, e.at).where(e.job_id.in_(job_ids), e.attempt > 0).order_by(e.id)
    began: dict[tuple[int, int], datetime] = {}
    held: dict[int, float] = {}
    for row in conn.execute(query):
        key = (row.job_id, row.attempt)
        if row.event == JobEvent.PLACED:
            began.setdefault(key, row.at)
        elif row.event in _ENDS and key in began:
            held[row.job_id] = held.get(row.job_id, 0.0) + max(0.0, (row.at - began.pop(key)).total_seconds())
    return held


def _cohort(row: sa.Row[Any]) -> Cohort:
    values = {name: getattr(row, name) for name in Cohort.__dataclass_fields__}
    return Cohort(**{**values, "state": CohortState(row.state)})


def _slide(row: sa.Row[Any]) -> CohortSlide:
    values = {name: getattr(row, name) for name in CohortSlide.__dataclass_fields__}
    return CohortSlide(**{**values, "state": SlideState(row.state)})
