"""Fetching ahead over real rows: which nodes are sent where, and what a node's word changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mhs_ray.attempt.ahead import Errand, Report
from mhs_ray.attempt.image_room import RemovedImage
from mhs_ray.attempt.order import Holding
from mhs_ray.dispatch import ahead as module
from mhs_ray.dispatch.ahead import Ahead
from mhs_ray.dispatch.locality import NodeView
from mhs_ray.domain.models import Container, ImageRef
from mhs_ray.domain.states import JobEvent
from mhs_ray.services.core import Core
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.ahead import needs
from tests.core_fixtures import core_in, world_of

T4, A10 = "g4dn.xlarge", "g5.2xlarge"
NODE_A, NODE_B = "a" * 56, "b" * 56


@dataclass
class Cluster:
    """Nodes that note what they are asked for and answer when a test says so."""

    nodes: list[NodeView]
    sent: list[tuple[str, Errand, Callable[[Report | None], None]]] = field(default_factory=list)
    warm: list[dict[str, int]] = field(default_factory=list)

    def views(self) -> list[NodeView]:
        return list(self.nodes)

    def send(self, node_id: str, errand: Errand, done: Callable[[Report | None], None]) -> None:
        self.sent.append((node_id, errand, done))

    def keep_warm(self, wanted: Mapping[str, int]) -> None:
        self.warm.append(dict(wanted))

    def answer(self, report: Report | None = None, *, empty: bool = True) -> list[tuple[str, Errand]]:
        """All that was sent is done; returns it. report: what every node says; else that it holds nothing."""
        done, self.sent = self.sent, []
        for _, _, tell in done:
            tell(report or (Report(Holding()) if empty else None))
        return [(node_id, errand) for node_id, errand, _ in done]


class Lab:
    """One company's containers and jobs, and what is done for them ahead."""

    def __init__(self, core: Core, cluster: Cluster) -> None:
        self.core, self.cluster, self.world = core, cluster, world_of(core)
        self.company = self.world.company("lab")
        self.reports = 0
        self.removed: list[RemovedImage] = []
        self.ahead = Ahead(core, cluster, self._reported, self.removed.append)

    def _reported(self) -> None:
        self.reports += 1

    def container(self, letter: str = "a", kind: str = T4) -> Container:
        image = self.world.image(self.company, digest="sha256:" + letter * 64)
        return self.world.container(self.company, image, instance_type=kind)

    def queue(self, container: Container) -> int:
        return self.world.queued(self.company, self.world.algorithm(self.company, container))

    def run(self, container: Container, node_id: str) -> int:
        """Return a job whose container runs on the node."""
        job_id = self.queue(container)
        assert [j.id for j in self.world.claim()] == [job_id]
        self.world.jobs.transition(job_id, JobEvent.PLACED, attempt=1, node=f"host ({node_id[:8]})")
        self.world.jobs.transition(job_id, JobEvent.STARTED, attempt=1)
        return job_id

    def met(self) -> None:
        """The nodes have said what they hold."""
        self.ahead.look()
        self.cluster.answer()

    def look(self) -> list[tuple[str, Errand]]:
        self.ahead.look()
        return [(node_id, errand) for node_id, errand, _ in self.cluster.sent]


@pytest.fixture(autouse=True)
def _seen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_VIEW_S", 0.0)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with core_in(tmp_path) as core:
        yield Lab(core, Cluster([NodeView(NODE_A, T4, 1, 1), NodeView(NODE_B, T4, 1, 1)]))


def digests(errands: list[tuple[str, Errand]]) -> list[tuple[str, str]]:
    return [(n[0], e.image.ref.digest[7]) for n, e in errands if e.image is not None]


# ------------------------------------------------------------ images


def test_nodes_that_are_alive_pull_the_image_of_a_container_that_is_made_one_after_the_other(lab: Lab) -> None:
    lab.met()
    lab.container("a")
    assert digests(lab.look()) == [("a", "a"), ("b", "a")]
    lab.container("c")
    assert digests(lab.look()) == [("a", "a"), ("b", "a")], "one pull at a time"
    lab.cluster.answer()
    assert digests(lab.look()) == [("a", "c"), ("b", "c")]


