"""A real Prometheus (Debian's) with the project's own rules, and the expressions of rules and dashboards."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.s3_fixtures import free_ports

CLUSTER = Path(__file__).resolve().parents[1] / "cluster"
RULES = CLUSTER / "prometheus" / "alerts.yml"
DASHBOARDS = sorted((CLUSTER / "grafana").glob("*.json"))


def why_no_prometheus() -> str | None:
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    return f"no {' and '.join(missing)} on this machine: apt-get install prometheus" if missing else None


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def configured() -> list[dict[str, Any]]:
    """Return the scrape jobs of the project's own configuration."""
    jobs: list[dict[str, Any]] = yaml.safe_load((CLUSTER / "prometheus" / "prometheus.yml").read_text())[
        "scrape_configs"
    ]
    return jobs


def panels(dashboard: Path) -> list[tuple[str, str]]:
    """Return (title, expression) of every query, with Grafana's variables filled in as for *All*."""
    document = json.loads(dashboard.read_text())
    return [
        (panel["title"], target["expr"].replace("$instance_type", ".*"))
        for panel in document["panels"]
        for target in panel["targets"]
    ]


def expressions() -> dict[str, str]:
    """Return what every rule and panel asks, by a name for people."""
    found = {f"alert {rule['alert']}": str(rule["expr"]) for rule in alerts()}
    for file in DASHBOARDS:
        for number, (title, expr) in enumerate(panels(file)):
            found[f"{file.stem} {number} {title}"] = expr
    return found


def metric_names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:ray_)?mhs_\w+|\bray_node_\w+", expression))


def without_threshold(expression: str) -> str:
    """Return what a rule compares, so that it has a value also while all is well."""
    first = re.split(r"\s+(?:unless|and)\s+", expression.strip(), maxsplit=1)[0]
    return (
        re.split(r"\s(?:==|>|<)\s", first, maxsplit=1)[0]
        .removeprefix("absent(")
        .removesuffix(")" if first.startswith("absent(") else "")
    )


@dataclass
class Prometheus:
    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query; an error of the expression is a failure."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30, trust_env=False)
        body = answer.json()
        assert body["status"] == "success", f"{expression}: {body}"
        return list(body["data"]["result"])

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}/api/v1/{path}", timeout=30, trust_env=False).json()["data"]

    def scraped(self, job: str, within_s: float = 40, times: int = 2) -> None:
        """Return once every target of `job` was scraped without fault often enough for a rate."""
        deadline = time.monotonic() + within_s
        while True:
            found = self.query(f'min(count_over_time(up{{job="{job}"}}[5m]) and up{{job="{job}"}} == 1)')
            if found and float(found[0]["value"][1]) >= times:
                return
            assert time.monotonic() < deadline, self.get("targets?state=active")["activeTargets"]
            time.sleep(0.3)


@contextmanager
def prometheus(folder: Path, scrape: dict[str, Any], every: str = "1s") -> Iterator[Prometheus]:
    """Run a server with the project's configuration. scrape: job → what its settings are replaced by."""
    config = yaml.safe_load((CLUSTER / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"] = [
        job | scrape[job["job_name"]] for job in config["scrape_configs"] if job["job_name"] in scrape
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        found = Prometheus(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                if httpx.get(f"{found.url}/-/ready", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
