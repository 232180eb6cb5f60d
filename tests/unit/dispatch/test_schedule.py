"""Nodes that are to be warm at certain hours."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from mhs_ray.dispatch.schedule import nodes_wanted
from mhs_ray.domain.sections import WarmNodes

ZURICH = ZoneInfo("Europe/Zurich")


def rule(**values: Any) -> WarmNodes:
    return WarmNodes.model_validate({"instance_type": "g5.2xlarge", "zone": "Europe/Zurich", **values})


def wanted(rules: list[WarmNodes], text: str) -> int:
    """text: a wall clock's time in Zurich. 2026-11-27 is a Friday."""
    return nodes_wanted(rules, datetime.fromisoformat(text).replace(tzinfo=ZURICH)).get("g5.2xlarge", 0)


WEEK = rule(nodes=2, days="mon-fri", **{"from": "07:00", "to": "19:00"})


@pytest.mark.parametrize(
    ("at", "nodes"),
    [
        ("2026-11-27T06:59:59", 0), ("2026-11-27T07:00", 2), ("2026-11-27T18:59:59", 2), ("2026-11-27T19:00", 0),
        ("2026-11-28T12:00", 0), ("2026-11-29T12:00", 0), ("2026-11-30T12:00", 2),
    ],
)  # fmt: skip
def test_nodes_are_wanted_within_the_hours_of_the_days(at: str, nodes: int) -> None:
    assert wanted([WEEK], at) == nodes


@pytest.mark.parametrize("day", ["2026-07-01", "2026-12-01"])
def test_the_hours_are_those_of_the_wall_clock_in_summer_and_in_winter(day: str) -> None:
    assert (wanted([WEEK], f"{day}T06:59"), wanted([WEEK], f"{day}T07:00")) == (0, 2)


@pytest.mark.parametrize(
    ("at", "nodes"),
    [
        ("2026-11-27T21:59", 0), ("2026-11-27T22:00", 1), ("2026-11-28T05:59", 1), ("2026-11-28T06:00", 0),
        ("2026-11-28T22:00", 0), ("2026-11-27T05:00", 0),
    ],
)  # fmt: skip
def test_a_span_over_midnight_belongs_to_the_day_on_which_it_begins(at: str, nodes: int) -> None:
    assert wanted([rule(days="fri", **{"from": "22:00", "to": "06:00"})], at) == nodes


def test_a_span_to_midnight_ends_with_the_day_and_one_without_hours_is_the_whole_day() -> None:
    evening, day = rule(days="fri", **{"from": "18:00", "to": "00:00"}), rule(days="sat")
    assert wanted([evening], "2026-11-27T23:59") == 1
    assert wanted([evening], "2026-11-28T00:00") == 0
    assert (wanted([day], "2026-11-28T00:00"), wanted([day], "2026-11-28T23:59")) == (1, 1)
    assert wanted([day], "2026-11-29T00:00") == 0


def test_of_rules_that_overlap_the_larger_one_holds_for_each_type() -> None:
    other = WarmNodes(instance_type="g4dn.xlarge", nodes=5)
    noon = datetime(2026, 11, 27, 12, tzinfo=ZURICH)
    assert nodes_wanted([WEEK, rule(nodes=1), other], noon) == {"g5.2xlarge": 2, "g4dn.xlarge": 5}


def test_days_may_wrap_around_the_week_and_be_listed() -> None:
    assert rule(days="sat-mon").weekdays == (0, 5, 6)
    assert rule(days="mon, wed,FRI").weekdays == (0, 2, 4)
