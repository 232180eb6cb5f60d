"""The contract's page says what the code does."""

from __future__ import annotations

import json
import re
from typing import get_args

from api.app import build_app
from mhs_ray.domain import env
from mhs_ray.results.reports import Report
from mhs_ray.results.schema import parse_results
from mhs_ray.results.wire import CaseResults, ScanResultBody, WorkflowBody
from tests.docs_pages import DOCS, blocks

PAGE = DOCS / "contract.md"
TEXT = PAGE.read_text()


def table_under(heading: str, number: int = 0) -> list[list[str]]:
    """Return the rows of the n-th table below a heading, as lists of cells."""
    part = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\|$\n?)+", part, re.MULTILINE)
    rows = tables[number].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_variables_are_those_that_the_platform_sets_and_reserves() -> None:
    given = [name for row in table_under("What it is given") for name in names(row[0])]
    assert sorted(given) == sorted(env.RESERVED)
    kept = [name for row in table_under("What it is given", 1) for name in names(row[0])]
    assert sorted(kept) == sorted(env.PLATFORM)


def test_the_reports_and_their_fields_are_those_that_are_checked() -> None:
    kinds = {k.__name__: k for k in get_args(get_args(Report)[0])}
    rows = {names(row[0])[0]: names(row[1]) for row in table_under("Reports")}
    assert rows.keys() == kinds.keys()
    for name, fields in rows.items():
        assert set(fields) == set(kinds[name].model_fields) - {"type"}, name


def test_the_keys_of_a_result_are_those_that_are_read() -> None:
    rows = [names(row[0])[0] for row in table_under("What it posts")]
    fields = [f.alias or name for name, f in ScanResultBody.model_fields.items()]
    assert rows == ["caseResults", *(f"scanResults[].{f}" for f in fields)]
    workflow = next(row[1] for row in table_under("What it posts") if "workflow" in row[0])
    assert set(names(workflow)) == set(WorkflowBody.model_fields)
    assert "triage" in CaseResults.model_fields


def test_the_example_is_taken_as_it_stands() -> None:
    [example] = [b.text for b in blocks(PAGE) if b.language == "json"]
    body = json.loads(example)
    parsed = parse_results(example.encode(), task_scans=frozenset({int(body["scanResults"][0]["scanId"])}))
    [scan] = parsed.scans
    assert scan.external_url == "https://lab.example/report/1"
    assert scan.report is not None
    assert scan.geojson is not None
    assert scan.geojson.count == 1


def test_the_calls_are_routes_of_the_api() -> None:
    routes = {(m.upper(), p) for p, item in build_app().openapi()["paths"].items() for m in item}
    told = {tuple(names(row[0])[0].split(" ")) for row in table_under("Other calls")}
    assert told | {("POST", "/api/v3/external/results/{task_id}")} == {r for r in routes if r[1].startswith("/api/v3/")}
