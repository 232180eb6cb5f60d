"""Rules and dashboards in a real Prometheus that scrapes a real API."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.states import JobEvent
from tests.api_fixtures import Server, api_server
from tests.prometheus_fixtures import (
    CLUSTER,
    DASHBOARDS,
    Prometheus,
    alerts,
    configured,
    expressions,
    metric_names,
    panels,
    prometheus,
    why_no_prometheus,
    without_threshold,
)
from tests.store_fixtures import World

RUNBOOK = CLUSTER.parent / "docs" / "operations" / "alerts.md"
FOLDER = CLUSTER / "prometheus"


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    if reason := why_no_prometheus():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with api_server(tmp_path_factory.mktemp("home")) as found:
        found.nodes.append({"alive": True, "instance_type": "g4dn.xlarge", "address": "10.0.0.7", "metrics_port": 8085})
        yield found


@pytest.fixture(scope="module")
def seen(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the API while jobs ended."""
    token = server.core.settings.home / "keys" / "metrics-token"
    api = {
        "authorization": {"credentials_file": str(token)},
        "static_configs": [{"targets": [server.url.removeprefix("http://")]}],
    }
    # The project's own discovery of nodes; nobody exports anything there, but the list of them is read.
    discovery = {
        "http_sd_configs": [
            {
                **next(j for j in configured() if j["job_name"] == "ray")["http_sd_configs"][0],
                "url": f"{server.url}/metrics/nodes", "refresh_interval": "1s",
            }
        ]
    }  # fmt: skip
    discovery["http_sd_configs"][0]["authorization"] |= {"credentials_file": str(token)}
    with prometheus(tmp_path_factory.mktemp("prometheus"), {"mhs": api, "ray": discovery}) as found:
        found.scraped("mhs", times=1)
        for _ in range(2):
            _work(server.world)
            time.sleep(2)
        found.scraped("mhs", times=4)
        yield found


def _work(world: World) -> None:
    company = world.company("North")
    lost, broke = Failure(FailureCode.NODE_LOST, "x", "y"), Failure(FailureCode.EXIT_CODE, "x", "y")
    for event, failure in ((JobEvent.SUCCEEDED, None), (JobEvent.FAILED, broke), (JobEvent.RETRIED, lost)):
        job = world.running(company)
        world.jobs.transition(job.id, JobEvent.EXITED, attempt=1, resources={"slide_cached": failure is None})
        world.jobs.transition(job.id, event, attempt=1, failure=failure, retry_in_s=999)
    world.queued(company)


def test_promtool_takes_the_rules_and_their_own_tests_pass() -> None:
    for words in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")):
        done = subprocess.run(["promtool", *words], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    tried = (FOLDER / "alerts_test.yml").read_text()
    assert [rule["alert"] for rule in alerts() if rule["alert"] not in tried] == []


def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text((FOLDER / "alerts.yml").read_text())
    token = tmp_path / "metrics-token"
    token.write_text("x")
    config = (FOLDER / "prometheus.yml").read_text()
    assert "/var/lib/mhs/keys/metrics-token" in config
    (tmp_path / "p.yml").write_text(config.replace("/var/lib/mhs/keys/metrics-token", str(token)))
    done = subprocess.run(
        ["promtool", "check", "config", "p.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_leads_to_a_section_of_the_runbook_and_every_section_to_an_alert() -> None:
    sections = re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(rule["alert"] for rule in alerts())
    for rule in alerts():
        file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert CLUSTER.parent / file == RUNBOOK
        assert anchor == rule["alert"].lower()
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]


def test_every_link_within_the_runbook_leads_somewhere() -> None:
    text = RUNBOOK.read_text()
    sections = {s.lower() for s in re.findall(r"^## (\w+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= sections


def test_every_metric_that_is_asked_for_is_exported(seen: Prometheus) -> None:
    exported = set(seen.get("label/__name__/values"))
    asked = {name for expr in expressions().values() for name in metric_names(expr) if name.startswith("mhs_")}
    assert len(asked) > 20
    # Ray's own (ray_…) are looked for on a real cluster: tests/e2e/platform/test_monitoring.py.
    assert asked - exported == set()


def test_every_metric_that_is_exported_is_shown_or_watched(seen: Prometheus) -> None:
    exported = {
        re.sub(r"_(bucket|sum|count)$", "", n) for n in seen.get("label/__name__/values") if n.startswith("mhs_")
    }
    used = {re.sub(r"_(bucket|sum|count)$", "", n) for expr in expressions().values() for n in metric_names(expr)}
    assert exported - used == set()


@pytest.mark.parametrize("name", expressions())
def test_every_expression_has_a_value(seen: Prometheus, name: str) -> None:
    expr = expressions()[name]
    seen.query(expr)
    if any(metric.startswith("ray_") for metric in metric_names(expr)):
        return  # on a real cluster, as above
    value = without_threshold(expr) if name.startswith("alert ") else expr
    found = seen.query(value)
    assert found, f"{value} has no value"
    assert all(sample["value"][1] != "NaN" for sample in found) or "rate(" in value, found


def test_prometheus_finds_rays_nodes_by_the_api(seen: Prometheus) -> None:
    targets = seen.get("targets?state=active")["activeTargets"]
    assert "http://10.0.0.7:8085/metrics" in {target["scrapeUrl"] for target in targets}


def test_the_rules_run_and_those_fire_that_should(seen: Prometheus) -> None:
    groups = seen.get("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(rules) == {rule["alert"] for rule in alerts()}
    assert {name: rule["lastError"] for name, rule in rules.items() if rule.get("lastError")} == {}
    assert {rule["health"] for rule in rules.values()} == {"ok"}
    assert rules["MhsNodeLost"]["state"] == "firing"
    assert rules["MhsNoDispatcherLeader"]["state"] in {"pending", "firing"}, "nobody dispatches here"
    assert rules["MhsQueueOld"]["state"] == "inactive"


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda f: f.stem)
def test_a_dashboard_is_what_grafana_reads(file: Path) -> None:
    document = json.loads(file.read_text())
    assert document["uid"] == file.stem
    ids = [panel["id"] for panel in document["panels"]]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells, f"{panel['title']} lies over another panel"
        cells |= covered
        assert panel["datasource"]["uid"] == "${datasource}"
    variables = {v["name"] for v in document["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(document["panels"]))) <= variables
    assert len(panels(file)) >= len(document["panels"])
