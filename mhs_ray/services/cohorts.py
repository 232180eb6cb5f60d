"""Cohorts: taken in pieces, checked whole, fed to the queue behind clinical work, and told of as one thing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import sqlalchemy as sa

from mhs_ray.domain.cohorts import (
    Cohort,
    CohortEvent,
    CohortState,
    Forecast,
    RowFault,
    SlideState,
    Tally,
    forecast,
    format_faults,
    plan,
)
from mhs_ray.domain.errors import ConflictError, Fault, InvalidInputError, NotFoundError
from mhs_ray.domain.models import Principal, Provider
from mhs_ray.domain.sections import CohortSettings
from mhs_ray.services.cohort_check import ManifestRow, SlideCheck
from mhs_ray.services.containers import AlgorithmService
from mhs_ray.services.jobs import JobService
from mhs_ray.services.names import clean_name
from mhs_ray.services.scans import ScanService
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.cohorts import Cohorts
from mhs_ray.store.sql.containers import open_env
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.overview import Overview
from mhs_ray.store.sql.scope import Page, Scoped

log = logging.getLogger(__name__)

MAX_ROWS: Final = 200_000
MAX_PIECE: Final = 500


@dataclass(frozen=True, slots=True)
class Standing:
    """A cohort with how it goes. received: rows of its manifest that came so far."""

    cohort: Cohort
    tally: Tally
    forecast: Forecast

    @property
    def received(self) -> int:
        """All rows that are kept, the bad ones too."""
        return self.tally.total


class CohortService:
    """wake: tells the dispatcher that there is something to do; it must not block. host: HOST of the contract."""

    def __init__(
        self, cohorts: Cohorts, db: Database, algorithms: AlgorithmService, scans: ScanService, jobs: JobService,
        check: SlideCheck, settings: CohortSettings, host: str, wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self.cohorts = cohorts
        self._db, self._algorithms, self._scans, self._jobs = db, algorithms, scans, jobs
        self._check, self._settings, self._host, self._wake = check, settings, host, wake

    # ------------------------------------------------------------ making one

    def create(
        self, who: Principal, *, key: str, container: str, manifest: str, rows: int, canary: int, name: str | None,
        skip_known: bool, mixed_formats: bool,
    ) -> tuple[Cohort, bool]:  # fmt: skip
        """Make a draft of `rows` slides, or return the cohort that has this key already (False).

        container: id or name. What it runs is fixed here. Raises InvalidInputError, ConflictError.
        """
        faults = []
        if not 1 <= rows <= MAX_ROWS:
            faults.append(Fault("$.rows", f"{rows} rows; a cohort has 1 to {MAX_ROWS}"))
        if not 0 <= canary <= 1000:
            faults.append(Fault("$.canary", f"{canary} is not within 0 and 1000"))
        if faults:
            raise InvalidInputError(faults)
        key = clean_name(key, "$.key")
        with self._db.read() as conn:
            row = _find_container(Scoped(conn, who.company_id), container)
            image = conn.execute(
                sa.select(t.images.c.current_version_id, t.image_versions.c.digest)
                .join_from(t.images, t.image_versions, t.images.c.current_version_id == t.image_versions.c.id)
                .where(t.images.c.id == row.image_id)
            ).one()
        algorithm_id, algorithm_name = self._algorithm(who, row.id, row.name)
        variables = sorted((v.name, v.value) for v in open_env(self._db, row.env))
        values = {
            "name": clean_name(name or key), "algorithm_id": algorithm_id, "algorithm_name": algorithm_name,
            "container_id": row.id, "container_name": row.name, "image_version_id": image.current_version_id,
            "image_digest": image.digest, "instance_type": row.instance_type, "time_limit_s": row.time_limit_s,
            "env": row.env, "env_mark": self._db.vault.mark(variables), "retry_exit_codes": row.retry_exit_codes,
            "max_model_retries": row.max_model_retries, "manifest": manifest, "rows": rows, "canary": min(canary, rows),
            "skip_known": skip_known, "mixed_formats": mixed_formats, "currency": self._settings.currency,
            "price_per_hour": self._settings.prices.get(row.instance_type),
        }  # fmt: skip
        return self.cohorts.create(who.company_id, who.name, key, values)

    def _algorithm(self, who: Principal, container_id: int, name: str) -> tuple[int, str]:
        users, _ = Overview(self._db).dependents(who.company_id, container_id)
        if users:
            return users[0]
        made = self._algorithms.create(who, f"Cohorts of {name}"[:200], Provider.MHS, container_id)
        return made.id, made.name

    def add(self, who: Principal, cohort_id: int, rows: Sequence[ManifestRow]) -> list[RowFault]:
        """Look at a piece of the manifest and keep it; the same piece may come again. Returns its faults."""
        cohort = self.cohorts.get(who.company_id, cohort_id)
        if cohort.state is not CohortState.DRAFT:
            return []  # the piece is there since before it was started, or it does not belong: `start` counts
        faults = [
            RowFault(r.row, "row", f"the manifest has {cohort.rows} rows")
            for r in rows
            if not 1 <= r.row <= cohort.rows
        ]
        if faults:
            return faults
        checked = self._check.look(who, rows)
        with self._db.read() as conn:
            mark = conn.execute(sa.select(t.cohorts.c.env_mark).where(t.cohorts.c.id == cohort_id)).scalar_one()
        clashes = self.cohorts.add(cohort, checked, mark)
        faults = [RowFault(c.row, "slide", c.fault) for c in checked if c.fault]
        return faults + [RowFault(row, "id", reason) for row, reason in clashes]

    def faults(self, cohort: Cohort) -> list[RowFault]:
        """Return everything that is wrong with the rows that came."""
        found = [RowFault(row, "slide", reason) for row, reason in self.cohorts.faulty(cohort.id)]
        if not cohort.mixed_formats:
            formats = self.cohorts.formats(cohort.id)
            counts: dict[str, int] = {}
            for _, kind in formats:
                counts[kind] = counts.get(kind, 0) + 1
            found += format_faults(counts, formats)
        return sorted(found, key=lambda f: f.row)

    def start(self, who: Principal, cohort_id: int, *, leave_out_bad: bool) -> Standing:
        """Let it run, the canary first. Raises InvalidInputError with all faults, ConflictError while rows miss."""
        cohort = self.cohorts.get(who.company_id, cohort_id)
        if cohort.state is CohortState.DRAFT:
            received = self.cohorts.tally([cohort_id])[cohort_id][0].total
            if received != cohort.rows:
                raise ConflictError(
                    f"{received} of the {cohort.rows} rows of cohort {cohort_id} came so far; send the rest first"
                )
            faults = self.faults(cohort)
            if leave_out_bad:
                bad = {row for row, _ in self.cohorts.faulty(cohort_id)}
                faults = [f for f in faults if f.row not in bad]
            if faults:
                raise InvalidInputError([Fault(f"row {f.row}, {f.column}", f.reason) for f in faults])
        cohort = self.cohorts.happen(who.company_id, cohort_id, CohortEvent.STARTED)
        self._wake()
        return self.standing([cohort])[0]

    def delete(self, who: Principal, cohort_id: int) -> None:
        """Remove a draft."""
        self.cohorts.delete_draft(who.company_id, cohort_id)

    # ------------------------------------------------------------ looking

    def get(self, who: Principal, cohort_id: int) -> Standing:
        """Return one. Raises NotFoundError."""
        return self.standing([self.cohorts.get(who.company_id, cohort_id)])[0]

    def page(self, who: Principal, *, cursor: str | None, limit: int) -> Page[Standing]:
        """Return a page, newest first."""
        found = self.cohorts.page(who.company_id, cursor=cursor, limit=limit)
        return Page(self.standing(found.items), found.next_cursor)

    def standing(self, cohorts: Sequence[Cohort]) -> list[Standing]:
        """Return cohorts with their progress, ETA and cost."""
        now = datetime.now(UTC)
        tallies = self.cohorts.tally([c.id for c in cohorts])
        found = []
        for cohort in cohorts:
            tally, gpu_s, ran = tallies[cohort.id]
            live = self.cohorts.running_gpu_s(cohort.id, now) if tally.under_way else 0.0
            expected = forecast(
                tally, gpu_s=gpu_s, ran=ran, now=now, running=cohort.state.is_open,
                ends=self.cohorts.newest_ends(cohort.id) if cohort.state.is_open else (),
                price_per_hour=cohort.price_per_hour, currency=cohort.currency,
            )  # fmt: skip
            if live:  # what runs is spent already, and is part of what was to come
                price = (cohort.price_per_hour or 0) / 3600
                left_s = None if expected.gpu_s_left is None else max(0.0, expected.gpu_s_left - live)
                expected = replace(
                    expected, gpu_s=gpu_s + live, gpu_s_left=left_s,
                    spent=None if expected.spent is None else expected.spent + price * live,
                    left=None if expected.left is None or left_s is None else price * left_s,
                )  # fmt: skip
            found.append(Standing(cohort, tally, expected))
        return found

    # ------------------------------------------------------------ changing its course

    def cancel(self, who: Principal, cohort_id: int) -> Standing:
        """Start nothing more of it and end what runs."""
        reason = f"cancelled by {who.name}"
        cohort = self.cohorts.happen(who.company_id, cohort_id, CohortEvent.CANCELLED, reason)
        for job_id in self.cohorts.under_way(cohort_id):
            with suppress(ConflictError, NotFoundError):  # it ended just now
                self._jobs.cancel(who, job_id)
        self._wake()
        return self.standing([cohort])[0]

    def resume(self, who: Principal, cohort_id: int) -> Standing:
        """Go on with what a stopped or cancelled cohort has left; a canary that failed is tried once more."""
        return self._again(who, cohort_id, CohortEvent.RESUMED)

    def rerun(self, who: Principal, cohort_id: int) -> Standing:
        """Run the slides that failed once more, with the same image and variables."""
        return self._again(who, cohort_id, CohortEvent.RERUN)

    def _again(self, who: Principal, cohort_id: int, event: CohortEvent) -> Standing:
        self.cohorts.get(who.company_id, cohort_id)
        self.collect()
        cohort = self.cohorts.happen(who.company_id, cohort_id, event)
        self._wake()
        return self.standing([cohort])[0]

    # ------------------------------------------------------------ the platform's own work

    def collect(self) -> None:
        """Take in the ends of jobs."""
        while self.cohorts.collect():
            pass

    def step(self) -> bool:
        """Do what is to be done for every cohort now; returns whether any is at work. Safe to be cut off anywhere."""
        cohorts = self.cohorts.at_work()
        if not cohorts:
            return False
        self.collect()
        tallies = self.cohorts.tally([c.id for c in cohorts])
        for cohort in cohorts:
            try:
                self._advance(cohort, tallies[cohort.id][0])
            except ConflictError as error:  # a person was faster
                log.info("cohort %s: %s", cohort.id, error)
        return True

    def _advance(self, cohort: Cohort, tally: Tally) -> None:
        if not cohort.state.is_open:
            return
        next_ = plan(cohort.state, cohort.canary, self._settings.window, tally, self._failure(cohort, tally))
        if next_.event is not None:
            self.cohorts.happen(None, cohort.id, next_.event, next_.reason)
        left = next_.feed
        while left > 0 and (fed := self.cohorts.feed(cohort, left, self._host)):
            left -= fed

    def _failure(self, cohort: Cohort, tally: Tally) -> str:
        if cohort.state is not CohortState.CANARY or not tally.failed:
            return ""
        codes: Iterable[tuple[str, str, int, str]] = self.cohorts.failure_codes(cohort.id)
        ordered = sorted(codes, key=lambda c: c[0] == "input")
        return f"{ordered[0][1]}: {ordered[0][3]}" if ordered else ""


def _find_container(scope: Scoped, wanted: str) -> sa.Row[tuple[object, ...]]:
    query = sa.select(t.containers).where(scope.where(t.containers))
    match = t.containers.c.name == wanted
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 16:
        match |= t.containers.c.id == int(wanted)
    rows = scope.conn.execute(query.where(match).order_by(t.containers.c.id).limit(3)).all()
    if not rows:
        raise InvalidInputError.at("$.container", f"there is no runnable container with the name or id {wanted[:80]!r}")
    if len(rows) > 1:
        ids = ", ".join(str(r.id) for r in rows)
        raise InvalidInputError.at(
            "$.container", f"{len(rows)} containers are called {wanted[:80]!r}: give one's id ({ids})"
        )
    return rows[0]


__all__ = ["MAX_PIECE", "MAX_ROWS", "CohortService", "ManifestRow", "SlideState", "Standing"]
