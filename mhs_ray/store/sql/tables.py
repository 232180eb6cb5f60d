"""The tables. The migrations in ``migrations/`` make them; a test compares the two.

Secrets (environment values, presigned URLs, Techcyte's tokens) are columns of type `Sealed`: encrypted at rest.
Every row of a company carries ``company_id``; `scope.Scoped` is the one place that filters by it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator

from mhs_ray.domain.states import JobState

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Utc(TypeDecorator[datetime]):
    """A timezone-aware moment, kept as UTC on both databases."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Refuse naive times, which would mean different moments on different machines."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime; use datetime.now(UTC)")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """SQLite forgets the zone; everything stored is UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _now() -> datetime:
    return datetime.now(UTC)


BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite autoincrements INTEGER only
Sealed = sa.LargeBinary  # written and read through `secrets.Vault`


def _id() -> sa.Column[int]:
    return sa.Column("id", BigId, primary_key=True, autoincrement=True)


def _company() -> sa.Column[int]:
    return sa.Column("company_id", BigId, sa.ForeignKey("companies.id"), nullable=False)


def _created() -> list[sa.Column[Any]]:
    return [
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", Utc, nullable=False, default=_now),
    ]


def _updated() -> sa.Column[datetime]:
    return sa.Column("updated_at", Utc, nullable=False, default=_now, onupdate=_now)


companies = sa.Table(
    "companies",
    metadata,
    _id(),
    sa.Column("external_id", sa.Text, unique=True),  # Techcyte's company_id
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("mhs_enabled", sa.Boolean, nullable=False, default=True),
    sa.Column("max_active_jobs", sa.Integer),
    sa.Column("webhook_secrets", Sealed),  # JSON: what signs the company's webhook calls, newest first; NULL: none
    sa.Column("created_at", Utc, nullable=False, default=_now),
)

