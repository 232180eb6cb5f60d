"""Where a job starts best."""

from __future__ import annotations

import pytest

from mhs_ray.attempt.order import Holding
from mhs_ray.dispatch.locality import Need, NodeView, preferred
from mhs_ray.domain.models import ImageRef
from mhs_ray.slides.cache import SlideSource

GIB = 1 << 30
IMAGE = ImageRef("reg:5000", "trusted/1", "sha256:" + "a" * 64)
SLIDE = SlideSource(("https://s.example.com/a?X-Amz-Signature=1",))
NEED = Need(7, "g4dn.xlarge", IMAGE, 4 * GIB, SLIDE, 1 * GIB)
HAS_IMAGE, HAS_SLIDE = Holding(images=frozenset({IMAGE.digest})), Holding(slides=frozenset({SLIDE.key}))


def node(name: str, free: int = 1, kind: str = "g4dn.xlarge") -> NodeView:
    return NodeView(name, kind, max(1, free), free)


def test_the_node_that_has_the_slide_is_preferred() -> None:
    assert preferred(NEED, [node("a"), node("b")], {"b": HAS_SLIDE}, 0) == "b"


def test_the_node_where_fewer_bytes_are_missing_is_preferred() -> None:
    nodes = [node("slide"), node("image"), node("none")]
    assert preferred(NEED, nodes, {"slide": HAS_SLIDE, "image": HAS_IMAGE}, 0) == "image"
    assert preferred(NEED, nodes, {"slide": HAS_SLIDE | HAS_IMAGE, "image": HAS_IMAGE}, 0) == "slide"


def test_presigned_urls_of_one_slide_are_one_slide() -> None:
    other = Need(8, "g4dn.xlarge", IMAGE, 0, SlideSource(("https://s.example.com/a?X-Amz-Signature=2",)), GIB)
    assert preferred(other, [node("a"), node("b")], {"a": HAS_SLIDE}, 0) == "a"


def test_a_busy_node_is_never_preferred_so_that_nobody_waits_for_it() -> None:
    assert preferred(NEED, [node("busy", 0), node("free")], {"busy": HAS_SLIDE}, 0) is None


def test_a_node_of_another_type_is_never_preferred() -> None:
    nodes = [node("a"), node("b"), node("other", kind="g5.2xlarge")]
    assert preferred(NEED, nodes, {"other": HAS_SLIDE}, 0) is None


def test_one_machine_for_all_types_takes_every_job() -> None:
    assert preferred(NEED, [node("a", kind=""), node("b", kind="")], {"a": HAS_SLIDE}, 0) == "a"


@pytest.mark.parametrize("waiting", [2, 3])
def test_where_those_before_it_take_every_free_gpu_nothing_is_preferred(waiting: int) -> None:
    assert preferred(NEED, [node("a"), node("b")], {"a": HAS_SLIDE}, waiting) is None
    assert preferred(NEED, [node("a"), node("b")], {"a": HAS_SLIDE}, 1) == "a"


def test_where_all_nodes_are_as_good_ray_may_choose() -> None:
    assert preferred(NEED, [node("a"), node("b")], {}, 0) is None
    assert preferred(NEED, [node("a"), node("b")], {"a": HAS_SLIDE, "b": HAS_SLIDE}, 0) is None
