"""Submitting a manifest and seeing a cohort through, for the command line and for Ray jobs alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from mhs_ray.client.cohorts import ENDED, Cohort, Cohorts
from mhs_ray.client.errors import ApiError, UnreachableError
from mhs_ray.cohorts.dataset import Dataset
from mhs_ray.cohorts.manifest import Manifest
from mhs_ray.domain.cohorts import RowFault
from mhs_ray.domain.errors import Fault, InvalidInputError

_AGAIN_S: Final = 2.0
_PATIENCE: Final = 150  # looks at a platform that does not answer


def submit(
    cohorts: Cohorts, manifest: Manifest, *, key: str, container: str, leave_out_bad: bool = False,
    check_only: bool = False, say: Callable[[str], None], **options: Any,
) -> Cohort:  # fmt: skip
    """Send a manifest and start its cohort; the same call again goes on where it was cut off.

    Raises InvalidInputError with every fault of every row, before anything runs, and leaves nothing behind then.
    options: `CohortIn` of the OpenAPI document.
    """
    if manifest.faults and not any(f.row for f in manifest.faults):
        raise _invalid(manifest.faults)
    cohort = cohorts.create(manifest, key=key, container=container, **options)
    if cohort["state"] != "draft":
        say(f"cohort {cohort['id']} has this key and manifest already: it is {cohort['state']}")
        return cohort
    if cohort["received"]:
        say(f"cohort {cohort['id']}: {cohort['received']} of {cohort['rows']} rows came before")
    cohorts.send_rows(cohort, manifest, lambda done, count: say(f"looked at {done} of {count} slides"))
    faults = sorted([*manifest.faults, *cohorts.faults(cohort["id"])], key=lambda f: (f.row, f.column))
    if faults and (check_only or manifest.faults or not leave_out_bad):
        cohorts.delete(cohort["id"])
        raise _invalid(faults)
    if check_only:
        checked = cohorts.get(cohort["id"])
        cohorts.delete(cohort["id"])
        return checked
    return cohorts.start(cohort["id"], leave_out_bad=leave_out_bad)


def _invalid(faults: Sequence[RowFault]) -> InvalidInputError:
    return InvalidInputError([Fault(f"row {f.row}, {f.column}" if f.row else f.column, f.reason) for f in faults])


def watch(
    cohorts: Cohorts, cohort_id: int, *, on_change: Callable[[Cohort], None], dataset: Dataset | None = None,
    every_s: float | None = None, slides_at: Path | None = None,
) -> Cohort:  # fmt: skip
    """Return the cohort once it ended; results go to `dataset` as slides end. A platform that is away is waited for.

    on_change: told whenever a count changed.
    """
    seen: Any = None
    silent = 0
    while True:
        try:
            cohort = cohorts.get(cohort_id)
            now = (cohort["state"], cohort["counts"])
            if now != seen:
                seen = now
                on_change(cohort)
            if dataset is not None:
                dataset.pull()
            if cohort["state"] in ENDED and not cohort["counts"]["under_way"]:
                if dataset is not None:
                    dataset.pull()
                    dataset.finish(cohort, slides_at)
                return cohort
            silent = 0
        except (UnreachableError, ApiError) as error:
            if isinstance(error, ApiError) and error.status < 500:
                raise
            silent += 1
            if silent > _PATIENCE:
                raise
        time.sleep(_AGAIN_S if every_s is None else every_s)


def progress_line(cohort: Cohort) -> str:
    """Return how a cohort goes, in one line."""
    counts, f = cohort["counts"], cohort["forecast"]
    total = sum(counts.values())
    parts = [f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n]
    line = f"cohort {cohort['id']} {cohort['state']}: {', '.join(parts) or 'nothing yet'} of {total}"
    if f["eta_s"] and cohort["state"] in ("canary", "running"):
        line += f"; about {duration(f['eta_s'])} left"
    if f["spent"] is not None:
        line += f"; {money(f['spent'], f['currency'])} spent"
        if f["total"] is not None and cohort["state"] in ("canary", "running"):
            line += f" of about {money(f['total'], f['currency'])}"
    return line


def duration(seconds: float) -> str:
    """Return a length of time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def money(amount: float, currency: str) -> str:
    """Return a sum as a person reads it."""
    return f"{amount:.2f} {currency}" if amount >= 0.1 or not amount else f"{amount:.4f} {currency}"
