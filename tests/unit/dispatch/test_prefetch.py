"""What is fetched before a job asks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from mhs_ray.attempt.order import Holding
from mhs_ray.dispatch.locality import Need, NodeView
from mhs_ray.dispatch.prefetch import LikelyImage, Running, plan_pulls, plan_slides
from mhs_ray.domain.models import ImageRef
from mhs_ray.slides.cache import SlideSource

NOW = datetime(2026, 1, 1, tzinfo=UTC)
T4, A10 = "g4dn.xlarge", "g5.2xlarge"


def image(letter: str) -> ImageRef:
    return ImageRef("reg:5000", "trusted/1", "sha256:" + letter * 64)


def need(job_id: int, slide: str = "", kind: str = T4) -> Need:
    return Need(job_id, kind, image("a"), 5, SlideSource((f"https://s.example.com/{slide or job_id}",)), 5)


def node(name: str, free: int = 0, kind: str = T4, gpus: int = 1) -> NodeView:
    return NodeView(name, kind, gpus, free)


def running(*nodes: str) -> list[Running]:
    """Return what runs, the longest first."""
    return [Running(n, NOW + timedelta(seconds=i)) for i, n in enumerate(nodes)]


def planned(plans: list[tuple[str, Need]]) -> list[tuple[str, int]]:
    return [(node_id, n.job_id) for node_id, n in plans]


# ------------------------------------------------------------ slides


def test_the_next_job_is_fetched_for_where_the_longest_running_attempt_is() -> None:
    plans = plan_slides([node("a"), node("b")], [need(1), need(2), need(3)], running("b", "a"), {}, {})
    assert planned(plans) == [("b", 1), ("a", 2)], "as many as run, and no more"


def test_an_attempt_that_still_prepares_is_counted_last() -> None:
    busy = [Running("new", None), *running("old")]
    assert planned(plan_slides([node("new"), node("old")], [need(1)], busy, {}, {})) == [("old", 1)]


def test_a_job_that_starts_at_once_on_a_free_gpu_fetches_for_itself() -> None:
    nodes = [node("a"), node("b", free=1)]
    assert planned(plan_slides(nodes, [need(1), need(2)], running("a"), {}, {})) == [("a", 2)]


def test_a_slide_that_a_node_of_the_type_has_is_not_fetched_again() -> None:
    there = {"b": Holding(frozenset({image("a").digest}), frozenset({need(1).slide.key}))}
    nodes, busy = [node("a"), node("b")], running("a", "b")
    assert planned(plan_slides(nodes, [need(1)], busy, there, {})) == []
    elsewhere = [node("a"), node("b", kind=A10)]
    assert planned(plan_slides(elsewhere, [need(1)], busy, there, {})) == [("a", 1)]


def test_each_job_is_fetched_for_once_and_keeps_its_place() -> None:
    nodes, busy = [node("a"), node("b")], running("a", "b")
    assert planned(plan_slides(nodes, [need(1), need(2)], busy, {}, {1: "a"})) == [("b", 2)]


def test_a_job_is_fetched_for_on_its_own_type_only_and_not_where_nothing_runs() -> None:
    nodes = [node("a"), node("b", kind=A10)]
    assert planned(plan_slides(nodes, [need(1, kind=A10)], running("a"), {}, {})) == []
    assert planned(plan_slides(nodes, [need(1, kind=A10)], running("a", "b"), {}, {})) == [("b", 1)]


def test_a_machine_with_several_gpus_fetches_for_as_many_jobs_as_it_runs() -> None:
    one = [NodeView("m", "", 3, 0)]
    plans = plan_slides(one, [need(1), need(2, kind=A10), need(3), need(4)], running("m", "m", "m"), {}, {})
    assert planned(plans) == [("m", 1), ("m", 2), ("m", 3)]


# ------------------------------------------------------------ images


def likely(letter: str, kind: str = T4) -> LikelyImage:
    return LikelyImage(kind, image(letter), 5, ord(letter))


def pulls(
    nodes: list[NodeView], images: list[LikelyImage], limit: int = 4, held: str = "", asked: tuple[str, ...] = ()
) -> list[tuple[str, str]]:
    """held, asked: letters of images on, or asked of, node a."""
    has = {"a": Holding(frozenset(image(letter).digest for letter in held))}
    before = {("a", image(letter).digest) for letter in asked}
    return [(n, i.image.digest[7]) for n, i in plan_pulls(nodes, images, has, before, limit)]


def test_a_node_pulls_the_likeliest_images_of_its_type_and_no_more_than_the_limit() -> None:
    images = [likely("a"), likely("b", A10), likely("c"), likely("d")]
    assert pulls([node("a"), node("b", kind=A10)], images, limit=2) == [("a", "a"), ("a", "c"), ("b", "b")]


def test_what_is_there_or_was_asked_for_is_not_pulled_and_makes_no_room_for_others() -> None:
    images = [likely("a"), likely("b"), likely("c")]
    assert pulls([node("a")], images, limit=2, held="a") == [("a", "b")]
    assert pulls([node("a")], images, limit=2, held="a", asked=("b",)) == []


def test_an_image_of_two_containers_counts_once_at_its_better_place() -> None:
    images = [likely("a"), likely("b"), likely("a"), likely("c")]
    assert pulls([node("a", kind="")], images, limit=3) == [("a", "a"), ("a", "b"), ("a", "c")]


def test_a_node_that_joins_is_asked_for_all_of_its_images() -> None:
    assert pulls([node("a"), node("b")], [likely("a")], held="a") == [("b", "a")]
