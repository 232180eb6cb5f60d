"""A real Prometheus scrapes the real platform: what only Ray exports is there, and every expression has a value."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.platform.harness import Platform
from tests.prometheus_fixtures import expressions, metric_names, prometheus, why_no_prometheus, without_threshold


def test_dashboards_and_rules_have_what_they_ask_for(platform: Platform, zoo: int, scan: int, tmp_path: Path) -> None:
    if reason := why_no_prometheus():
        pytest.skip(reason)
    api = platform.endpoints["api_url"]
    token = {"type": "Bearer", "credentials_file": str(platform.home / "keys" / "metrics-token")}
    scrape = {
        "mhs": {"authorization": token, "static_configs": [{"targets": [api.removeprefix("http://")]}]},
        "ray": {"http_sd_configs": [{"url": f"{api}/metrics/nodes", "authorization": token, "refresh_interval": "1s"}]},
    }
    algorithm = platform.algorithm(zoo, "Posts", env=[{"name": "BEHAVIOUR", "value": "post"}])
    with prometheus(tmp_path, scrape, every="5s") as seen:
        seen.scraped("mhs", times=1)
        [job] = platform.submit(algorithm, scan)
        platform.succeeded(job)
        asked = {name for expr in expressions().values() for name in metric_names(expr)}

        def missing() -> set[str]:
            return asked - set(seen.get("label/__name__/values"))

        deadline = time.monotonic() + 90
        while missing():
            assert time.monotonic() < deadline, (missing(), seen.get("targets")["activeTargets"])
            time.sleep(1)
        seen.scraped("ray", times=2)

        def without_value() -> list[tuple[str, str]]:
            found = []
            for name, expr in expressions().items():
                seen.query(expr)
                value = without_threshold(expr) if name.startswith("alert ") else expr
                if not seen.query(value):
                    found.append((name, value))
            return found

        deadline = time.monotonic() + 60  # a rate needs two scrapes of what is there now
        while (empty := without_value()) and time.monotonic() < deadline:
            time.sleep(1)
        assert empty == []
        labels = {
            label
            for name in ("mhs_http_requests_total", "mhs_starts_total")
            for series in seen.query(f"ray_{name}")
            for label in series["metric"]
        }
        assert not labels & {"company", "company_id", "job", "task", "scan"} - {"job"}, labels
        routes = {s["metric"]["route"] for s in seen.query("ray_mhs_http_requests_total")}
        assert "/v1/jobs/{job_id}" in routes
        assert not [
            route for route in routes if any(c.isdigit() for c in route.replace("/v1/", "/").replace("/v3/", "/"))
        ]
        firing = {a["labels"]["alertname"] for a in seen.get("alerts")["alerts"] if a["state"] == "firing"}
        assert not firing & {"MhsNoMetrics", "MhsPartDown", "MhsNoDispatcherLeader", "MhsIntakeClosed"}