def test_nodes_pull_a_new_version_when_it_is_pushed(lab: Lab) -> None:
    container = lab.container("a")
    lab.met()
    lab.look()
    lab.cluster.answer()
    new = "sha256:" + "d" * 64
    lab.world.images.begin_check(container.image_id, new)
    ref = ImageRef("reg:5000", f"trusted/{container.image_id}", new)
    lab.world.images.uploaded(container.image_id, new, ref, 5, {})
    assert digests(lab.look()) == [("a", "d"), ("b", "d")]


def test_a_node_that_joins_pulls_what_jobs_of_its_type_used_last(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lab.core.settings.cluster.__dict__, "prepull", 1)
    used = lab.container("a")
    lab.container("c")
    lab.container("d", A10)
    with lab.core.db.write() as conn:  # long ago
        for table in (t.containers, t.image_versions):
            conn.execute(sa.update(table).values(created_at=datetime.now(UTC) - timedelta(days=30)))
    lab.queue(used)
    lab.cluster.nodes = [NodeView(NODE_A, A10, 1, 1)]
    lab.met()
    assert digests(lab.look()) == [("a", "d")]
    lab.cluster.nodes.append(NodeView(NODE_B, T4, 1, 1))
    lab.met()
    assert digests(lab.look()) == [("b", "a")]


def test_a_pull_that_failed_is_not_asked_for_again_and_a_deleted_container_counts_no_more(lab: Lab) -> None:
    lab.cluster.nodes = lab.cluster.nodes[:1]
    container = lab.container("a")
    lab.met()
    assert digests(lab.look()) == [("a", "a")]
    lab.cluster.answer(empty=False)
    assert lab.look() == []
    lab.container("c")
    with lab.core.db.write() as conn:
        conn.execute(sa.update(t.containers).values(deleted_at=datetime.now(UTC)))
    assert container.id
    assert lab.look() == []


def test_a_node_that_has_an_image_is_not_asked_for_it_even_after_the_dispatcher_was_restarted(lab: Lab) -> None:
    container = lab.container("a")
    lab.ahead.look()
    lab.cluster.answer(Report(Holding(images=frozenset({"sha256:" + "a" * 64}))))
    assert lab.look() == []
    assert container.id


def test_nothing_is_pulled_where_the_setting_says_none(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lab.core.settings.cluster.__dict__, "prepull", 0)
    lab.container("a")
    lab.met()
    assert lab.look() == []


@pytest.mark.parametrize(("details", "bytes_at_most"), [({"uncompressed_size": 700}, 705), ({}, 20)])
def test_a_node_is_told_how_much_an_image_takes_packed_and_unpacked_as_its_check_said_or_guessed(
    lab: Lab, details: dict[str, int], bytes_at_most: int
) -> None:
    container = lab.container("a")
    lab.met()
    lab.look()
    lab.cluster.answer()
    new = "sha256:" + "d" * 64
    lab.world.images.begin_check(container.image_id, new)
    ref = ImageRef("reg:5000", f"trusted/{container.image_id}", new)
    lab.world.images.uploaded(container.image_id, new, ref, 5, details)
    ((_, first), _) = lab.look()
    assert first.image is not None
    assert first.image.size_bytes == bytes_at_most


# ------------------------------------------------------------ what stays, and who is asked


def test_a_node_is_told_which_images_stay_those_of_jobs_that_come_and_the_likely_ones_of_its_type(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lab.core.settings.cluster.__dict__, "prepull", 1)
    lab.cluster.nodes = [NodeView(NODE_A, T4, 1, 1), NodeView(NODE_B, A10, 1, 1)]
    waits = lab.container("a")
    lab.queue(waits)
    lab.container("c")
    lab.container("d")  # touched last, hence likely
    lab.container("e", A10)
    kept = {node: {d[7] for d in errand.keep} for node, errand in lab.look()}
    assert kept[NODE_B] == {"e"}
    assert kept[NODE_A] == {"a", "d"}


