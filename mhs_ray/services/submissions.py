"""Submissions: Techcyte's webhook and our own words for the same thing, each turned into one `Submission`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from mhs_ray.domain.errors import Fault, InvalidInputError
from mhs_ray.domain.ids import parse_id
from mhs_ray.domain.models import Principal, Priority
from mhs_ray.store.sql.tasks import RequestedScan, Submission

MAX_SCANS: Final = 1000
_WEBHOOK_KEYS: Final = frozenset(
    {"company_id", "scans", "scan_urls", "stains", "case_id", "task_id", "model_id", "model_name", "jwt_token"}
)


def from_webhook(who: Principal, body: Mapping[str, Any], host: str) -> Submission:
    """Read Techcyte's webhook (techcyte-contract §2); unknown keys are tolerated. Raises InvalidInputError."""
    faults: list[Fault] = []
    number = _id(body, "task_id", "task", faults, needed=True)
    case_number = _id(body, "case_id", "humanCase", faults, needed=False)
    names = []
    for key in ("model_id", "model_name"):
        value = body.get(key)
        if value is not None and not isinstance(value, (str, int)):
            faults.append(Fault(f"$.{key}", "must be a string"))
        elif value not in (None, ""):
            names.append((f"$.{key}", str(value).strip()))
            if not str(value).isprintable():
                faults.append(Fault(f"$.{key}", "control characters cannot be part of a name"))
    jwt_token = body.get("jwt_token")
    if jwt_token is not None and not isinstance(jwt_token, str):
        faults.append(Fault("$.jwt_token", "must be a string"))
    scans = _webhook_scans(body, faults)
    stains = body.get("stains")
    if stains is not None and not isinstance(stains, Mapping):
        faults.append(Fault("$.stains", "must be an object of scan id to stain"))
    if faults:
        raise InvalidInputError(faults)
    return Submission(
        company_id=who.company_id,
        by=who.name,
        client_id=who.client_id,
        origin="techcyte",
        host=host,
        scans=scans,
        algorithm_names=tuple(names),
        number=number,
        case_number=case_number,
        priority=Priority.CLINICAL,
        techcyte_jwt=jwt_token or None,
        request={
            "company_id": str(body.get("company_id", ""))[:200],
            "stains": dict(stains or {}),
            "unknown_keys": sorted(k[:200] for k in body if k not in _WEBHOOK_KEYS)[:50],
        },
    )


def from_api(
    who: Principal,
    *,
    host: str,
    algorithm_id: int | None,
    algorithm: str | None,
    scan_ids: Sequence[int],
    task_id: str | None,
    case_id: str | None,
    priority: Priority,
    description: str,
) -> Submission:
    """Read ``POST /v1/tasks``. Raises InvalidInputError."""
    if (algorithm_id is None) == (algorithm is None):
        raise InvalidInputError.at("$.algorithm_id", "give either algorithm_id or algorithm (its name)")
    _scan_count(len(scan_ids), "$.scan_ids")
    return Submission(
        company_id=who.company_id,
        by=who.name,
        client_id=who.client_id,
        origin="local",
        host=host,
        scans=tuple(RequestedScan(id=s, path=f"$.scan_ids[{i}]") for i, s in enumerate(scan_ids)),
        algorithm_id=algorithm_id,
        algorithm_names=(("$.algorithm", algorithm),) if algorithm else (),
        number=parse_id(task_id, "task", "$.task_id") if task_id is not None else None,
        case_number=parse_id(case_id, "humanCase", "$.case_id") if case_id is not None else None,
        priority=priority,
        description=description,
    )


def _scan_count(count: int, path: str) -> None:
    if count == 0:
        raise InvalidInputError.at(path, "at least one scan is needed")
    if count > MAX_SCANS:
        raise InvalidInputError.at(path, f"{count} scans in one task; at most {MAX_SCANS} are taken")


def _id(body: Mapping[str, Any], key: str, kind: str, faults: list[Fault], *, needed: bool) -> int | None:
    value = body.get(key)
    if value in (None, ""):
        if needed:
            faults.append(Fault(f"$.{key}", "is missing"))
        return None
    try:
        return parse_id(str(value) if isinstance(value, (str, int)) else "", kind, f"$.{key}")
    except InvalidInputError as error:
        faults.extend(error.faults)
        return None


def _webhook_scans(body: Mapping[str, Any], faults: list[Fault]) -> tuple[RequestedScan, ...]:
    first, every = body.get("scans"), body.get("scan_urls")
    for key, value in (("scans", first), ("scan_urls", every)):
        if value is not None and not isinstance(value, Mapping):
            faults.append(Fault(f"$.{key}", "must be an object keyed by scan id"))
    first = first if isinstance(first, Mapping) else {}
    every = every if isinstance(every, Mapping) else {}
    ids = list(dict.fromkeys([*first, *every]))
    try:
        _scan_count(len(ids), "$.scans")
    except InvalidInputError as error:
        faults.extend(error.faults)
    scans = []
    for scan_id in ids[:MAX_SCANS]:
        path = f"$.scan_urls[{scan_id!r}]" if scan_id in every else f"$.scans[{scan_id!r}]"
        urls = every.get(scan_id) or ([first[scan_id]] if scan_id in first else [])
        if not isinstance(urls, list) or not urls or not all(isinstance(u, str) and _is_http(u) for u in urls):
            faults.append(
                Fault(path, "must hold at least one http(s) URL" if scan_id in every else "must be an http(s) URL")
            )
            continue
        try:
            number = parse_id(str(scan_id), "scan", path)
        except InvalidInputError as error:
            faults.extend(error.faults)
            continue
        scans.append(RequestedScan(number=number, urls=tuple(urls), path=path))
    return tuple(scans)


def _is_http(url: str) -> bool:
    # A line break or a lone surrogate would not survive the way into a container's environment.
    if not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        return False
