"""The results of a cohort as files, written as slides end and gone on with after a break.

::

    OUT/
      slides.parquet               one row per slide: state, job, labels, counts, results, failure
      features/slide=ID/part-0.parquet   one partitioned dataset: every annotation of every slide (GeoParquet)
      geojson/ID.geojson           the same, one file per slide
      qupath/project.qpproj        and scripts/import_results.groovy, which imports the GeoJSON
      cohort.json                  the cohort itself: what ran, how it ended, what it cost
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from mhs_ray.client.cohorts import Cohort, Cohorts, CohortSlide
from mhs_ray.client.errors import ApiError
from mhs_ray.cohorts.qupath import Entry, write_project
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.results.export import write_geojson
from mhs_ray.results.features import ExportItem
from mhs_ray.results.geojson import GeoJson
from mhs_ray.results.parquet import write_parquet

_HERE: Final = ".mhs-cohort.jsonl"
_WITH_RESULTS: Final = ("succeeded", "duplicate")
_SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()), ("row", pa.int64()), ("slide", pa.string()), ("format", pa.string()),
        ("state", pa.string()), ("job", pa.int64()), ("gpu_s", pa.float64()), ("ended_at", pa.string()),
        ("features", pa.int64()), ("summary", pa.string()), ("results", pa.string()), ("case_results", pa.string()),
        ("failure_class", pa.string()), ("failure_code", pa.string()), ("cause", pa.string()),
    ]
)  # fmt: skip


class Dataset:
    """One cohort's folder. Raises InvalidInputError when the folder is another cohort's, or cannot be written."""

    def __init__(self, cohorts: Cohorts, cohort_id: int, out: Path) -> None:
        self._cohorts, self._id, self.out = cohorts, cohort_id, out
        self._since: str | None = None
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._done = self._read_journal()
        except OSError as error:
            raise InvalidInputError.at("--out", f"cannot write {out}: {error.strerror}") from None

    def _read_journal(self) -> dict[str, dict[str, Any]]:
        """Return what was written before, by slide."""
        found: dict[str, dict[str, Any]] = {}
        journal = self.out / _HERE
        lines = journal.read_text().splitlines() if journal.exists() else []
        for i, line in enumerate(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the line that a crash cut off
            if i == 0:
                if entry != self._head():
                    raise InvalidInputError.at("--out", f"{self.out} holds the results of another cohort")
            else:
                found[entry["id"]] = entry
        if not lines:
            journal.write_text(json.dumps(self._head()) + "\n")
        return found

    def _head(self) -> dict[str, Any]:
        return {"cohort": self._id, "api": self._cohorts.client.url}

    def pull(self) -> int:
        """Write the results of slides that ended since the last call; returns how many."""
        written = 0
        newest = self._since
        waiting = False
        for slide in self._cohorts.slides(self._id, states=_WITH_RESULTS, ended_after=self._since):
            newest = max(newest or "", slide["ended_at"] or "")
            if (self._done.get(slide["id"]) or {}).get("job") == slide["job_id"]:
                continue
            if self._write(slide):
                written += 1
            else:
                waiting = True
        if not waiting:
            self._since = newest
        return written

    def _write(self, slide: CohortSlide) -> bool:
        job_id = slide["job_id"]
        if job_id is None:
            return False
        client = self._cohorts.client
        try:
            found = client.job_results(job_id)
            task = int(client.job(job_id)["task_id"])
        except ApiError as error:
            if error.status == 404:
                return False  # a duplicate whose twin has not ended, or failed
            raise
        (result,) = found["scanResults"]
        geojson = result.get("geojson")
        item = ExportItem(
            task_number=task, scan_number=int(result["scanId"]), job_id=job_id,
            geojson=GeoJson.read(json.dumps(geojson).encode()) if geojson is not None else None,
            report=(result.get("workflow") or {}).get("report"),
        )  # fmt: skip
        part = self.out / "features" / f"slide={quote(slide['id'], safe='')}" / "part-0.parquet"
        count = _atomically(part, lambda out: write_parquet([item], out))
        _atomically(self._geojson(slide["id"]), lambda out: write_geojson([item], out))
        entry = {
            "id": slide["id"], "job": job_id, "features": count, "summary": result.get("summary"),
            "results": result.get("results"), "case_results": found.get("caseResults"),
        }  # fmt: skip
        self._done[slide["id"]] = entry
        with (self.out / _HERE).open("a") as journal:
            journal.write(json.dumps(entry) + "\n")
        return True

    def _geojson(self, slide_id: str) -> Path:
        name = quote(slide_id, safe=" +,()=@")
        return self.out / "geojson" / f"{name if not name.startswith('.') else '%2E' + name[1:]}.geojson"

    def finish(self, cohort: Cohort, slides_at: Path | None = None) -> None:
        """Write the table of slides, the QuPath project and the cohort itself, as they are now."""
        slides = sorted(self._cohorts.slides(self._id), key=lambda s: s["row"])
        rows = [self._row(s) for s in slides]
        labels = sorted({name for s in slides for name in s["labels"]} - set(_SCHEMA.names))
        schema = pa.schema([*_SCHEMA, *((name, _kind(s["labels"].get(name) for s in slides)) for name in labels)])
        for row, slide in zip(rows, slides, strict=True):
            row |= {n: _fit(slide["labels"].get(n), schema.field(n).type) for n in labels}
        _atomically(
            self.out / "slides.parquet", lambda out: pq.write_table(pa.Table.from_pylist(rows, schema=schema), out)
        )
        entries = [
            Entry(s["id"], s["slide"], s["format"], self._geojson(s["id"]) if s["id"] in self._done else None)
            for s in slides
            if s["state"] != "left out"
        ]
        write_project(self.out / "qupath", entries, slides_at)
        (self.out / "cohort.json").write_text(json.dumps(cohort, indent=1, ensure_ascii=False) + "\n")

    def _row(self, slide: CohortSlide) -> dict[str, Any]:
        done: Mapping[str, Any] = self._done.get(slide["id"]) or {}
        row: dict[str, Any] = {
            name: slide.get(name) for name in _SCHEMA.names if name in slide and name not in ("job", "features")
        }
        kept = {name: json.dumps(done[name]) for name in ("summary", "results", "case_results") if done.get(name)}
        return {**row, "job": slide["job_id"], "features": done.get("features"), **kept}

    @property
    def written(self) -> int:
        """How many slides have their results here."""
        return len(self._done)


def _kind(values: Iterable[Any]) -> pa.DataType:
    """Return the narrowest type that holds all of a label's values."""
    kinds = {type(v) for v in values if v is not None}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds and kinds <= {int, float} else pa.string()


def _fit(value: Any, kind: pa.DataType) -> Any:
    if value is None or kind != pa.string():
        return value
    return value if isinstance(value, str) else json.dumps(value)


def _atomically(path: Path, write: Any) -> Any:
    """Let `write` fill a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as out:
        made = write(out)
    partial.replace(path)
    return made
