"""What Ray is told of where an attempt is to run."""

from __future__ import annotations

from typing import Any

import pytest

from mhs_ray.actors import cluster as module
from mhs_ray.actors.cluster import RayCluster
from mhs_ray.domain.instances import LABEL
from mhs_ray.domain.sections import ClusterSettings

NODE = "ac318d9d8f843dde6e09367da408b328e9504f21c5041d7a516779e7"


class _Recorder:
    """Stands for the actor class: notes the options that an actor would be made with."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def options(self, **options: Any) -> _Recorder:
        self.seen = options
        return self

    def remote(self, _key: tuple[int, int]) -> str:
        return "handle"


def _options(monkeypatch: pytest.MonkeyPatch, settings: ClusterSettings, prefer: str | None) -> dict[str, Any]:
    recorder = _Recorder()
    monkeypatch.setattr(module, "AttemptActor", recorder)
    launched: list[Any] = []
    cluster = RayCluster(settings, lambda key, actor: launched.append((key, actor)))
    cluster.launch((7, 1), "job 7 · scan 5 · My container", "g5.2xlarge", prefer)
    assert launched == [((7, 1), "handle")]
    return recorder.seen


def test_a_preferred_node_is_a_wish_that_any_other_node_of_the_type_fulfils(monkeypatch: pytest.MonkeyPatch) -> None:
    options = _options(monkeypatch, ClusterSettings(placement="label"), NODE)
    strategy = options["scheduling_strategy"]
    assert (strategy.node_id, strategy.soft, strategy._spill_on_unavailable) == (NODE, True, True)
    assert options["label_selector"] == {LABEL: "g5.2xlarge"}, "the type stays a must"


def test_without_a_preference_attempts_of_a_type_are_alike_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    first = _options(monkeypatch, ClusterSettings(placement="label"), None)
    assert "scheduling_strategy" not in first
    assert first["label_selector"] == {LABEL: "g5.2xlarge"}
    assert "label_selector" not in _options(monkeypatch, ClusterSettings(), None)
