"""Which nodes are to be warm now, by the operator's week. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from mhs_ray.domain.sections import WarmNodes


def nodes_wanted(rules: Sequence[WarmNodes], now: datetime) -> dict[str, int]:
    """Return how many nodes of each instance type are to be there at `now`; of rules that overlap, the largest."""
    wanted: dict[str, int] = {}
    for rule in rules:
        if _holds(rule, now):
            wanted[rule.instance_type] = max(rule.nodes, wanted.get(rule.instance_type, 0))
    return wanted


def _holds(rule: WarmNodes, now: datetime) -> bool:
    """Compare wall clocks, so that 07:00 is 07:00 in summer too; a span over midnight belongs to the day it begins."""
    local = now.astimezone(ZoneInfo(rule.zone))
    clock = local.time().replace(tzinfo=None)
    today, yesterday = local.weekday(), (local - timedelta(days=1)).weekday()
    begin, end = rule.begin, rule.end
    if begin < end or end == time(0):
        return today in rule.weekdays and clock >= begin and (end == time(0) or clock < end)
    return (today in rule.weekdays and clock >= begin) or (yesterday in rule.weekdays and clock < end)
