"""Workers that wait for the next attempt: one more is asked for exactly when one was used up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mhs_ray.actors import warm


def test_a_task_that_used_a_fresh_worker_up_has_one_other_made_on_its_own_node(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    here = SimpleNamespace(get_node_id=lambda: "b")
    monkeypatch.setattr(warm, "_fresh", True)
    monkeypatch.setattr(warm.ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(warm, "nodes", lambda: [{"NodeID": "a"}, {"NodeID": "b"}])
    monkeypatch.setattr(warm, "prestart_worker", asked.append)
    for _ in range(3):  # the worker is used again by later tasks
        warm.replace_worker()
    assert asked == [{"NodeID": "b"}]
