"""Run a container on a cohort of slides: ``ray job submit -- python -m jobs.run_cohort --help``.

    ray job submit --working-dir . -- python -m jobs.run_cohort \
        --manifest slides.csv --container 'My GPU Container' --canary 5 --out /data/lung-2026-11

Submits the manifest (all faults are told at once and nothing runs then), stays until the cohort ended, and writes the
results as slides end. The platform runs the slides, behind clinical work; when this job dies, or is submitted again
with the same key, nothing is run twice. Paths in the manifest are those of the platform's machines. The API is the one
that MHS_URL, MHS_CLIENT_ID and MHS_CLIENT_SECRET name (``--runtime-env-json '{"env_vars": …}'``), else this machine's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mhs_ray.cli.connect import connect
from mhs_ray.client.cohorts import Cohorts
from mhs_ray.cohorts.dataset import Dataset
from mhs_ray.cohorts.follow import progress_line, submit, watch
from mhs_ray.cohorts.manifest import read_manifest
from mhs_ray.domain.errors import InvalidInputError, MhsError


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog="run_cohort", description=__doc__.split("\n", 1)[0] if __doc__ else None)
    made.add_argument("--manifest", type=Path, required=True, help="CSV or Parquet with a column `slide`")
    made.add_argument("--container", required=True, help="id or name of the runnable container")
    made.add_argument("--out", type=Path, help="folder for the results, which all nodes see or of this node")
    made.add_argument("--key", help="the same key again goes on; the manifest's name when left out")
    made.add_argument("--name", help="what people see; the key when left out")
    made.add_argument("--canary", type=int, default=3, help="slides that must succeed before the rest starts")
    made.add_argument("--run-known", action="store_true", help="run also what was run before")
    made.add_argument("--mixed-formats", action="store_true", help="take slides of several formats")
    made.add_argument("--leave-out-bad", action="store_true", help="run the others when slides have faults")
    made.add_argument("--slides-at", type=Path, help="folder in which QuPath's machine has the slides")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run; return 0 when every slide succeeded, 1 when some failed or it was stopped, 2 for a manifest with faults."""
    asked = parser().parse_args(arguments)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        manifest = read_manifest(asked.manifest)
        with connect() as client:
            cohorts = Cohorts(client)
            cohort = submit(
                cohorts, manifest, key=asked.key or asked.manifest.stem, container=asked.container, name=asked.name,
                canary=asked.canary, skip_known=not asked.run_known, mixed_formats=asked.mixed_formats,
                leave_out_bad=asked.leave_out_bad, say=say,
            )  # fmt: skip
            dataset = Dataset(cohorts, cohort["id"], asked.out) if asked.out else None
            ended = watch(
                cohorts, cohort["id"], dataset=dataset, on_change=lambda c: say(progress_line(c)),
                slides_at=asked.slides_at,
            )  # fmt: skip
    except InvalidInputError as error:
        for fault in error.faults:
            say(f"run_cohort: {fault.path}: {fault.message}")
        return 2
    except MhsError as error:
        say(f"run_cohort: {error}")
        return 2
    print(json.dumps(ended))
    return 0 if ended["state"] == "done" and not ended["counts"]["failed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