clients = sa.Table(
    "clients",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _company(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("secret_hash", sa.Text, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False, default=""),
    sa.Column("created_at", Utc, nullable=False, default=_now),
    sa.Column("last_used_at", Utc),
    sa.Column("revoked_at", Utc),
)

images = sa.Table(
    "images",
    metadata,
    _id(),
    _company(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("failure_message", sa.Text, nullable=False, default=""),
    sa.Column("current_version_id", BigId),
    sa.Column("seen_digest", sa.Text),  # the newest pushed manifest that was looked at, good or bad
    sa.Column("push_until", Utc),  # a push credential is good until then: whether asking the registry can pay
    *_created(),
    _updated(),
    sa.UniqueConstraint("company_id", "name"),
)

image_versions = sa.Table(
    "image_versions",
    metadata,
    _id(),
    _company(),
    sa.Column("image_id", BigId, sa.ForeignKey("images.id", ondelete="CASCADE"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("registry", sa.Text, nullable=False),
    sa.Column("repository", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Column("created_at", Utc, nullable=False, default=_now),
    sa.UniqueConstraint("image_id", "number"),
)

containers = sa.Table(
    "containers",
    metadata,
    _id(),
    _company(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("image_id", BigId, sa.ForeignKey("images.id"), nullable=False),
    sa.Column("instance_type", sa.Text, nullable=False),
    sa.Column("env", Sealed, nullable=False),
    sa.Column("time_limit_s", sa.Integer, nullable=False),
    sa.Column("retry_exit_codes", sa.JSON, nullable=False, default=list),
    sa.Column("max_model_retries", sa.Integer, nullable=False, default=0),
    sa.Column("deleted_at", Utc),
    *_created(),
    _updated(),
)

algorithms = sa.Table(
    "algorithms",
    metadata,
    _id(),
    _company(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("container_id", BigId, sa.ForeignKey("containers.id")),
    sa.Column("deleted_at", Utc),
    *_created(),
    _updated(),
)
sa.Index(
    "uq_algorithms_name_alive",
    algorithms.c.company_id,
    algorithms.c.name,
    unique=True,
    sqlite_where=sa.text("deleted_at IS NULL"),
    postgresql_where=sa.text("deleted_at IS NULL"),
)

scans = sa.Table(
    "scans",
    metadata,
    _id(),
    _company(),
    sa.Column("number", sa.BigInteger),  # the contract's SCAN_ID; NULL only inside the transaction that makes it
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("failure_message", sa.Text, nullable=False, default=""),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("location", Sealed, nullable=False),  # JSON: {"urls": [...]} | {"path": ...} | {"keys": [...]}
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("facts", sa.JSON, nullable=False, default=dict),
    *_created(),
    sa.UniqueConstraint("company_id", "number"),
)

tasks = sa.Table(
    "tasks",
    metadata,
    _id(),
    _company(),
    sa.Column("number", sa.BigInteger),  # the integer of the contract's TASK_ID; NULL as above
    sa.Column("case_number", sa.BigInteger),
    sa.Column("algorithm_id", BigId, sa.ForeignKey("algorithms.id"), nullable=False),
    sa.Column("algorithm_name", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("priority", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False, default=""),
    sa.Column("techcyte_jwt", Sealed),
    sa.Column("request", sa.JSON, nullable=False, default=dict),  # what else came along: stains, unknown keys' names
    sa.Column("case_results", sa.JSON),
    sa.Column("triage_category", sa.Text),
    sa.Column("triage_score", sa.Float),
    *_created(),
    sa.UniqueConstraint("company_id", "number"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    _id(),
    _company(),
    sa.Column("task_id", BigId, sa.ForeignKey("tasks.id"), nullable=False),
    sa.Column("scan_id", BigId, sa.ForeignKey("scans.id"), nullable=False),
    sa.Column("run", sa.Integer, nullable=False, default=0),  # 0, then 1 more for each rerun of (task, scan)
    sa.Column("container_id", BigId, sa.ForeignKey("containers.id"), nullable=False),
    sa.Column("container_name", sa.Text, nullable=False),
    sa.Column("image_version_id", BigId, sa.ForeignKey("image_versions.id"), nullable=False),
    sa.Column("image_digest", sa.Text, nullable=False),
    sa.Column("instance_type", sa.Text, nullable=False),
    sa.Column("time_limit_s", sa.Integer, nullable=False),
    sa.Column("env", Sealed, nullable=False),  # as it was when the task was made
    sa.Column("slide", Sealed, nullable=False),  # {"urls": [...], "zip": url|null} or {} to sign the scan anew
    sa.Column("retry_exit_codes", sa.JSON, nullable=False, default=list),
    sa.Column("max_model_retries", sa.Integer, nullable=False, default=0),
    sa.Column("priority", sa.SmallInteger, nullable=False),  # 0 goes first
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("platform_failures", sa.Integer, nullable=False, default=0),
    sa.Column("model_failures", sa.Integer, nullable=False, default=0),
    sa.Column("not_before", Utc, nullable=False, default=_now),
    sa.Column("node", sa.Text),
    sa.Column("failure", sa.JSON),
    sa.Column("rejection", sa.JSON),  # the newest results request of this attempt that was refused
    sa.Column("resources", sa.JSON, nullable=False, default=dict),
    sa.Column("usable_until", Utc),  # its slide's URLs, or the token its results need, end then; NULL: never
    sa.Column("started_at", Utc),  # of the newest attempt's container
    sa.Column("ended_at", Utc),
    *_created(),
    sa.UniqueConstraint("task_id", "scan_id", "run"),
)
_queued = sa.text(f"state = '{JobState.QUEUED}'")  # a literal, so that both planners use the partial index
# Each company's queue in its order, so that a claim reads the few entries it takes however many wait.
sa.Index(
    "ix_jobs_queue",
    jobs.c.company_id,
    jobs.c.priority,
    jobs.c.id,
    jobs.c.not_before,
    sqlite_where=_queued,
    postgresql_where=_queued,
)
_again = sa.text(f"state = '{JobState.QUEUED}' AND attempt > 0")  # only a job that is tried again waits for a time
sa.Index("ix_jobs_again", jobs.c.not_before, sqlite_where=_again, postgresql_where=_again)
sa.Index("ix_jobs_company_state", jobs.c.company_id, jobs.c.state, jobs.c.id)
_active = sa.text("state IN ('" + "', '".join(sorted(s.value for s in JobState if s.is_active)) + "')")
sa.Index("ix_jobs_active", jobs.c.company_id, jobs.c.state, jobs.c.id, sqlite_where=_active, postgresql_where=_active)
_ending = sa.text(f"state = '{JobState.QUEUED}' AND usable_until IS NOT NULL")
sa.Index("ix_jobs_usable", jobs.c.usable_until, sqlite_where=_ending, postgresql_where=_ending)

job_events = sa.Table(
    "job_events",
    metadata,
    _id(),
    _company(),
    sa.Column("job_id", BigId, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("at", Utc, nullable=False, default=_now),
    sa.Column("node", sa.Text),
    sa.Column("cause", sa.Text, nullable=False, default=""),
)

# What each ended attempt took: metrics, usage and bills are sums of these rows. Seconds; NULL: it never came so far.
attempts = sa.Table(
    "attempts",
    metadata,
    _id(),
    _company(),
    sa.Column("job_id", BigId, sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("instance_type", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),  # the event that ended it
    sa.Column("failure_class", sa.Text),
    sa.Column("failure_code", sa.Text),
    sa.Column("queue_s", sa.Float, nullable=False),  # until it was taken from the queue
    sa.Column("placement_s", sa.Float),  # from there until a node had it
    sa.Column("prepare_s", sa.Float),  # from there until the container's process ran
    sa.Column("run_s", sa.Float),  # from there until it ended: the GPU-seconds
    sa.Column("slide_cached", sa.Boolean),
    sa.Column("ended_at", Utc, nullable=False, index=True),
    sa.UniqueConstraint("job_id", "attempt"),
)

results = sa.Table(
    "results",
    metadata,
    _id(),
    _company(),
    sa.Column("task_id", BigId, sa.ForeignKey("tasks.id"), nullable=False),
    sa.Column("scan_id", BigId, sa.ForeignKey("scans.id"), nullable=False),
    sa.Column("run", sa.Integer, nullable=False, default=0),
    sa.Column("job_id", BigId, sa.ForeignKey("jobs.id")),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("report", sa.JSON),  # `results` minus external_url
    sa.Column("external_url", sa.Text),
    sa.Column("case_results", sa.JSON),
    sa.Column("qc_fail_reasons", sa.JSON),
    sa.Column("qc_touched", sa.Boolean, nullable=False, default=False),
    sa.Column("workflow", sa.JSON),
    sa.Column("summary", sa.JSON, nullable=False, default=dict),
    sa.Column("geojson_key", sa.Text),  # blob: the FeatureCollection as it was posted
    sa.Column("features", sa.Integer, nullable=False, default=0),
    sa.Column("created_at", Utc, nullable=False, default=_now),
    sa.UniqueConstraint("task_id", "scan_id", "run"),
)

# The outbox to Techcyte. subject: what it is of its task; one row per (task, subject) is what keeps it delivered once.
deliveries = sa.Table(
    "deliveries",
    metadata,
    _id(),
    _company(),
    sa.Column("task_id", BigId, sa.ForeignKey("tasks.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("result_id", BigId, sa.ForeignKey("results.id")),
    sa.Column("body", sa.JSON),  # of what is no result
    sa.Column("version", sa.Integer, nullable=False, default=0),  # of the body: a newer one is sent again
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False, default=""),
    sa.Column("tries", sa.Integer, nullable=False, default=0),  # requests that were begun
    sa.Column("looks", sa.Integer, nullable=False, default=0),  # times that Techcyte was asked since
    sa.Column("status_code", sa.Integer),  # of the newest answer
    sa.Column("not_before", Utc, nullable=False, default=_now),  # of `sending`: until then its sender is believed alive
    sa.Column("sent_at", Utc),  # when the newest request began
    sa.Column("ended_at", Utc),
    sa.Column("decided_by", sa.Text, nullable=False, default=""),
    sa.Column("created_at", Utc, nullable=False, default=_now),
    sa.UniqueConstraint("task_id", "subject"),
)
_open = sa.text("state IN ('pending', 'sending', 'unknown')")
sa.Index("ix_deliveries_due", deliveries.c.not_before, sqlite_where=_open, postgresql_where=_open)
_stuck = sa.text("state IN ('parked', 'refused')")
sa.Index("ix_deliveries_stuck", deliveries.c.state, sqlite_where=_stuck, postgresql_where=_stuck)
sa.Index("ix_deliveries_company", deliveries.c.company_id, deliveries.c.id)

# One container on very many slides. What it runs is kept here as it was when the cohort was made, so that a push or an
# edit in between cannot split it. work: the same for slides of the same content, digest and variables.
cohorts = sa.Table(
    "cohorts",
    metadata,
    _id(),
    _company(),
    sa.Column("key", sa.Text, nullable=False),  # the same one again goes on with the same cohort
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("algorithm_id", BigId, sa.ForeignKey("algorithms.id"), nullable=False),
    sa.Column("algorithm_name", sa.Text, nullable=False),
    sa.Column("container_id", BigId, sa.ForeignKey("containers.id"), nullable=False),
    sa.Column("container_name", sa.Text, nullable=False),
    sa.Column("image_version_id", BigId, sa.ForeignKey("image_versions.id"), nullable=False),
    sa.Column("image_digest", sa.Text, nullable=False),
    sa.Column("instance_type", sa.Text, nullable=False),
    sa.Column("time_limit_s", sa.Integer, nullable=False),
    sa.Column("env", Sealed, nullable=False),
    sa.Column("env_mark", sa.Text, nullable=False),
    sa.Column("retry_exit_codes", sa.JSON, nullable=False, default=list),
    sa.Column("max_model_retries", sa.Integer, nullable=False, default=0),
    sa.Column("manifest", sa.Text, nullable=False),  # digest of its rows
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("canary", sa.Integer, nullable=False),
    sa.Column("skip_known", sa.Boolean, nullable=False, default=True),
    sa.Column("mixed_formats", sa.Boolean, nullable=False, default=False),
    sa.Column("price_per_hour", sa.Float),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("started_at", Utc),
    sa.Column("ended_at", Utc),
    *_created(),
    sa.UniqueConstraint("company_id", "key"),
)
_feeding = sa.text("state IN ('canary', 'running')")
sa.Index("ix_cohorts_open", cohorts.c.id, sqlite_where=_feeding, postgresql_where=_feeding)

cohort_slides = sa.Table(
    "cohort_slides",
    metadata,
    _id(),
    _company(),
    sa.Column("cohort_id", BigId, sa.ForeignKey("cohorts.id", ondelete="CASCADE"), nullable=False),
    sa.Column("row", sa.Integer, nullable=False),  # of the manifest, the first slide's is 1
    sa.Column("slide", sa.Text, nullable=False),  # what its owner calls it
    sa.Column("shown", sa.Text, nullable=False),  # where it is, without what signs a URL
    sa.Column("location", Sealed, nullable=False),
    sa.Column("format", sa.Text, nullable=False, default=""),
    sa.Column("work", sa.Text),
    sa.Column("labels", sa.JSON, nullable=False, default=dict),  # the manifest's other columns
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("fault", sa.Text, nullable=False, default=""),
    sa.Column("scan_id", BigId, sa.ForeignKey("scans.id")),
    sa.Column("job_id", BigId, sa.ForeignKey("jobs.id")),
    sa.Column("failure_class", sa.Text),
    sa.Column("failure_code", sa.Text),
    sa.Column("cause", sa.Text, nullable=False, default=""),
    sa.Column("gpu_s", sa.Float, nullable=False, default=0.0),
    sa.Column("ended_at", Utc),
    sa.UniqueConstraint("cohort_id", "row"),
    sa.Index("uq_cohort_slides_slide", "cohort_id", "slide", unique=True),
    sa.Index("ix_cohort_slides_work", "company_id", "work"),
    sa.Index("ix_cohort_slides_state", "cohort_id", "state", "row"),
    sa.Index("ix_cohort_slides_ended", "cohort_id", "ended_at"),
)
_under_way = sa.text("state = 'under way'")
sa.Index("ix_cohort_slides_open", cohort_slides.c.job_id, sqlite_where=_under_way, postgresql_where=_under_way)

# Who did what. The migration adds triggers: no row can be changed or removed.
audit = sa.Table(
    "audit",
    metadata,
    _id(),
    _company(),
    sa.Column("at", Utc, nullable=False, default=_now),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("client_id", sa.Text, nullable=False, default=""),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
)
sa.Index("ix_audit_company", audit.c.company_id, audit.c.id)

# Signed webhook calls that were taken, for as long as their time stamps would be good: none is taken twice.
webhook_calls = sa.Table(
    "webhook_calls",
    metadata,
    sa.Column("signature", sa.Text, primary_key=True),
    sa.Column("at", Utc, nullable=False, index=True),
)