def test_an_idle_node_of_a_cluster_is_not_asked_again_so_that_its_idle_time_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lab.core.settings.cluster.__dict__, "placement", "label")
    monkeypatch.setattr(module, "_REPORT_S", 0.0)
    assert [n for n, _ in lab.look()] == [NODE_A, NODE_B], "each once: nobody knows what they hold"
    lab.cluster.answer()
    assert lab.look() == []
    lab.cluster.nodes[0] = NodeView(NODE_A, T4, 1, 0)  # it works
    assert [n for n, _ in lab.look()] == [NODE_A]
    lab.cluster.answer()
    lab.cluster.nodes[0] = NodeView(NODE_A, T4, 1, 1)
    assert lab.look() == []


def test_a_single_machine_is_asked_again_whatever_it_did(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REPORT_S", 0.0)
    lab.met()
    assert [n for n, _ in lab.look()] == [NODE_A, NODE_B]


def test_what_a_node_removed_is_counted(lab: Lab) -> None:
    gone = RemovedImage(ImageRef("reg:5000", "trusted/1", "sha256:" + "9" * 64), "age")
    lab.met()
    lab.container("a")
    lab.look()
    lab.cluster.answer(Report(Holding(), removed=(gone,)))
    assert lab.removed == [gone, gone]


# ------------------------------------------------------------ slides


@pytest.fixture
def quiet(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Without pulls of likely images, and with the first report in."""
    monkeypatch.setitem(lab.core.settings.cluster.__dict__, "prepull", 0)
    lab.met()
    return lab


def test_while_a_job_computes_its_node_fetches_image_and_slide_of_the_next_job(quiet: Lab) -> None:
    container = quiet.container("a")
    quiet.run(container, NODE_A)
    quiet.run(container, NODE_B)
    following, later = quiet.queue(container), quiet.queue(container)
    sent = quiet.look()
    assert [(n[0], e.what) for n, e in sent] == [
        ("a", f"fetch ahead · job {following}"),
        ("b", f"fetch ahead · job {later}"),
    ]
    assert digests(sent) == [("a", "a"), ("b", "a")]
    assert all(e.slide is not None and "url-s3cret" in e.slide.urls[0] for _, e in sent)
    assert "s3cret" not in repr(sent)
    quiet.cluster.answer()
    assert quiet.look() == [], "once for each job, whatever came of it"
    assert quiet.reports > 0


def test_where_a_slide_is_is_asked_once_for_each_job(quiet: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = quiet.core.scans.sources

    def counted(scan_id: int) -> Any:
        asked.append(scan_id)
        return real(scan_id)

    monkeypatch.setattr(quiet.core.scans, "sources", counted)
    container = quiet.container("a")
    quiet.run(container, NODE_A)
    quiet.run(container, NODE_B)
    jobs = [quiet.queue(container) for _ in range(2)]
    for _ in range(3):
        quiet.look()
    assert asked == [quiet.world.jobs.find(j).scan_id for j in jobs]


def test_nothing_is_fetched_for_a_job_that_starts_at_once(quiet: Lab) -> None:
    container = quiet.container("a")
    quiet.run(container, NODE_A)
    quiet.queue(container)
    assert quiet.look() == []


def test_a_slide_whose_url_ends_soon_is_left_to_its_job(quiet: Lab) -> None:
    container = quiet.container("a")
    quiet.run(container, NODE_A)
    quiet.run(container, NODE_B)
    job_id = quiet.queue(container)
    with quiet.core.db.write() as conn:
        soon = datetime.now(UTC) + timedelta(seconds=60)
        conn.execute(sa.update(t.jobs).where(t.jobs.c.id == job_id).values(usable_until=soon))
    ((_, errand),) = quiet.look()
    assert errand.slide is None
    assert errand.image is not None


def test_nothing_is_fetched_where_the_setting_says_no(quiet: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quiet.core.settings.cluster.__dict__, "prefetch", False)
    container = quiet.container("a")
    quiet.run(container, NODE_A)
    quiet.run(container, NODE_B)
    quiet.queue(container)
    assert quiet.look() == []


def test_a_waiting_attempt_comes_before_the_queue_and_priority_before_age(quiet: Lab) -> None:
    container = quiet.container("a")
    waiting = quiet.queue(container)
    quiet.world.claim()
    research, clinical = quiet.queue(container), quiet.queue(container)
    with quiet.core.db.write() as conn:
        conn.execute(sa.update(t.jobs).where(t.jobs.c.id == research).values(priority=1))
    assert quiet.world.jobs.upcoming(9, datetime.now(UTC)) == [waiting, clinical, research]
    assert quiet.world.jobs.upcoming(1, datetime.now(UTC)) == [waiting]


# ------------------------------------------------------------ where a job starts best


def launch(lab: Lab, container: Container, like: int | None = None) -> str | None:
    """Queue, claim and place a job, on the slide of the job `like`; return the node that it prefers."""
    job_id = lab.queue(container)
    if like is not None:
        with lab.core.db.write() as conn:
            slide = sa.select(t.jobs.c.slide).where(t.jobs.c.id == like).scalar_subquery()
            scan = sa.select(t.jobs.c.scan_id).where(t.jobs.c.id == like).scalar_subquery()
            conn.execute(sa.update(t.jobs).where(t.jobs.c.id == job_id).values(slide=slide, scan_id=scan))
    (job,) = lab.world.claim()
    return lab.ahead.prefer(job)


def test_a_job_prefers_the_node_where_one_of_its_slide_ran(quiet: Lab) -> None:
    container = quiet.container("a")
    first = quiet.run(container, NODE_B)
    quiet.ahead.started((first, 1), NODE_B)
    quiet.world.jobs.transition(first, JobEvent.EXITED, attempt=1)
    quiet.world.jobs.transition(first, JobEvent.SUCCEEDED, attempt=1)
    assert launch(quiet, container, like=first) == NODE_B


def test_a_node_that_an_attempt_just_launched_will_take_is_not_free_any_more(quiet: Lab) -> None:
    container = quiet.container("a")
    slide = quiet.ahead._needs([quiet.queue(container)])[0].slide.key
    for job in quiet.world.claim():
        quiet.world.jobs.transition(job.id, JobEvent.CANCELLED)
    quiet.ahead._held = {NODE_B: Holding(slides=frozenset({slide}))}  # every scan here has the same URL
    assert launch(quiet, container) == NODE_B
    assert launch(quiet, container) is None, "B is taken, and A has nothing that would make a difference"
    quiet.cluster.nodes.append(NodeView("c" * 56, T4, 1, 1))
    assert launch(quiet, container) is None


def test_on_one_machine_nothing_is_preferred_and_nobody_is_asked(quiet: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet.cluster.nodes = quiet.cluster.nodes[:1]
    container = quiet.container("a")

    def forbidden(*_: Any) -> Any:
        raise AssertionError("rows were read")

    monkeypatch.setattr(module, "needs", forbidden)
    assert launch(quiet, container) is None


def test_whatever_fails_a_job_is_launched_all_the_same(quiet: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[NodeView]:
        raise RuntimeError("the control service is away")

    monkeypatch.setattr(quiet.cluster, "views", broken)
    assert launch(quiet, quiet.container("a")) is None


def test_a_node_that_is_gone_is_forgotten(quiet: Lab) -> None:
    container = quiet.container("a")
    first = quiet.run(container, NODE_B)
    quiet.ahead.started((first, 1), NODE_B)
    quiet.cluster.nodes = quiet.cluster.nodes[:1]
    quiet.ahead.look()
    assert NODE_B not in quiet.ahead._held
    assert needs(quiet.core.db, [first])


# ------------------------------------------------------------ warm nodes


def test_warm_nodes_are_asked_for_when_their_hours_begin_and_let_go_when_they_end(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    hours = {"from": f"{now - timedelta(hours=1):%H:%M}", "to": f"{now + timedelta(hours=1):%H:%M}"}
    with core_in(tmp_path, cluster={"warm": [{"instance_type": T4, "nodes": 2, **hours}]}) as core:
        lab = Lab(core, Cluster([]))
        lab.ahead.look()
        lab.ahead.look()
        assert lab.cluster.warm == [{T4: 2}], "asked for once"
        object.__setattr__(core.settings.cluster.warm[0], "end", now.time().replace(second=0, microsecond=0))
        lab.ahead.look()
        assert lab.cluster.warm == [{T4: 2}, {}]


def test_without_a_schedule_the_autoscaler_is_asked_for_nothing(lab: Lab) -> None:
    lab.ahead.look()
    assert lab.cluster.warm == []
