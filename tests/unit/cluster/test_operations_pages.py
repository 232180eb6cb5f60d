"""What the operations pages say is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mhs_ray.domain.instances import INSTANCE_TYPES
from mhs_ray.domain.sections import CohortSettings

PAGES = Path(__file__).resolve().parents[3] / "docs" / "operations"
OURS = ("alerts", "backup", "capacity", "cost", "monitoring", "upgrade")


def test_the_cost_table_has_every_instance_type_and_its_sums_are_right() -> None:
    rows = re.findall(
        r"^\| (g[\w.]+) \| (\w+) \| ([\d.]+) \| ([\d.]+) \|$", (PAGES / "cost.md").read_text(), re.MULTILINE
    )
    assert [name for name, *_ in rows] == list(INSTANCE_TYPES)
    for name, gpu, hour, thousand in rows:
        assert gpu == INSTANCE_TYPES[name].gpu
        assert float(hour) == CohortSettings().prices[name]
        assert float(thousand) == pytest.approx(float(hour) * 1000 * 3 / 60, abs=0.005)


@pytest.mark.parametrize("name", OURS)
def test_every_link_leads_to_a_page_and_a_section(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text()
    for file, anchor in re.findall(r"\]\(([\w./-]*\.md)?(?:#([\w-]+))?\)", text):
        target = PAGES / (file or f"{name}.md")
        assert target.exists(), file
        heads = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-")
                 for h in re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)}  # fmt: skip
        assert not anchor or anchor in heads, f"{file}#{anchor}"


def test_the_page_on_metrics_names_those_that_are_asked_for() -> None:
    from tests.prometheus_fixtures import expressions, metric_names

    text = (PAGES / "monitoring.md").read_text()
    asked = {re.sub(r"_bucket$", "", n) for e in expressions().values() for n in metric_names(e) if "mhs_" in n}
    phases = {f"mhs_attempt_{phase}_seconds" for phase in ("placement", "prepare", "run")}  # written with an ellipsis
    assert sorted(n for n in asked - phases if f"`{n}`" not in text and n != "mhs_info") == []
