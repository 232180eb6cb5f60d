"""What waits and what is under way, of all companies together: cheap enough to ask every few seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from mhs_ray.domain.models import ImageStatus
from mhs_ray.domain.states import ACTIVE, JobState
from mhs_ray.results.outbox import OPEN
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database

_SOON: Final = timedelta(hours=1)
# Literals, so that both planners use the partial indexes.
_QUEUED: Final = sa.text(f"jobs.state = '{JobState.QUEUED}'")
_ACTIVE: Final = sa.text("jobs.state IN ('" + "', '".join(sorted(s.value for s in ACTIVE)) + "')")
_OPEN: Final = sa.text("deliveries.state IN ('pending', 'sending', 'unknown')")
_STUCK: Final = sa.text("deliveries.state IN ('parked', 'refused')")
assert {"pending", "sending", "unknown"} == {s.value for s in OPEN}


@dataclass(frozen=True, slots=True)
class Beat:
    """One look. oldest_queued, oldest_delivery, oldest_check: since when the longest waiting one waits.

    jobs: (state, instance type) → how many that have not ended. expiring: queued jobs whose slide URL or token ends
    within the hour. deliveries: by state, those that are not done.
    """

    jobs: Mapping[tuple[str, str], int]
    oldest_queued: Mapping[str, datetime]
    expiring: int
    deliveries: Mapping[str, int]
    oldest_delivery: datetime | None
    images: Mapping[str, int]
    oldest_check: datetime | None


def look(db: Database, now: datetime) -> Beat:
    """Ask the database once."""
    j, d, i = t.jobs.c, t.deliveries.c, t.images.c
    count = sa.func.count()
    with db.read() as conn:
        queued = conn.execute(
            sa.select(j.instance_type, count, sa.func.min(j.created_at)).where(_QUEUED).group_by(j.instance_type)
        ).all()
        active = conn.execute(
            sa.select(j.state, j.instance_type, count).where(_ACTIVE).group_by(j.state, j.instance_type)
        ).all()
        expiring = sa.select(count).where(_QUEUED, j.usable_until.is_not(None), j.usable_until <= now + _SOON)
        deliveries = {
            str(state): int(n)
            for which in (_OPEN, _STUCK)
            for state, n in conn.execute(sa.select(d.state, count).where(which).group_by(d.state))
        }
        checking = sa.select(sa.func.min(i.updated_at)).where(i.status == ImageStatus.CHECKING)
        return Beat(
            jobs={(JobState.QUEUED.value, kind): int(n) for kind, n, _ in queued}
            | {(str(state), kind): int(n) for state, kind, n in active},
            oldest_queued={kind: oldest for kind, _, oldest in queued},
            expiring=int(conn.execute(expiring).scalar_one()),
            deliveries=deliveries,
            oldest_delivery=conn.execute(sa.select(sa.func.min(d.created_at)).where(_OPEN)).scalar(),
            images={str(s): int(n) for s, n in conn.execute(sa.select(i.status, count).group_by(i.status))},
            oldest_check=conn.execute(checking).scalar(),
        )
