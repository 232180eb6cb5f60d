"""What a submission asks for, and the rows that it stands on: looked up before one is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from mhs_ray.domain.errors import Fault, InvalidInputError
from mhs_ray.domain.models import Priority, Provider, ScanStatus
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.scope import Scoped


@dataclass(frozen=True, slots=True)
class RequestedScan:
    """A scan of a submission: one that is registered (by row id), or Techcyte's number with its presigned URLs."""

    id: int | None = None
    number: int | None = None
    urls: tuple[str, ...] = field(default=(), repr=False)
    path: str = ""  # where in the request it stands, for faults


@dataclass(frozen=True, slots=True)
class Submission:
    """A task to be made. algorithm: id, or names to look up; number None: the next of ours."""

    company_id: int
    by: str
    origin: str
    host: str
    scans: tuple[RequestedScan, ...]
    algorithm_id: int | None = None
    algorithm_names: tuple[tuple[str, str], ...] = ()  # (JSON path, name or id) in order of preference
    number: int | None = None
    case_number: int | None = None
    priority: Priority = Priority.CLINICAL
    description: str = ""
    techcyte_jwt: str | None = field(default=None, repr=False)
    request: Mapping[str, Any] = field(default_factory=dict)
    client_id: str = ""  # who of the company's clients asked, for the audit


@dataclass(frozen=True, slots=True)
class Plan:
    """A submission and the rows it stands on. scans: row id, None where the scan is yet to be registered."""

    submission: Submission
    algorithm: sa.Row[Any]
    container: sa.Row[Any]
    image: Any  # current_version_id, digest
    scans: tuple[tuple[int | None, RequestedScan], ...]


_Model = tuple[sa.Row[Any], sa.Row[Any], Any]


class Lookups:
    """What one transaction has looked up: submissions that come together mostly name the same rows."""

    def __init__(self, conn: sa.Connection) -> None:
        self._conn = conn
        self._models: dict[tuple[Any, ...], _Model] = {}
        self._rows: dict[tuple[int, int | None, int | None], sa.Row[Any] | None] = {}

    def plan(self, s: Submission) -> Plan:
        """Look everything up. Raises InvalidInputError with every fault of the scans, or the algorithm's."""
        scope = Scoped(self._conn, s.company_id)
        key = (s.company_id, s.algorithm_id, s.algorithm_names)
        model = self._models.get(key)
        if model is None:
            model = self._models[key] = _resolve(scope, s)
        return Plan(s, *model, self._scans(scope, s))

    def _scans(self, scope: Scoped, s: Submission) -> tuple[tuple[int | None, RequestedScan], ...]:
        faults: list[Fault] = []
        found: list[tuple[int | None, RequestedScan]] = []
        known: set[int] = set()
        fresh: set[int | None] = set()
        for wanted in s.scans:
            row = self._scan(scope, wanted)
            if row is None and wanted.number in fresh:
                faults.append(Fault(wanted.path, f"scan {wanted.number} is named twice"))
            elif row is None and wanted.urls:
                fresh.add(wanted.number)
                found.append((None, wanted))
            elif row is None:
                faults.append(
                    Fault(wanted.path, f"there is no scan {wanted.id if wanted.id is not None else wanted.number}")
                )
            elif row.status != ScanStatus.READY and not wanted.urls:
                what = row.failure_message or f"it is {row.status}"
                faults.append(Fault(wanted.path, f"scan {row.id} ({row.name}) cannot be used: {what}"))
            elif row.id in known:
                faults.append(Fault(wanted.path, f"scan {row.id} is named twice"))
            else:
                known.add(row.id)
                found.append((row.id, wanted))
        if faults:
            raise InvalidInputError(faults)
        return tuple(found)

    def _scan(self, scope: Scoped, wanted: RequestedScan) -> sa.Row[Any] | None:
        key = (scope.company_id, wanted.id, wanted.number)
        if key not in self._rows:
            mine = t.scans.c.id == wanted.id if wanted.id is not None else t.scans.c.number == wanted.number
            self._rows[key] = self._conn.execute(sa.select(t.scans).where(scope.where(t.scans), mine)).first()
        return self._rows[key]


def _resolve(scope: Scoped, s: Submission) -> _Model:
    algorithm, path = _find_algorithm(scope, s)
    if algorithm.provider != Provider.MHS:
        raise InvalidInputError.at(
            path,
            f"case algorithm {algorithm.name!r} is provided by {algorithm.provider!r}, not by the {Provider.MHS}",
        )
    container = scope.conn.execute(
        sa.select(t.containers).where(scope.where(t.containers), t.containers.c.id == algorithm.container_id)
    ).first()
    if container is None:
        raise InvalidInputError.at(path, f"case algorithm {algorithm.name!r} has no runnable container; set one first")
    image = scope.conn.execute(
        sa.select(t.images.c.current_version_id, t.image_versions.c.digest)
        .join_from(t.images, t.image_versions, t.images.c.current_version_id == t.image_versions.c.id)
        .where(t.images.c.id == container.image_id)
    ).one()
    return algorithm, container, image


def _find_algorithm(scope: Scoped, s: Submission) -> tuple[sa.Row[Any], str]:
    query = sa.select(t.algorithms).where(scope.where(t.algorithms))
    if s.algorithm_id is not None:
        row = scope.conn.execute(query.where(t.algorithms.c.id == s.algorithm_id)).first()
        if row is None:
            raise InvalidInputError.at("$.algorithm_id", f"there is no case algorithm {s.algorithm_id}")
        return row, "$.algorithm_id"
    named = [(path, name) for path, name in s.algorithm_names if name]
    for path, name in named:
        match = t.algorithms.c.name == name
        if name.isascii() and name.isdigit():
            match |= t.algorithms.c.id == int(name[:18])
        row = scope.conn.execute(query.where(match).order_by(t.algorithms.c.name != name)).first()
        if row is not None:
            return row, path
    if named:
        path, name = named[0]
        raise InvalidInputError.at(path, f"there is no case algorithm with the name or id {name[:80]!r}")
    only = list(scope.conn.execute(query.where(t.algorithms.c.provider == Provider.MHS).limit(2)))
    if len(only) == 1:  # Techcyte leaves both empty when nothing is set on the case algorithm
        return only[0], "$.model_name"
    raise InvalidInputError.at(
        "$.model_name",
        "no model is named and there is not exactly one case algorithm of the Model Hosting Service to take; "
        "set the model name on the case algorithm in Techcyte to the name of one here",
    )
